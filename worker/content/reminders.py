"""The texts of a digest: which leads wait for a follow-up, as an e-mail and as a WhatsApp message.

A lead's fields hold whatever somebody typed: control characters become spaces, so that no name can begin a new line,
and long fields are cut.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from worker.content.one_line import one_line
from worker.content.placeholder_spellings import unified
from worker.content.placeholders import Html, Template
from worker.content.plain_text import plain_text
from worker.content.whatsapp import LONGEST_TEXT
from worker.messages import EmailCopy

LONGEST_FIELD = 120  # characters of a lead's name, e-mail or phone

_LIST = re.compile(r"\{\{\s*leadsList\s*\}\}")

SUBJECT = "{{leads}} waiting for a follow-up"
HTML = """<!DOCTYPE html>
<html>
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body style="margin:0;padding:0;background:#f3f4f6">
<div style="max-width:560px;margin:0 auto;padding:20px 16px;font:16px/1.5 Arial,Helvetica,sans-serif;color:#1f2937">
<p style="margin:0 0 12px">Hello {{recipientName}},</p>
<p style="margin:0 0 16px"><strong>{{leads}}</strong> had no contact for more than {{hours}}.</p>
<div style="background:#ffffff;border:1px solid #e5e7eb;border-radius:8px;padding:4px 16px">
{{leadsList}}
</div>
<p style="margin:16px 0 0;font-size:14px;color:#6b7280">{{companyName}}</p>
</div>
</body>
</html>
"""
TEXT = """Hello {{recipientName}},

{{leads}} had no contact for more than {{hours}}:

{{leadsListText}}

{{companyName}}
"""
_CELL = "padding:10px 0;border-bottom:1px solid #e5e7eb;word-break:break-word;overflow-wrap:anywhere"


@dataclass(frozen=True, slots=True)
class Digest:
    """What one digest says. ``leads``: (name, e-mail, phone) of the first ones; ``count``: how many there are."""

    recipient_name: str  # '' when only an address is known
    address: str
    count: int
    leads: Sequence[Sequence[str | None]]
    hours: float
    company_name: str


@dataclass(frozen=True, slots=True)
class DigestTexts:
    """An e-mail's parts, to be filled with ``values``."""

    subject: Template
    text: Template
    html: Template
    values: dict[str, str]

    def copy(self, sender: str) -> EmailCopy:
        """What its reader sees, for the outbox."""
        return EmailCopy(
            sender,
            self.subject.fill(self.values),
            self.text.fill(self.values),
            self.html.fill_html(self.values),
        )


def email_texts(digest: Digest, subject: str | None = None, html_body: str | None = None) -> DigestTexts:
    """The e-mail: subject and HTML from the tenant's template where they are not blank, else the built-in ones."""
    values = {
        "recipientName": _field(digest.recipient_name) or digest.address,
        "leadsCount": str(digest.count),
        "leadsList": _table(digest),
        "leadsListText": "\n".join(_list_lines(digest)),
        "checkIntervalHours": f"{digest.hours:g}",
        "companyName": _field(digest.company_name),
    }
    own_html = html_body if html_body and html_body.strip() else None
    own_subject = subject if subject and subject.strip() else None
    return DigestTexts(
        _template(own_subject or _built_in(SUBJECT, digest)),
        _template(_plain(own_html) if own_html else _built_in(TEXT, digest)),
        _template(own_html or _built_in(HTML, digest)),
        values,
    )


def whatsapp_text(digest: Digest, limit: int = LONGEST_TEXT) -> str:
    """The message, at most ``limit`` characters: whole leads only, and how many more there are."""
    name = _field(digest.recipient_name)
    greeting = f"Hello {name},\n" if name else ""
    head = f"{greeting}{_leads(digest.count)} had no contact for more than {_hours(digest.hours)}:\n\n"
    tail = f"\n\n{_field(digest.company_name)}"
    room = limit - len(head) - len(tail)
    lines = _list_lines(digest)
    listed = len(digest.leads)
    while sum(map(len, lines)) + len(lines) - 1 > room and listed:
        listed -= 1
        lines = [*lines[:listed], _more(digest.count - listed)]
    return head + "\n".join(lines) + tail


def template_params(digest: Digest) -> tuple[str, str]:
    """What the WhatsApp template of digests is filled with: how many leads there are, and the company."""
    return str(digest.count), _field(digest.company_name)


def _template(text: str) -> Template:
    return Template(text, unknown="blank")


def _built_in(text: str, digest: Digest) -> str:
    """The built-in texts with their phrases, which tenants' templates cannot use; the placeholders stay."""
    return text.replace("{{leads}}", _leads(digest.count)).replace("{{hours}}", _hours(digest.hours))


def _plain(html_body: str) -> str:
    """The text part for a tenant's HTML, with the list of leads as text."""
    return _LIST.sub("{{leadsListText}}", plain_text(unified(html_body)))


def _leads(count: int) -> str:
    return "1 lead" if count == 1 else f"{count} leads"


def _hours(hours: float) -> str:
    return "1 hour" if hours == 1 else f"{hours:g} hours"


def _more(count: int) -> str:
    return f"... and {count} more"


def _field(value: str | None) -> str:
    return one_line(value or "", LONGEST_FIELD)


def _fields(lead: Sequence[str | None]) -> list[str]:
    """Name, e-mail and phone, without those that are empty."""
    return [field for value in lead if (field := _field(value))]


def _list_lines(digest: Digest) -> list[str]:
    lines = [f"{number}. {', '.join(_fields(lead))}" for number, lead in enumerate(digest.leads, 1)]
    left = digest.count - len(digest.leads)
    return [*lines, _more(left)] if left > 0 else lines


def _table(digest: Digest) -> Html:
    """One cell for each lead, name first: narrow enough for a phone."""
    rows = [_cell(*_fields(lead)) for lead in digest.leads]
    left = digest.count - len(digest.leads)
    if left > 0:
        rows.append(f'<tr><td style="{_CELL};color:#6b7280">{_more(left)}</td></tr>')
    return Html(
        '<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse;'
        f'font:16px/1.5 Arial,Helvetica,sans-serif">\n{chr(10).join(rows)}\n</table>'
    )


def _cell(name: str = "", *others: str) -> str:
    lines = [f"<strong>{html.escape(name)}</strong>", *map(html.escape, others)]
    return f'<tr><td style="{_CELL}">{"<br>".join(lines)}</td></tr>'
