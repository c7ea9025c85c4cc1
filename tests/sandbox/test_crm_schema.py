"""The stand-in of the CRM's database has what crm_schema.tsv says of the real one, and bites where that does."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from sandbox.crm import Crm, apply_schema, has_schema, utc_now

ENUMS = {
    "UserRole": ["ADMIN", "MANAGER", "AGENT", "VIEWER"],
    "TenantStatus": ["ACTIVE", "SUSPENDED", "TRIAL", "CANCELLED"],
    "SubscriptionPlan": ["FREE", "STANDARD", "PROFESSIONAL", "ENTERPRISE"],
    "StageType": ["LEAD", "DEAL", "BOTH"],
}

DELETIONS = {"cascade": "c", "set null": "n", "restrict": "r"}  # as pg_constraint has them

_COLUMNS = """
SELECT relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
FROM pg_class
JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relkind = 'r' AND relnamespace = %s::regnamespace
"""
_FOREIGN_KEYS = """
SELECT referring.relname::text, referred.relname::text, confdeltype::text, confupdtype::text, convalidated,
       (SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)),
       (SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = confrelid AND attnum = ANY (confkey))
FROM pg_constraint
JOIN pg_class referring ON referring.oid = conrelid
JOIN pg_class referred ON referred.oid = confrelid
WHERE contype = 'f' AND connamespace = 'public'::regnamespace
"""
_INDEXES = """
SELECT relname::text, amname::text, indisprimary, indisunique, pg_get_expr(indpred, indrelid),
       (SELECT string_agg(replace(pg_get_indexdef(indexrelid, place, false), '"', ''), ', ' ORDER BY place)
        FROM generate_series(1, indnatts) AS place)
FROM pg_index
JOIN pg_class ON pg_class.oid = indrelid
JOIN pg_opclass ON pg_opclass.oid = indclass[0]
JOIN pg_am ON pg_am.oid = opcmethod
WHERE relnamespace = 'public'::regnamespace
"""


@pytest.fixture
def tables(crm_only_url: str) -> Iterator[Crm]:
    """The CRM's tables alone: bin/migrate has not yet added indexes of its own to them."""
    with closing(psycopg2.connect(crm_only_url)) as connection:
        yield Crm(connection)


def facts(kind: str) -> list[list[str]]:
    """The lines of one kind in crm_schema.tsv, without their first field."""
    lines = Path(__file__).with_name("crm_schema.tsv").read_text("utf-8").splitlines()
    return [fields[1:] for line in lines if (fields := line.split("\t"))[0] == kind]


def test_each_column_is_as_the_facts_say(tables: Crm) -> None:
    """Its type, whether it may be null, and its default; and no table has a column that the facts do not name."""
    definitions: dict[str, list[str]] = {}
    for table, name, type_, null, default in facts("column"):
        definition = f'"{name}" {type_} {null} {f"DEFAULT {default}" if default else ""}'
        definitions.setdefault(table, []).append(definition)
    tables.execute("CREATE SCHEMA facts")  # a copy made of the facts: PostgreSQL words types and defaults its own way
    for table, columns in definitions.items():
        tables.execute(f'CREATE TABLE facts."{table}" ({", ".join(columns)})')
    stubs = {referred for _, _, referred, _ in facts("fk")} - definitions.keys()
    wanted = {*tables.execute(_COLUMNS, ["facts"]), *((stub, "id", "text", True, None) for stub in stubs)}
    assert len(wanted) == len(facts("column")) + len(stubs)
    assert set(tables.execute(_COLUMNS, ["public"])) == wanted


def test_each_foreign_key_is_as_the_facts_say(tables: Crm) -> None:
    """Where it leads, and what a deletion there does; and there is none that the facts do not name."""
    wanted = [
        (table, referred, DELETIONS[deletion], "c", True, [column], ["id"])
        for table, column, referred, deletion in facts("fk")
    ]
    assert sorted(tables.execute(_FOREIGN_KEYS)) == sorted(wanted)


def test_each_index_is_as_the_facts_say(tables: Crm) -> None:
    """Its columns in their order, and whether it is unique; and there is none that the facts do not name."""
    names = {
        table for (table,) in tables.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
    }
    wanted = [(table, "btree", True, True, None, "id") for table in names]
    wanted += [
        (table, "btree", False, unique == "unique", None, columns) for table, columns, unique in facts("index")
    ]
    assert sorted(tables.execute(_INDEXES), key=repr) == sorted(wanted, key=repr)


def test_nothing_else_restricts_a_row(tables: Crm) -> None:
    """No check, exclusion or trigger beside the keys, which the facts would have named."""
    assert tables.execute("SELECT conname FROM pg_constraint WHERE conrelid <> 0 AND contype NOT IN ('f', 'n', 'p')"
                          " AND connamespace = 'public'::regnamespace") == []  # fmt: skip
    assert tables.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal") == []


def test_tables_of_another_release_are_known(databases: Any) -> None:
    """Quickstart keeps the database of an earlier start only while its tables are those of today."""
    name = databases.create()
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        crm = Crm(connection)
        assert not has_schema(connection), "an empty database"
        apply_schema(connection)
        assert has_schema(connection)
        crm.execute("""COMMENT ON TABLE "Tenant" IS 'another release'""")
        assert not has_schema(connection)
    databases.drop(name)


def test_enums_have_the_contracts_values(crm: Crm) -> None:
    rows = crm.execute(
        "SELECT typname::text, array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum "
        "JOIN pg_type ON pg_type.oid = enumtypid GROUP BY typname"
    )
    assert dict(rows) == ENUMS


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


def add_one_of_each(crm: Crm) -> None:
    """A row in each table, all of one tenant and one user; calls with everything that they can refer to."""
    owner = {"tenantId": crm.tenant_id}
    campaign = crm.add_campaign(recipients=1)
    crm.insert("CampaignLog", owner | {"campaignId": campaign, "action": "created", "message": "Created"})
    crm.insert("campaign_links", owner | {"campaignId": campaign, "originalUrl": "x", "taggedUrl": "x"})
    email = {"from": "a", "subject": "b", "body": "c", "status": "sent", "userId": crm.user_id}
    crm.insert("EmailLog", owner | email)
    template = {"name": "a", "type": "reminder", "subject": "b", "htmlBody": "c", "createdBy": crm.user_id}
    crm.insert("EmailTemplate", owner | template)
    crm.add_call_settings()
    about = {"leadId": crm.add_lead(), "contactId": crm.add_contact(), "callScriptId": crm.add_call_script()}
    about |= {"automationRuleId": crm.add_automation_rule()}
    log = {"phoneNumber": "+91", "direction": "outbound", "twilioCallSid": "CA", "twilioStatus": "queued"}
    log |= {"triggerType": "manual", "createdById": crm.user_id}
    crm.add_call(callLogId=crm.insert("CallLog", owner | log | about), **about)


@pytest.mark.parametrize(("table", "column"), [fact[:2] for fact in facts("fk")])
def test_foreign_keys_bite(crm: Crm, table: str, column: str) -> None:
    add_one_of_each(crm)
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        crm.execute(f'UPDATE "{table}" SET "{column}" = \'missing\'')


def test_what_a_deletion_does(crm: Crm) -> None:
    """Calls lose their references, but a queued one keeps the id of its script; a user's rows go with the user."""
    add_one_of_each(crm)
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        crm.execute('DELETE FROM "PipelineStage"')
    for table in ("Lead", "Contact", "CallScript", "AutomationRule"):
        crm.execute(f'DELETE FROM "{table}"')
    about = """SELECT "leadId", "contactId", "automationRuleId", "callScriptId" IS NULL FROM """
    assert crm.execute(f'{about} "CallLog"') == [(None, None, None, True)]
    assert crm.execute(f'{about} "CallQueue"') == [(None, None, None, False)]
    crm.execute('DELETE FROM "CallLog"')
    assert crm.execute('SELECT "callLogId" FROM "CallQueue"') == [(None,)]
    crm.execute('DELETE FROM "User"')
    users = [
        "Campaign",
        "CampaignRecipient",
        "CampaignLog",
        "campaign_links",
        "EmailLog",
        "EmailTemplate",
        "CallQueue",
    ]
    assert [crm.value(f'SELECT count(*) FROM "{table}"') for table in users] == [0] * len(users)
    crm.execute('DELETE FROM "Tenant"')
    assert crm.value('SELECT count(*) FROM "CallSettings"') == 0


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
