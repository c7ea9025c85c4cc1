"""The sandbox's copy of the CRM's schema has the constraints, columns and indexes of the contract."""

import os
import re
import time
from datetime import datetime
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from sandbox.crm import Crm, utc_now

ENUMS = {
    "UserRole": ["ADMIN", "MANAGER", "AGENT", "VIEWER"],
    "TenantStatus": ["ACTIVE", "SUSPENDED", "TRIAL", "CANCELLED"],
    "SubscriptionPlan": ["FREE", "STANDARD", "PROFESSIONAL", "ENTERPRISE"],
    "StageType": ["LEAD", "DEAL", "BOTH"],
}

# The contract's columns that are NOT NULL without a default, besides id, "tenantId" and "updatedAt".
REQUIRED = {
    "Tenant": "name slug contactEmail",
    "User": "email name",
    "PipelineStage": "name slug order",
    "Lead": "name company email phone source status priority estimatedValue assignedTo userId stageId",
    "Contact": "name company designation email phone type industry companySize assignedTo userId",
    "Campaign": "name channel textContent targetType userId",
    "CampaignRecipient": "campaignId recipientType recipientId recipientName",
    "CampaignLog": "campaignId action message",
    "campaign_links": "originalUrl taggedUrl",
    "EmailLog": "from subject body status userId",
    "EmailTemplate": "name type subject htmlBody createdBy",
    "CallSettings": "",
    "CallScript": "name userId",
    "CallQueue": "phoneNumber triggerType createdById",
    "CallLog": "phoneNumber direction twilioCallSid twilioStatus triggerType createdById",
}


def test_enums_have_the_contracts_values(crm: Crm) -> None:
    rows = crm.execute(
        "SELECT typname::text, array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum "
        "JOIN pg_type ON pg_type.oid = enumtypid GROUP BY typname"
    )
    assert dict(rows) == ENUMS


@pytest.mark.parametrize("table", REQUIRED)
def test_exactly_the_contracts_columns_must_be_supplied(crm: Crm, table: str) -> None:
    rows = crm.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s "
        "AND is_nullable = 'NO' AND column_default IS NULL",
        (table,),
    )
    everywhere = {"id"} | ({"tenantId"} if table != "Tenant" else set())
    everywhere |= {"updatedAt"} if table != "CampaignLog" else set()
    assert {name for (name,) in rows} == everywhere | set(REQUIRED[table].split())


def test_times_have_milliseconds_and_no_zone(crm: Crm) -> None:
    rows = crm.execute(
        "SELECT DISTINCT data_type, datetime_precision FROM information_schema.columns "
        "WHERE table_schema = 'public' AND data_type LIKE 'time%'"
    )
    assert rows == [("timestamp without time zone", 3)]


def test_a_session_that_forgets_utc_writes_indian_time(crm: Crm, database_url: str) -> None:
    """What the contract calls a bug is visible in the tests' database."""
    if os.environ.get("DATABASE_URL"):
        pytest.skip("another server's time zone")
    crm.add_tenant()
    with psycopg2.connect(database_url) as careless, careless.cursor() as cursor:
        cursor.execute("""SELECT now()::timestamp - now() AT TIME ZONE 'UTC'""")
        assert cursor.fetchone()[0].total_seconds() == 5.5 * 3600
    careless.close()


def refused(crm: Crm, error: type[psycopg2.Error], table: str, **columns: Any) -> None:
    with pytest.raises(error):
        crm.insert(table, columns)


def test_unique_constraints_are_enforced(crm: Crm) -> None:
    tenant = crm.add_tenant(slug="shop")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        crm.add_tenant(slug="shop")
    crm.add_user(tenant, email="a@shop.example")
    crm.add_user(email="a@shop.example")  # of another tenant
    with pytest.raises(psycopg2.errors.UniqueViolation):
        crm.add_user(tenant, email="a@shop.example")
    crm.add_stage(tenant, "new")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        crm.add_stage(tenant, "new")
    crm.add_call_settings(tenant)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        crm.add_call_settings(tenant)
    link = {"tenantId": tenant, "originalUrl": "x", "taggedUrl": "x", "shortCode": "abc"}
    crm.insert("campaign_links", link)
    refused(crm, psycopg2.errors.UniqueViolation, "campaign_links", **link)
    crm.insert("campaign_links", link | {"shortCode": None})
    crm.insert("campaign_links", link | {"shortCode": None})


def test_calls_are_logged_once_and_queued_once(crm: Crm) -> None:
    log: dict[str, Any] = {"tenantId": crm.tenant_id, "phoneNumber": "+917000000000", "direction": "outbound"}
    log |= {"twilioCallSid": "CA1", "twilioStatus": "queued", "triggerType": "manual", "createdById": crm.user_id}
    log_id = crm.insert("CallLog", log)
    refused(crm, psycopg2.errors.UniqueViolation, "CallLog", **log)
    crm.add_call(callLogId=log_id)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        crm.add_call(callLogId=log_id)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("User", "tenantId"),
        ("Lead", "userId"),
        ("Lead", "stageId"),
        ("Contact", "userId"),
        ("Campaign", "userId"),
        ("CampaignRecipient", "campaignId"),
        ("EmailLog", "userId"),
        ("CallQueue", "leadId"),
        ("CallQueue", "contactId"),
        ("CallQueue", "callLogId"),
        ("CallQueue", "createdById"),
        ("CallLog", "createdById"),
    ],
)
def test_foreign_keys_are_enforced(crm: Crm, table: str, column: str) -> None:
    crm.add_lead()
    crm.add_contact()
    crm.add_call()
    crm.add_campaign(recipients=1)
    email = {"from": "a", "subject": "b", "body": "c", "status": "sent"}
    crm.insert("EmailLog", email | {"tenantId": crm.tenant_id, "userId": crm.user_id})
    log = {"phoneNumber": "+91", "direction": "outbound", "twilioCallSid": "CA", "twilioStatus": "queued"}
    log |= {"triggerType": "manual", "tenantId": crm.tenant_id, "createdById": crm.user_id}
    crm.insert("CallLog", log)
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        crm.execute(f'UPDATE "{table}" SET "{column}" = \'missing\'')


def test_the_contracts_indexes_are_there(crm: Crm) -> None:
    rows = crm.execute("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    found = {(table, re.sub(r".*\((.*)\)", r"\1", definition).replace('"', "")) for table, definition in rows}
    columns = {
        "Campaign": ["userId", "status", "scheduledAt", "channel", "tenantId"],
        "CampaignRecipient": ["campaignId", "status", "recipientType, recipientId", "tenantId"],
        "CallQueue": ["tenantId, status, scheduledFor", "status, nextRetryAt", "priority", "createdAt"],
    }
    assert {(table, each) for table, all_of_them in columns.items() for each in all_of_them} <= found


def test_recipients_are_inserted_in_bulk_and_are_all_different(crm: Crm) -> None:
    started = time.monotonic()
    campaign = crm.add_campaign(recipients=20_000)
    assert time.monotonic() - started < 10, "a million must be inserted in far less than a minute"
    distinct = crm.execute(
        'SELECT count(*), count(DISTINCT id), count(DISTINCT "recipientEmail"), count(DISTINCT "recipientPhone") '
        'FROM "CampaignRecipient" WHERE "campaignId" = %s',
        (campaign,),
    )
    assert distinct == [(20_000,) * 4]
    assert crm.counts(campaign) == {"pending": 20_000}
    assert crm.value('SELECT "totalRecipients" FROM "Campaign" WHERE id = %s', campaign) == 20_000


def test_the_same_calls_make_the_same_people(connection: psycopg2.extensions.connection) -> None:
    def rows() -> list[tuple[Any, ...]]:
        crm = Crm(connection)
        campaign = crm.add_campaign(recipients=3)
        crm.add_recipient(campaign)
        return crm.execute('SELECT id, "recipientEmail" FROM "CampaignRecipient" ORDER BY id')

    first = rows()
    Crm(connection).execute('TRUNCATE "Tenant" CASCADE')
    assert rows() == first


def test_any_column_can_be_set(crm: Crm) -> None:
    at = utc_now()
    campaign = crm.add_campaign("whatsapp", status="paused", scheduled_at=at, whatsappTemplateParams=["{{name}}"])
    row = crm.execute(
        'SELECT status, "scheduledAt", "whatsappTemplateParams" FROM "Campaign" WHERE id = %s', [campaign]
    )
    assert row == [("paused", at, ["{{name}}"])]
    assert isinstance(row[0][1], datetime)
    assert row[0][1].tzinfo is None
