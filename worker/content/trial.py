"""The e-mails about suspended trials: one to the tenant's contact, and a summary to the operator of the CRM.

Their facts come from worker.notice. What tenants call themselves is untrusted: it is put on one line, cut where it is
long, and escaped in HTML.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.content.list_fields import AUTO_GENERATED
from worker.content.mime import EmailSkeleton, message_id_for, parse_address
from worker.content.one_line import one_line
from worker.content.placeholders import Html, Template
from worker.messages import Email, EmailCopy

LISTED = 200  # tenants that a summary lists; the others are counted
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

Each tenant's contact gets an e-mail about it.
"""
OWNER_HTML = (
    _PAGE
    % """<p>Suspended on {{at}}: {{trials}} that had ended. The users of these tenants can no longer sign in:</p>
<ul style="padding-left:1.2em">
{{items}}
</ul>
<p>Each tenant's contact gets an e-mail about it.</p>"""
)


@dataclass(frozen=True, slots=True)
class SuspendedTenant:
    """A tenant whose trial has ended, as it was when it was suspended."""

    name: str
    slug: str
    ended_at: str  # ISO 8601 in UTC, or a word that only PostgreSQL knows as a time
    contact: str = ""  # its e-mail address, in a summary
    user_id: str | None = None  # in whose outbox the e-mail to the contact is filed; None: in nobody's


@dataclass(frozen=True, slots=True)
class SuspensionSummary:
    """What the operator is told about one tick. ``tenants``: the first ones; ``count``: how many there are."""

    count: int
    tenants: Sequence[SuspendedTenant]


def read_tenant(saved: object) -> SuspendedTenant:
    """From the content of the notification to the tenant's contact. Raises ValueError for another kind of content."""
    try:
        return _tenant(saved)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its content cannot be read: {error!r}") from error


def read_summary(saved: object) -> SuspensionSummary:
    """From the content of the notification to the operator. Raises ValueError for another kind of content."""
    try:
        fields = _object(saved)
        return SuspensionSummary(int(fields["count"]), [_tenant(each) for each in fields["tenants"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"its content cannot be read: {error!r}") from error


def _tenant(saved: object) -> SuspendedTenant:
    fields = _object(saved)
    return SuspendedTenant(
        name=str(fields["name"]),
        slug=str(fields["slug"]),
        ended_at=str(fields["ended_at"]),
        contact=str(fields.get("contact", "")),
        user_id=fields.get("user_id"),
    )


def _object(saved: object) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise TypeError(f"{type(saved).__name__} instead of an object")
    return saved


class OperatorEmail:
    """One kind of e-mail from the operator's address."""

    def __init__(
        self, subject: str, text: str, markup: str, company: str, from_email: str, reply_to: str | None
    ) -> None:
        """Raises ValueError for an address that cannot be written from."""
        self._company = one_line(company, LONGEST_NAME)
        self._subject = Template(subject, unknown="blank")
        self._text = Template(text, unknown="blank")
        self._html = Template(markup, unknown="blank")
        self._skeleton = EmailSkeleton(
            self._subject, self._text, self._html,
            from_name=self._company, from_email=from_email, reply_to=reply_to, fields=AUTO_GENERATED,
            boundary_seed=subject,
        )  # fmt: skip

    def message(self, notification_id: str, to_name: str, to: str, values: Mapping[str, str], at: datetime) -> Email:
        """The message for the wire; ``at`` is UTC without zone. Raises ValueError for an invalid address."""
        address = parse_address(to)
        message_id = message_id_for(notification_id, self._skeleton.from_email)
        filled = {**values, "company": self._company}
        content = self._skeleton.build(
            one_line(to_name, LONGEST_NAME), address, filled, message_id, at.replace(tzinfo=UTC)
        )
        return Email(self._skeleton.from_email, address, message_id, content)

    def copy(self, values: Mapping[str, str]) -> EmailCopy:
        """What its reader sees, for the outbox."""
        filled = {**values, "company": self._company}
        return EmailCopy(
            self._skeleton.from_email,
            self._subject.fill(filled),
            self._text.fill(filled),
            self._html.fill_html(filled),
        )


def contact_email(company: str, from_email: str, reply_to: str | None = None) -> OperatorEmail:
    return OperatorEmail(CONTACT_SUBJECT, CONTACT_TEXT, CONTACT_HTML, company, from_email, reply_to)


def owner_email(company: str, from_email: str, reply_to: str | None = None) -> OperatorEmail:
    return OperatorEmail(OWNER_SUBJECT, OWNER_TEXT, OWNER_HTML, company, from_email, reply_to)


def contact_values(tenant: SuspendedTenant) -> dict[str, str]:
    """What the placeholders of a contact's e-mail stand for."""
    return {
        "tenant": one_line(tenant.name, LONGEST_NAME),
        "slug": one_line(tenant.slug, LONGEST_NAME),
        "ended": written_time(tenant.ended_at),
    }


def owner_values(summary: SuspensionSummary, suspended_at: datetime) -> dict[str, str]:
    """What the placeholders of a summary stand for; at most LISTED tenants are shown."""
    lines = [_described(tenant) for tenant in summary.tenants[:LISTED]]
    if summary.count > len(lines):
        lines.append(f"and {summary.count - len(lines)} more")
    return {
        "trials": "1 trial" if summary.count == 1 else f"{summary.count} trials",
        "at": written_time(suspended_at.isoformat()),
        "list": "\n".join(f"- {line}" for line in lines),
        "items": Html("\n".join(f"<li>{html.escape(line)}</li>" for line in lines)),
    }


def written_time(iso: str) -> str:
    """``31 January 2026, 18:30 UTC``; a time that Python cannot hold (infinity) as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return one_line(iso, LONGEST_NAME)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def _described(tenant: SuspendedTenant) -> str:
    name, slug, contact = (one_line(each, LONGEST_NAME) for each in (tenant.name, tenant.slug, tenant.contact))
    return f"{name} ({slug}), {contact}, ended {written_time(tenant.ended_at)}"
