"""The tenants that saved lead reminders, as the database has them."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.runtime.db import Database, Row, queries
from worker.sending.accounts import EmailUser


@dataclass(frozen=True, slots=True)
class RecipientUser:
    """An active user who is named in a tenant's settings."""

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class ReminderTenant:
    """A tenant with reminders: whom its e-mails are sent for, and what its settings name."""

    user: EmailUser  # the oldest active administrator, else the oldest active user, and the tenant's settings
    users: Mapping[str, RecipientUser]  # by id: of recipientUserIds those who are active users of the tenant
    stages: Mapping[str, str]  # slug -> id
    template_id: str | None  # of the e-mail template that its digests are made from

    @property
    def id(self) -> str:
        return self.user.tenant_id

    @property
    def name(self) -> str:
        return self.user.tenant_name

    @property
    def settings(self) -> object:
        """Whatever JSON holds: a tenant's settings may be broken."""
        return self.user.tenant_settings

    @property
    def gmail_address(self) -> str | None:
        """Of the Gmail account that its digests leave through; None: they leave through SMTP_URL."""
        connection = self.user.gmail_connection()
        return connection.address if connection else None


def read_tenants(db: Database) -> list[ReminderTenant]:
    """All tenants that saved reminders and did not switch them off."""
    return [_tenant(row) for row in db.all(queries("reminders")["tenants"])]


def _tenant(row: Row) -> ReminderTenant:
    users, stages, template_id = row.pop("users"), row.pop("stages"), row.pop("template_id")
    return ReminderTenant(
        user=EmailUser(**row),
        users={user_id: RecipientUser(**user) for user_id, user in (users or {}).items()},
        stages=stages or {},
        template_id=template_id,
    )
