"""The query plans of the calls job use indexes: in a long queue, among many ended calls, with old statistics."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from desk import ASK_SECONDS, NAMES, Desk, OpenDesk, desks, name_of, number

from sandbox.crm import Crm
from sandbox.world import World
from worker.runtime.db import Database, Row

TENANTS = 100
PENDING = 20_000
ENDED = 60_000
TABLES = {"CallQueue", "CallLog"}
NAMED = {"User", "Lead", "Contact", "CallScript", "AutomationRule"}  # tables that a queued call refers to
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON "CallLog" FOR EACH ROW
    WHEN (NEW."phoneCountryCode" = '+1' OR NEW."phoneCountryCode" = '+7' AND NEW."leadId" IS NOT NULL)
    EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse BEFORE UPDATE ON "CallQueue" FOR EACH ROW
    WHEN (NEW."phoneCountryCode" = '+1' AND NEW.status = 'failed') EXECUTE FUNCTION refuse();
"""

FILL = """
INSERT INTO "Tenant" (id, name, slug, "contactEmail", "updatedAt")
SELECT 't' || n, 'Tenant', 't' || n, 'a@a.example', now() FROM generate_series(1, %(tenants)s) n;
INSERT INTO "User" (id, email, name, "tenantId", "updatedAt")
SELECT 'u' || n, 'a@a.example', 'Asha', 't' || n, now() FROM generate_series(1, %(tenants)s) n;
INSERT INTO "CallSettings" (id, "tenantId", "twilioAccountSid", "twilioAuthToken", "twilioPhoneNumber", "updatedAt",
                            "enableBusinessHours")
SELECT 's' || n, 't' || n, 'AC' || md5(n::text), 'sandbox-token', '+918047112233', now(), false
FROM generate_series(1, %(tenants)s) n;
INSERT INTO "PipelineStage" (id, name, slug, "order", "tenantId", "updatedAt")
SELECT 'p' || n, 'New', 'new', 1, 't' || n, now() FROM generate_series(1, %(tenants)s) n;
INSERT INTO "Lead" (id, name, company, email, phone, source, status, priority, "estimatedValue", "assignedTo",
                    "tenantId", "userId", "stageId", "updatedAt")
SELECT 'l' || n, '', '', '', '', '', '', '', 0, 'u' || n %% %(tenants)s + 1, 't' || n %% %(tenants)s + 1,
       'u' || n %% %(tenants)s + 1, 'p' || n %% %(tenants)s + 1, now()
FROM generate_series(0, %(pending)s - 1) n;
INSERT INTO "Contact" (id, name, company, designation, email, phone, type, industry, "companySize", "assignedTo",
                       "tenantId", "userId", "updatedAt")
SELECT 'c' || n, '', '', '', '', '', '', '', '', 'u' || n %% %(tenants)s + 1, 't' || n %% %(tenants)s + 1,
       'u' || n %% %(tenants)s + 1, now()
FROM generate_series(0, %(pending)s - 1) n;
INSERT INTO "CallScript" (id, name, "tenantId", "userId", "updatedAt")
SELECT 's' || n, 'Hello', 't' || n %% %(tenants)s + 1, 'u' || n %% %(tenants)s + 1, now()
FROM generate_series(0, %(pending)s - 1) n;
INSERT INTO "AutomationRule" (id, name, type, "triggerEvent", "actionType", "actionConfig", "tenantId", "userId",
                              "updatedAt")
SELECT 'r' || n, 'Call', 'call', 'x', 'call', '{}', 't' || n %% %(tenants)s + 1, 'u' || n %% %(tenants)s + 1, now()
FROM generate_series(0, %(pending)s - 1) n;
INSERT INTO "User" (id, email, name, "tenantId", "updatedAt")
SELECT 'v' || n, 'a' || n || '@a.example', 'Asha', 't' || n %% %(tenants)s + 1, now()
FROM generate_series(0, %(pending)s - 1) n;
INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", status, priority, "triggerType", "createdById", "createdAt",
                         "updatedAt", "leadId", "contactId", "callScriptId", "automationRuleId")
SELECT md5('q' || n), 't' || n %% %(tenants)s + 1, '+9170' || 10000000 + n,
       CASE WHEN n > %(ended)s THEN 'pending' ELSE 'completed' END, n %% 10 + 1, 'manual',
       'u' || n %% %(tenants)s + 1, at, at, 'l' || m, 'c' || m, 's' || m, 'r' || m
FROM generate_series(1, %(ended)s + %(pending)s) n, LATERAL (
    SELECT (now() AT TIME ZONE 'UTC') - n * interval '1 s' AS at, n %% %(pending)s AS m) AS moment;
INSERT INTO "CallLog" (id, "tenantId", "phoneNumber", direction, "twilioCallSid", "twilioStatus", "triggerType",
                       "createdById", "createdAt", "updatedAt")
SELECT md5('l' || n), "tenantId", "phoneNumber", 'outbound', 'CA' || md5('l' || n),
       CASE WHEN n %% 500 = 0 THEN 'ringing' ELSE 'completed' END, 'manual', "createdById", "createdAt", "updatedAt"
FROM (SELECT *, row_number() OVER () AS n FROM "CallQueue" WHERE status = 'completed') AS ended;
"""


class Explaining(Database):
    """A connection that keeps the plan of each statement: it runs it once to explain it, and then for good."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.plans: dict[str, list[Row]] = defaultdict(list)  # name -> the nodes of all its plans
        self._in_transaction = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            self._in_transaction = True
            try:
                yield
            finally:
                self._in_transaction = False

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        if name := name_of(statement):
            super().execute("SAVEPOINT explained" if self._in_transaction else "BEGIN")
            try:
                (found,) = super().execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", **parameters)
            finally:
                super().execute("ROLLBACK TO explained" if self._in_transaction else "ROLLBACK")
            self.plans[name] += self._nodes(found["QUERY PLAN"][0]["Plan"])
        return super().execute(statement, **parameters)

    def _nodes(self, node: Row) -> list[Row]:
        return [node, *(each for child in node.get("Plans", []) for each in self._nodes(child))]

    def sequential(self) -> set[tuple[str, str]]:
        """The statements, and which of the CRM's large tables each of them read from end to end."""
        return {
            (name, node["Relation Name"])
            for name, nodes in self.plans.items()
            for node in nodes
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in TABLES | NAMED
        }

    def looked_at(self, name: str) -> int:
        """How many rows of those tables a statement read, used or not."""
        return sum(
            node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            for node in self.plans[name]
            if node.get("Relation Name") in TABLES and node["Node Type"] != "ModifyTable"
        )


@pytest.fixture(scope="module")
def large(databases: Any, template: str) -> Iterator[str]:
    """Name of a database with a long queue of many tenants."""
    name = databases.create(template)
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        crm = Crm(connection)
        crm.execute(FILL, {"tenants": TENANTS, "pending": PENDING, "ended": ENDED})
        crm.execute("VACUUM ANALYZE")
    yield name
    databases.drop(name)


@pytest.fixture
def url(databases: Any, large: str) -> Iterator[str]:
    name = databases.create(large)
    yield databases.url_of(name)
    databases.drop(name)


@pytest.fixture
def large_crm(url: str) -> Iterator[Crm]:
    with closing(psycopg2.connect(url)) as connection:
        yield Crm(connection)


@pytest.fixture
def open_desk(large_crm: Crm, url: str, redis_url: str, world: World) -> Iterator[OpenDesk]:
    with desks(large_crm, url, redis_url, world) as opened:
        yield opened


@pytest.fixture
def desk(open_desk: OpenDesk, url: str) -> Desk:
    """A worker that explains all its statements, and at the time of which British numbers may not be called."""
    later = datetime.now(ZoneInfo("Europe/London")) + timedelta(hours=2)
    windows = f"+44={later:%H}:00-{later:%H}:01 +91=00:00-24:00 +1=00:00-24:00"
    return open_desk(Explaining(url), CALL_WINDOWS=windows)


def explained(desk: Desk) -> Explaining:
    found = desk.database
    assert isinstance(found, Explaining)
    return found


def nearly_done(crm: Crm) -> None:
    """All but a few calls have ended, which the server's statistics do not show yet."""
    crm.execute("""UPDATE "CallQueue" SET status = 'completed' WHERE status = 'pending' AND "tenantId" <> 't2'""")


@pytest.mark.parametrize("situation", ["a long queue", "old statistics"])
def test_every_statement_finds_its_rows_by_index(situation: str, desk: Desk) -> None:
    """To place, fail and release calls and to ask about them, the job never reads a whole table of the CRM."""
    crm = desk.crm
    crm.execute("""UPDATE "CallSettings" SET "defaultCallScriptId" = 's1'""")
    if situation == "old statistics":
        nearly_done(crm)
    first = """(SELECT id FROM "CallQueue" WHERE status = 'pending' AND "tenantId" = 't2' AND priority < 9 LIMIT 3)"""
    crm.execute(f"""UPDATE "CallQueue" SET "phoneNumber" = 'nonsense', priority = 11 WHERE id IN {first}""")
    crm.execute(f"""UPDATE "CallQueue" SET status = 'processing', priority = 12 WHERE id IN {first}""")
    crm.execute(
        f"""UPDATE "CallQueue" SET status = 'processing', priority = 12, "phoneNumber" = 'x' WHERE id IN {first}"""
    )
    # one that cannot be logged and not even fail, one that is logged without references, one with a shortened event
    crm.execute(REFUSE)
    for change in (""""phoneCountryCode" = '+1'""", """"phoneCountryCode" = '+7'""", """metadata = '{"n": 1e400}'"""):
        crm.execute(f"""UPDATE "CallQueue" SET {change}, priority = 13 WHERE id = ({first[1:-2]}1)""")
    crm.execute(
        f"""UPDATE "CallQueue" SET "phoneNumber" = '+442079460000', priority = 14 WHERE id = ({first[1:-2]}1)"""
    )
    desk.tick()
    desk.hang_up()
    desk.world.script("twilio", action="cut-after", times=2)
    desk.world.script("twilio", status=400, code=21610, times=2)
    desk.world.script("twilio", status=500, times=2)
    desk.tick()
    crm.execute("""UPDATE worker.call_claim SET ask_at = NULL, claimed_at = claimed_at - interval '1 hour',
                   item = jsonb_set(item, '{createdById}', '"nobody"')""")
    for _ in range(2):
        desk.tick(seconds=ASK_SECONDS)
    desk.hang_up()
    desk.tick(seconds=1)
    crm.execute(
        f"""UPDATE "CallQueue" SET "nextRetryAt" = %s, "errorMessage" = %s WHERE id = ({first[1:-2]}1)""",
        (desk.now + timedelta(hours=1), "not called yet: calls to +91 are placed 01:00-02:00 by the clock"),
    )
    desk.job.start()
    plans = explained(desk)
    wanted = set(NAMES.values()) | {"suppressions_since"}  # which all jobs share that send
    assert wanted == plans.plans.keys(), "each of the job's statements was run"
    assert plans.sequential() == set()


@pytest.mark.parametrize("situation", ["a long queue", "old statistics"])
def test_a_look_reads_no_more_than_it_takes(situation: str, desk: Desk) -> None:
    """However many calls are queued or ended, survey, choice and claim read only a few rows."""
    if situation == "old statistics":
        nearly_done(desk.crm)
    desk.hang_up()
    desk.tick()
    plans, placed = explained(desk), len(desk.placed())
    assert placed > 0
    # of two surveys; index entries of rows that ended since the last vacuum are skipped
    assert plans.looked_at("survey") <= 20
    assert plans.looked_at("claim") <= 20 * placed
    assert plans.looked_at("book") <= 5 * placed
    assert plans.looked_at("candidates") <= 30 * TENANTS


def test_a_tick_without_a_free_slot(desk: Desk) -> None:
    """20,000 calls wait for a slot: one of each tenant is read, and all of them once to count them."""
    crm = desk.crm
    crm.execute('UPDATE "CallSettings" SET "maxConcurrentCalls" = 0')
    desk.tick()
    plans = explained(desk)
    assert "candidates" not in plans.plans
    live = crm.value("""SELECT count(*) FROM "CallLog" WHERE "twilioStatus" = 'ringing'""")
    assert plans.looked_at("due_tenants") <= TENANTS + live
    assert plans.looked_at("backlog") == PENDING


def test_a_call_due_tomorrow_is_found_by_index(desk: Desk) -> None:
    """The time of the next call is read from the end of an index, not from all calls that wait for tomorrow."""
    crm = desk.crm
    tomorrow = desk.now + timedelta(days=1)
    crm.execute("""UPDATE "CallQueue" SET "scheduledFor" = %s WHERE status = 'pending'""", (tomorrow,))
    crm.insert("CallQueue", {"tenantId": "t1", "phoneNumber": number(1), "triggerType": "manual", "createdById": "u1",
                             "scheduledFor": desk.now + timedelta(minutes=5)})  # fmt: skip
    result = desk.tick()
    assert result.next_at == desk.now + timedelta(minutes=5)
    assert explained(desk).looked_at("survey") <= 20
