"""The mails about suspended trials: one to the tenant's contact, and a summary to whoever runs the CRM.

Their facts come from worker.notice. What tenants call themselves is untrusted: it stands on one line, is cut where it
is long, and is escaped in HTML.
"""

import html
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from worker.content.mime import EmailSkeleton, message_id_for, parse_address
from worker.content.one_line import one_line
from worker.content.placeholders import Html, Template
from worker.messages import Email

LISTED = 200  # tenants in a summary; the rest is counted
LONGEST_NAME = 100  # characters shown of a name

_PAGE = """<!DOCTYPE html>
<html><head><meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body style="margin:0 auto;max-width:36em;padding:16px;font:16px/1.5 sans-serif;overflow-wrap:anywhere">
%s
</body></html>
"""

CONTACT_SUBJECT = "Your {{company}} trial has ended"
CONTACT_TEXT = """Hello,

the free trial of {{tenant}} ({{slug}}) on {{company}} ended on {{ended}}.

The account is suspended, and its users can no longer sign in. Your data is still there.

To go on with a paid plan, answer this e-mail.

{{company}}
"""
CONTACT_HTML = (
    _PAGE
    % """<p>Hello,</p>
<p>the free trial of <strong>{{tenant}}</strong> ({{slug}}) on {{company}} ended on {{ended}}.</p>
<p>The account is suspended, and its users can no longer sign in. Your data is still there.</p>
<p>To go on with a paid plan, answer this e-mail.</p>
<p>{{company}}</p>"""
)

OWNER_SUBJECT = "{{company}}: {{trials}} suspended"
OWNER_TEXT = """Suspended on {{at}}: {{trials}} that had ended. The users of these tenants can no longer sign in:

{{list}}

Each tenant's contact is told by an e-mail of its own.
"""
OWNER_HTML = (
    _PAGE
    % """<p>Suspended on {{at}}: {{trials}} that had ended. The users of these tenants can no longer sign in:</p>
<ul style="padding-left:1.2em">
{{items}}
</ul>
<p>Each tenant's contact is told by an e-mail of its own.</p>"""
)

Facts = Mapping[str, Any]


class Mail:
    """One kind of mail, from the operator's address; ``values_of`` makes what its placeholders stand for."""

    def __init__(self, subject: str, text: str, markup: str, company: str, from_email: str) -> None:
        """Raises ValueError for an address that cannot be written from."""
        self._company = one_line(company, LONGEST_NAME)
        self._subject = Template(subject, unknown="blank")
        self._text = Template(text, unknown="blank")
        self._html = Template(markup, unknown="blank")
        self._skeleton = EmailSkeleton(
            self._subject, self._text, self._html,
            from_name=self._company, from_email=from_email, boundary_seed=subject,
        )  # fmt: skip

    def message(self, notice_id: str, to_name: str, to: str, values: Mapping[str, str], at: datetime) -> Email:
        """The message for the wire; ``at`` is UTC without zone. Raises ValueError for an address that is none."""
        address = parse_address(to)
        message_id = message_id_for(notice_id, self._skeleton.from_email)
        filled = {**values, "company": self._company}
        content = self._skeleton.build(
            one_line(to_name, LONGEST_NAME), address, filled, message_id, at.replace(tzinfo=UTC)
        )
        return Email(self._skeleton.from_email, address, message_id, content)

    def outbox(self, values: Mapping[str, str]) -> dict[str, str]:
        """sender, subject, body and html for "EmailLog"."""
        filled = {**values, "company": self._company}
        return {
            "sender": self._skeleton.from_email,
            "subject": self._subject.fill(filled),
            "body": self._text.fill(filled),
            "html": self._html.fill_html(filled),
        }


def contact_mail(company: str, from_email: str) -> Mail:
    return Mail(CONTACT_SUBJECT, CONTACT_TEXT, CONTACT_HTML, company, from_email)


def owner_mail(company: str, from_email: str) -> Mail:
    return Mail(OWNER_SUBJECT, OWNER_TEXT, OWNER_HTML, company, from_email)


def contact_values(facts: Facts) -> dict[str, str]:
    """From the facts of one tenant: name, slug, ended_at (ISO 8601, UTC)."""
    return {
        "tenant": one_line(facts["name"], LONGEST_NAME),
        "slug": one_line(facts["slug"], LONGEST_NAME),
        "ended": spoken(facts["ended_at"]),
    }


def owner_values(facts: Facts, suspended_at: datetime) -> dict[str, str]:
    """From a summary: count, and tenants (name, slug, contact, ended_at), at most LISTED of them are shown."""
    lines = [_described(tenant) for tenant in facts["tenants"][:LISTED]]
    count = int(facts["count"])
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    return {
        "trials": "1 trial" if count == 1 else f"{count} trials",
        "at": spoken(suspended_at.isoformat()),
        "list": "\n".join(f"- {line}" for line in lines),
        "items": Html("\n".join(f"<li>{html.escape(line)}</li>" for line in lines)),
    }


def spoken(iso: str) -> str:
    """``31 January 2026, 18:30 UTC``; a time that Python has no word for (infinity) as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return one_line(iso, LONGEST_NAME)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def _described(tenant: Facts) -> str:
    name, slug, contact = (one_line(tenant[key], LONGEST_NAME) for key in ("name", "slug", "contact"))
    return f"{name} ({slug}), {contact}, ended {spoken(tenant['ended_at'])}"
