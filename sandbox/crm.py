"""Fills the CRM's tables with tenants, people and campaigns, like the CRM itself.

    crm = Crm(connection)
    campaign_id = crm.add_campaign("whatsapp", recipients=200)

Any column can be set by its name: ``crm.add_user(role="ADMIN", isActive=False)``. Other columns get Indian demo data.
The same calls give the same rows, including ids.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import psycopg2.extensions
from psycopg2 import sql
from psycopg2.extras import Json

from sandbox import accounts, fake_people

_JSONB = {
    "actionConfig",
    "attachments",
    "businessDays",
    "calendarScopes",
    "gmailScopes",
    "keyBenefits",
    "keyFeatures",
    "metadata",
    "platformUtmConfig",
    "settings",
    "targetFilters",
    "triggerConditions",
    "triggerData",
    "variables",
    "whatsappTemplateParams",
}
_NO_UPDATED_AT = {"CampaignLog"}

HTML = """<html><body><p>Namaste {{name}},</p>
<p>our Diwali offers have arrived:
<a href="https://shop.chaiwala.example/diwali?item=chai">masala chai at half price</a>.</p>
<p>Chaiwala Traders, Pune</p></body></html>
"""
TEXT = "Namaste {{name}}, our Diwali offers have arrived: https://shop.chaiwala.example/diwali?item=chai"


def utc_now() -> datetime:
    """The present time in the form of the CRM's columns: UTC, without a zone, in milliseconds."""
    now = datetime.now(UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def apply_schema(connection: psycopg2.extensions.connection) -> None:
    """Creates the CRM's tables in an empty database, in one transaction."""
    connection.autocommit = True
    version = f"""COMMENT ON TABLE "Tenant" IS '{_schema_version()}';"""
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {_schema()} {version} COMMIT;")


def has_schema(connection: psycopg2.extensions.connection) -> bool:
    """Whether ``apply_schema`` made the tables of this database, and in their present form."""
    with connection.cursor() as cursor:
        cursor.execute("""SELECT obj_description(to_regclass('"Tenant"'), 'pg_class')""")
        return bool(cursor.fetchone() == (_schema_version(),))


def _schema() -> str:
    return resources.files("sandbox").joinpath("crm_schema.sql").read_text("utf-8")


def _schema_version() -> str:
    return hashlib.sha256(_schema().encode()).hexdigest()


class Crm:
    """Writes to one database. Methods return the ids of the rows that they insert.

    For ``tenant_id`` and ``user_id`` None means the demo tenant and its user, which are inserted when they are first
    needed.
    """

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        """Sets ``connection``, which stays the caller's, to autocommit and UTC."""
        connection.autocommit = True
        self._connection = connection
        self._inserted = 0
        self._tenant_id: str | None = None
        self._users: dict[str, str] = {}
        self._stages: dict[str, str] = {}
        self.execute("SET TimeZone = 'UTC'")

    @property
    def tenant_id(self) -> str:
        """The demo tenant, which has WhatsApp and SMTP configured."""
        if self._tenant_id is None:
            self._tenant_id = self.add_tenant()
        return self._tenant_id

    @property
    def user_id(self) -> str:
        """A user of the demo tenant."""
        return self._user_of(self.tenant_id)

    def add_tenant(self, name: str = "Chaiwala Traders", **columns: Any) -> str:
        number = self._inserted
        settings = {"whatsapp": accounts.whatsapp_settings(), "mail": accounts.mail_settings(from_name=name)}
        row = {
            "name": name,
            "slug": f"{fake_people.slug(name)}-{number}",
            "status": "ACTIVE",
            "plan": "STANDARD",
            "settings": settings,
            "contactEmail": f"owner-{number}@{fake_people.slug(name)}.example",
        }
        return self.insert("Tenant", row | columns)

    def add_user(self, tenant_id: str | None = None, **columns: Any) -> str:
        person = fake_people.fake_person(self._inserted)
        row = {"name": person.name, "email": person.email, "tenantId": tenant_id or self.tenant_id}
        user_id = self.insert("User", row | columns)
        self._users.setdefault(row["tenantId"], user_id)
        return user_id

    def add_stage(self, tenant_id: str | None = None, slug: str = "new", **columns: Any) -> str:
        row = {"name": slug.replace("-", " ").title(), "slug": slug, "order": len(self._stages) + 1}
        stage_id = self.insert("PipelineStage", row | {"tenantId": tenant_id or self.tenant_id} | columns)
        self._stages.setdefault(tenant_id or self.tenant_id, stage_id)
        return stage_id

    def add_lead(self, tenant_id: str | None = None, user_id: str | None = None, **columns: Any) -> str:
        tenant_id, user_id = self._owner(tenant_id, user_id)
        if "stageId" not in columns:
            columns["stageId"] = self._stages.get(tenant_id) or self.add_stage(tenant_id)
        row = self._person_columns() | {"source": "website", "status": "new", "priority": "medium"}
        row |= {"estimatedValue": 25_000.0, "assignedTo": user_id, "tenantId": tenant_id, "userId": user_id}
        return self.insert("Lead", row | columns)

    def add_contact(self, tenant_id: str | None = None, user_id: str | None = None, **columns: Any) -> str:
        tenant_id, user_id = self._owner(tenant_id, user_id)
        row = self._person_columns() | {"designation": "Owner", "type": "customer", "industry": "retail"}
        row |= {"companySize": "1-10", "assignedTo": user_id, "tenantId": tenant_id, "userId": user_id}
        return self.insert("Contact", row | columns)

    def add_campaign(
        self,
        channel: str = "email",
        *,
        recipients: int | Sequence[Mapping[str, Any]] = 0,
        status: str = "scheduled",
        scheduled_at: datetime | None = None,
        tenant_id: str | None = None,
        user_id: str | None = None,
        **columns: Any,
    ) -> str:
        """A campaign that is due now, or at ``scheduled_at`` (UTC).

        ``recipients``: their number, or the columns of each. A worker that runs sees the campaign with all of them.
        """
        tenant_id, user_id = self._owner(tenant_id, user_id)
        count = recipients if isinstance(recipients, int) else len(recipients)
        row: dict[str, Any] = {
            "name": f"Diwali offers {self._inserted}",
            "channel": channel,
            "status": "draft",
            "textContent": TEXT,
            "scheduledAt": scheduled_at or utc_now(),
            "targetType": "leads",
            "totalRecipients": count,
            "tenantId": tenant_id,
            "userId": user_id,
        }
        if channel == "email":
            row |= {"subject": "{{name}}, Diwali offers for you ☕", "htmlContent": HTML}
        campaign_id = self.insert("Campaign", row | columns)
        if isinstance(recipients, int):
            self.add_recipients(campaign_id, recipients)
        else:
            for recipient in recipients:
                self.add_recipient(campaign_id, **recipient)
        self.execute('UPDATE "Campaign" SET status = %s WHERE id = %s', (status, campaign_id))
        return campaign_id

    def add_recipients(self, campaign_id: str, count: int) -> None:
        """``count`` pending recipients with different e-mail addresses and phone numbers; fast for millions."""
        parameters = {
            "campaign": campaign_id,
            "seed": f"demo/{campaign_id}/",
            "last": count - 1,
        }
        self.execute(fake_people.RECIPIENTS_SQL, parameters | fake_people.SQL_PARAMETERS)

    def add_recipient(self, campaign_id: str, **columns: Any) -> str:
        """One pending recipient; any column may be set."""
        person = fake_people.fake_person(self._inserted)
        tenant_id = self.value('SELECT "tenantId" FROM "Campaign" WHERE id = %s', campaign_id)
        row = {"recipientName": person.name, "recipientEmail": person.email, "recipientPhone": person.phone}
        row |= {"tenantId": tenant_id, "campaignId": campaign_id, "recipientType": "lead"}
        return self.insert("CampaignRecipient", row | {"recipientId": self._new_id()} | columns)

    def add_call_settings(self, tenant_id: str | None = None, **columns: Any) -> str:
        """A tenant's Twilio account, without business hours."""
        row: dict[str, Any] = {
            "twilioAccountSid": accounts.TWILIO_ACCOUNT_SID,
            "twilioAuthToken": accounts.TWILIO_AUTH_TOKEN,
            "twilioPhoneNumber": accounts.TWILIO_NUMBER,
            "enableBusinessHours": False,
        }
        return self.insert("CallSettings", row | {"tenantId": tenant_id or self.tenant_id} | columns)

    def add_call(self, tenant_id: str | None = None, user_id: str | None = None, **columns: Any) -> str:
        """A queued call that is due now."""
        tenant_id, user_id = self._owner(tenant_id, user_id)
        row = {
            "tenantId": tenant_id,
            "phoneNumber": fake_people.fake_person(self._inserted).phone,
            "triggerType": "manual",
        }
        return self.insert("CallQueue", row | {"createdById": user_id} | columns)

    def add_call_script(self, tenant_id: str | None = None, user_id: str | None = None, **columns: Any) -> str:
        tenant_id, user_id = self._owner(tenant_id, user_id)
        row = {"name": "Diwali offers", "tenantId": tenant_id, "userId": user_id}
        return self.insert("CallScript", row | columns)

    def add_automation_rule(self, tenant_id: str | None = None, user_id: str | None = None, **columns: Any) -> str:
        """A rule of the CRM that queues a call for each new lead."""
        tenant_id, user_id = self._owner(tenant_id, user_id)
        row: dict[str, Any] = {"name": "Call new leads", "type": "call", "triggerEvent": "lead_created"}
        row |= {"actionType": "make_call", "actionConfig": {}, "tenantId": tenant_id, "userId": user_id}
        return self.insert("AutomationRule", row | columns)

    def insert(self, table: str, columns: Mapping[str, Any]) -> str:
        """One row of any table; id and "updatedAt" are added if ``columns`` has none. Returns the id."""
        row = {"id": self._new_id()} | ({} if table in _NO_UPDATED_AT else {"updatedAt": utc_now()}) | dict(columns)
        values = [Json(value) if name in _JSONB and value is not None else value for name, value in row.items()]
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        )
        self.execute(statement, values)
        return str(row["id"])

    def execute(self, statement: str | sql.Composable, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Runs any statement and returns its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: Any) -> Any:
        """The first column of the first row; None if there is no row."""
        rows = self.execute(statement, parameters)
        return rows[0][0] if rows else None

    def counts(self, campaign_id: str) -> dict[str, int]:
        """The number of a campaign's recipients in each status."""
        statement = 'SELECT status, count(*) FROM "CampaignRecipient" WHERE "campaignId" = %s GROUP BY status'
        return {status: count for status, count in self.execute(statement, (campaign_id,))}

    def _new_id(self) -> str:
        self._inserted += 1
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"demo.{self._inserted}.sandbox.example"))

    def _owner(self, tenant_id: str | None, user_id: str | None) -> tuple[str, str]:
        tenant_id = tenant_id or self.tenant_id
        return tenant_id, user_id or self._user_of(tenant_id)

    def _user_of(self, tenant_id: str) -> str:
        return self._users.get(tenant_id) or self.add_user(tenant_id)

    def _person_columns(self) -> dict[str, Any]:
        person = fake_people.fake_person(self._inserted)
        row: dict[str, Any] = {"name": person.name, "company": person.company, "email": person.email}
        return row | {"phone": person.phone, "phoneNormalized": person.phone, "tags": ["diwali"]}
