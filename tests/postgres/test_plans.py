"""The query plans of claims and settlements: by index, whatever is in the table, as quick at the end as at first."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

from sandbox.crm import Crm, utc_now
from worker.campaigns.batch import Batch, Recipient
from worker.campaigns.campaign import Campaign
from worker.campaigns.claims import BatchClaims
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.settlement import BatchSettlements
from worker.campaigns.transport import TransportRouter
from worker.messages import Accepted
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.runtime.lease import Lease
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.sending.outcomes import Outcome, OutcomeKind

SQL = queries("campaign")
RECIPIENTS = 200_000
SENT = 190_000
DEFERRED = 50_000
SIZE = 100
PENDING_INDEX = "worker_campaign_recipient_pending"
PRIMARY_KEY = "CampaignRecipient_pkey"
TABLE = "CampaignRecipient"

Connection = psycopg2.extensions.connection
Node = dict[str, Any]


@pytest.fixture(scope="module")
def large(databases: Any, template: str) -> Iterator[str]:
    """Name of a database with one large running campaign of the worker's, and two small ones beside it."""
    name = databases.create(template)
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        crm = Crm(connection)
        for recipients in (20, RECIPIENTS, 20):
            campaign = crm.add_campaign(status="running", recipients=recipients, name=f"of {recipients}")
            crm.execute(
                "INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at) "
                "VALUES (%s, %s, %s, true, %s)",
                (campaign, crm.tenant_id, utc_now(), utc_now()),
            )
        crm.execute("ANALYZE")
    yield name
    databases.drop(name)


class Situations:
    """Databases in which a campaign has come so far, made when they are first needed and copied for each test."""

    def __init__(self, databases: Any, large: str) -> None:
        self._databases = databases
        self._templates = {"at the start": large}
        self._large = large
        self._copies: list[str] = []

    def copy(self, situation: str) -> str:
        """The URL of a database of the test's own."""
        if situation not in self._templates:
            name = self._databases.create(self._large)
            with closing(connected(self._databases.url_of(name))) as connection:
                SITUATIONS[situation](connection)
            self._templates[situation] = name
        self._copies.append(self._databases.create(self._templates[situation]))
        return str(self._databases.url_of(self._copies[-1]))

    def drop_copies(self) -> None:
        while self._copies:
            self._databases.drop(self._copies.pop())

    def close(self) -> None:
        for name in self._templates.values():
            if name != self._large:
                self._databases.drop(name)


def connected(url: str) -> Connection:
    connection = psycopg2.connect(url, options="-c TimeZone=UTC")
    connection.autocommit = True
    return connection


@pytest.fixture(scope="module")
def situations(databases: Any, large: str) -> Iterator[Situations]:
    with closing(Situations(databases, large)) as made:
        yield made


@pytest.fixture
def db(situations: Situations, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection to a database of the test's own, in the situation that its parameter names."""
    with closing(connected(situations.copy(request.param))) as connection:
        yield connection
    situations.drop_copies()


def rows(db: Connection, statement: str, /, **parameters: Any) -> list[Node]:
    with db.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute(statement, parameters or None)
        return [dict(row) for row in cursor.fetchall()] if cursor.description else []


def campaign_of(db: Connection) -> Node:
    statement = 'SELECT id, "tenantId", "userId" FROM "Campaign" WHERE name = %(name)s'
    return rows(db, statement, name=f"of {RECIPIENTS}")[0]


class Explaining(Database):
    """A database that runs each statement, with its effect, and keeps its plan instead of its rows."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.plans: list[Plan] = []

    def execute(self, statement: str, /, **parameters: Any) -> list[Node]:
        found = super().execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", **parameters)
        self.plans.append(Plan(found[0]["QUERY PLAN"][0]["Plan"]))
        return []


class Plan:
    """A statement's plan as it was really run."""

    def __init__(self, top: Node) -> None:
        self.nodes = list(self._walk(top))

    def _walk(self, node: Node) -> Iterator[Node]:
        yield node
        for child in node.get("Plans", []):
            yield from self._walk(child)

    def indexes(self) -> set[str]:
        """The indexes through which the recipients' table was read."""
        names = {node["Index Name"] for node in self.nodes if "Index Name" in node}
        return {name for name in names if name == PENDING_INDEX or name.startswith(f"{TABLE}_")}

    def sequential(self) -> set[str]:
        return {node["Relation Name"] for node in self.nodes if node["Node Type"] == "Seq Scan"}

    def looked_at(self, table: str = TABLE) -> int:
        """Rows of a table that were looked at, used or not."""
        return sum(
            node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            for node in self.nodes
            if node.get("Relation Name") == table and node["Node Type"] != "ModifyTable"
        )


class Work:
    """The job's own claim and settlement of one batch of the large campaign, explained."""

    def __init__(self, db: Connection, folder: Path) -> None:
        self.db = db
        url = f"postgresql://{db.info.user}:{db.info.password}@{db.info.host}:{db.info.port}/{db.info.dbname}"
        environ = {
            "DATABASE_URL": url,
            "STATE_DIR": str(folder),
            "CAMPAIGN_BATCH_SIZE": str(SIZE),
            "SMTP_URL": "smtp://127.0.0.1:1",
        }
        settings = load(environ, "campaign")
        self.client = connect("redis://127.0.0.1:1")  # never asked: e-mail has no pace, and nothing is flushed
        self.explaining = Explaining(url)
        self.lease, self.journals = Lease(), JournalDirectory(folder)
        self.claims = BatchClaims(self.explaining, settings, self.journals, self.lease, utc_now)
        counters = Counters(self.client, "campaign")
        self.settlements = BatchSettlements(self.explaining, settings, counters, utc_now)
        [row] = rows(db, SQL["campaign"], campaign_id=campaign_of(db)["id"])
        self.campaign = Campaign.from_row(row)
        self.transports = TransportRouter(settings, self.client, utc_now)
        self.transport = self.transports.route(self.campaign)

    def close(self) -> None:
        self.explaining.close()
        self.transports.close()
        self.client.close()

    def claim(self) -> Plan:
        self.claims.claim(self.campaign, self.transport)
        return self.explaining.plans[-1]

    def settle(self) -> Plan:
        """The batch that was claimed last: all are sent except one that is refused and one that is deferred."""
        [claimed] = rows(self.db, "SELECT id::text, recipient_ids FROM worker.campaign_batch")
        people = [Recipient(each, "Asha", "asha@a.example", None, 0) for each in claimed["recipient_ids"]]
        journal = self.journals.create(claimed["id"], len(people))
        batch = Batch(claimed["id"], self.lease.holder, self.campaign, self.transport, people, journal)
        for person in people:
            accepted = Accepted(f"<{person.id}@x>")
            batch.record(person, Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=accepted))
        batch.record(people[0], Outcome(OutcomeKind.REFUSED, utc_now(), "550 no such user"))
        batch.record(people[1], Outcome(OutcomeKind.DEFERRED, utc_now(), "450 busy"))
        self.settlements.settle(batch)
        return self.explaining.plans[-1]

    def plan(self, name: str, **parameters: Any) -> Plan:
        """Of another of the job's statements."""
        self.explaining.all(SQL[name], **parameters)
        return self.explaining.plans[-1]


@pytest.fixture
def work(db: Connection, tmp_path: Path) -> Iterator[Work]:
    with closing(Work(db, tmp_path)) as made:
        yield made


def assert_by_index(plan: Plan, *, claim: bool) -> None:
    assert TABLE not in plan.sequential()
    assert plan.indexes() == ({PENDING_INDEX, PRIMARY_KEY} if claim else {PRIMARY_KEY})
    assert plan.looked_at() <= 5 * SIZE, "it walks over rows that it does not take"


def advance(db: Connection, count: int) -> None:
    """As if so many recipients had been claimed by now."""
    rows(
        db,
        'UPDATE worker.campaign_run SET position = (SELECT id FROM "CampaignRecipient" WHERE "campaignId" = '
        "%(campaign)s ORDER BY id OFFSET %(count)s LIMIT 1) WHERE campaign_id = %(campaign)s",
        campaign=campaign_of(db)["id"],
        count=count - 1,
    )


def first_ids(count: int) -> str:
    return f"""SELECT id FROM "CampaignRecipient" WHERE "campaignId" = %(campaign)s ORDER BY id LIMIT {count}"""


def send_most(db: Connection) -> None:
    """190,000 of the 200,000 are sent."""
    statement = f"""UPDATE "CampaignRecipient" SET status = 'sent' WHERE id IN ({first_ids(SENT)})"""
    rows(db, statement, campaign=campaign_of(db)["id"])
    advance(db, SENT)


def defer_many(db: Connection) -> None:
    """50,000 were deferred and wait for their next try in an hour."""
    rows(
        db,
        "INSERT INTO worker.campaign_retry (recipient_id, campaign_id, attempts, due_at, reason) "
        "SELECT id, %(campaign)s, 1, (now() AT TIME ZONE 'UTC') + interval '1 hour', 'busy' "
        f"FROM ({first_ids(DEFERRED)}) AS deferred",
        campaign=campaign_of(db)["id"],
    )
    advance(db, DEFERRED)


SITUATIONS = {"at the start": lambda _: None, "190,000 sent": send_most, "50,000 deferred": defer_many}


STATISTICS = pytest.mark.parametrize("known", [True, False], ids=["statistics", "old statistics"])


@STATISTICS
@pytest.mark.parametrize("db", SITUATIONS, indirect=True)
def test_a_batch(db: Connection, work: Work, known: bool) -> None:
    """A claim finds its recipients by the worker's index and writes them by primary key, and so does a settlement.

    Also when most are sent or many wait, and when the server's statistics are from the start of the campaign.
    """
    if known:
        rows(db, "ANALYZE")
    assert_by_index(work.claim(), claim=True)
    ids = rows(db, "SELECT recipient_ids FROM worker.campaign_batch")[0]["recipient_ids"]
    assert len(ids) == SIZE
    assert_by_index(work.settle(), claim=False)
    count = """SELECT count(*) FROM "CampaignRecipient" WHERE id = ANY (%(ids)s) AND status = 'sent'"""
    assert rows(db, count, ids=ids) == [{"count": SIZE - 2}]


@STATISTICS
@pytest.mark.parametrize("db", ["50,000 deferred"], indirect=True)
def test_retries_that_are_due(db: Connection, work: Work, known: bool) -> None:
    """With 50,000 retries due at once a claim finds its recipients by index, and half of its batch are retries."""
    rows(db, "UPDATE worker.campaign_retry SET due_at = due_at - interval '2 hours'")
    if known:
        rows(db, "ANALYZE")
    assert_by_index(work.claim(), claim=True)
    count = """SELECT count(*) FROM "CampaignRecipient" WHERE status = 'sending' AND id IN
            (SELECT recipient_id FROM worker.campaign_retry)"""
    assert rows(db, count) == [{"count": SIZE // 2}]


@pytest.mark.parametrize("due", [True, False], ids=["due", "not due"])
@pytest.mark.parametrize("db", ["50,000 deferred"], indirect=True)
def test_many_deferred(db: Connection, work: Work, due: bool) -> None:
    """A claim reads as many rows of the retries as it needs for one batch, however many wait behind it."""
    if due:
        rows(db, "UPDATE worker.campaign_retry SET due_at = due_at - interval '2 hours'")
    rows(db, "ANALYZE")
    assert work.claim().looked_at("campaign_retry") <= 10 * SIZE


@pytest.mark.parametrize("db", SITUATIONS, indirect=True)
def test_idle_looks(db: Connection, work: Work) -> None:
    """What a worker asks between its batches reads a few recipients only, however many there are."""
    rows(db, "ANALYZE")
    campaign_id = work.campaign.id
    recovered = work.plan("batch_recipients", campaign_id=campaign_id, ids=[f"r-{number}" for number in range(SIZE)])
    for plan in (work.plan("survey"), recovered):
        assert plan.looked_at() <= 5 * SIZE


@pytest.mark.parametrize("db", ["190,000 sent"], indirect=True)
def test_near_the_end(db: Connection, work: Work) -> None:
    """What keeps a run from its end is found among the pending recipients, without reading those that were sent."""
    rows(db, "ANALYZE")
    plan = work.plan("remaining", campaign_id=work.campaign.id)
    assert plan.looked_at() <= RECIPIENTS - SENT + 5 * SIZE
    assert TABLE not in plan.sequential()
