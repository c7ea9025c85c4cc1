"""The query plans of reminders: leads are found by the worker's index, and those already reminded of are left out
without a loop over both."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from benchmarks.reminder_rows import MIXES, fill
from sandbox.crm import Crm, utc_now
from worker.reminding.recipients import RecipientReader
from worker.reminding.tenants import read_tenants
from worker.runtime.db import Database, queries

SQL = queries("reminders")
TENANTS, LEADS = 100, 1500
MORE_USERS = 5000  # of one tenant
INDEX = "worker_lead_quiet"

Node = dict[str, Any]


@pytest.fixture(scope="module", params=MIXES)
def url(request: pytest.FixtureRequest, databases: Any, template: str) -> Iterator[str]:
    """A database with 150,000 leads of which 100 are due to two recipients each."""
    name = databases.create(template)
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        crm = Crm(connection)
        fill(crm, request.param, TENANTS, LEADS, phones=1)
        crm.execute(
            """INSERT INTO "User" (id, email, name, "tenantId", "updatedAt")
               SELECT 'more-' || n, n || '@t1.example', 'User', 'tenant-1', now() FROM generate_series(1, %s) AS n""",
            (MORE_USERS,),
        )
        crm.execute("ANALYZE")
    yield databases.url_of(name)
    databases.drop(name)


@pytest.fixture(params=["statistics", "no statistics"])
def db(url: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    with closing(Database(url, "test")) as made:
        if request.param == "no statistics":
            made.execute(
                """DELETE FROM pg_statistic
                   WHERE starelid IN ('"Lead"'::regclass, 'worker_lead_quiet'::regclass,
                        'worker.lead_reminder'::regclass, '"User"'::regclass, '"PipelineStage"'::regclass)"""
            )
        yield made


def explained(db: Database, statement: str, **parameters: Any) -> list[Node]:
    """The nodes of the plan as it was really run, without its effect."""
    with db.transaction():
        found = db.all(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", **parameters)
        db.execute("ROLLBACK; BEGIN")
    nodes: list[Node] = []
    todo = [found[0]["QUERY PLAN"][0]["Plan"]]
    while todo:
        nodes.append(todo.pop())
        todo += nodes[-1].get("Plans", [])
    return nodes


def looked_at(nodes: list[Node], table: str) -> int:
    """Rows of a table that were looked at, used or not."""
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in nodes
        if node.get("Relation Name") == table and node["Node Type"] != "ModifyTable"
    )


def sequential(nodes: list[Node]) -> set[str]:
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}


def claim(db: Database) -> list[Node]:
    recipients = RecipientReader().recipients_of_all(read_tenants(db), utc_now())
    assert len(recipients) == 2 * TENANTS
    statement = SQL["claim"].partition(";")[2]
    parameters = {"job": "reminders", "holder": "x", "now": utc_now(), "listed": 200}
    as_json = json.dumps([recipient.as_json() for recipient in recipients])
    return explained(db, statement, recipients=as_json, **parameters)


def test_a_claim(db: Database) -> None:
    """Each quiet lead of the included stages is looked at once for each recipient, so is what was reminded."""
    old = db.one('SELECT count(*) FROM "Lead" WHERE "lastContactedAt" < %(day)s', day=utc_now() - timedelta(days=1))
    remembered = db.one("SELECT count(*) FROM worker.lead_reminder")
    assert old
    assert remembered
    nodes = claim(db)
    (inserted,) = [
        each for each in nodes if each.get("Relation Name") == "notice" and each.get("Operation") == "Insert"
    ]
    assert inserted["Actual Rows"] == 2 * TENANTS
    assert "Lead" not in sequential(nodes)
    assert INDEX in {node.get("Index Name") for node in nodes}
    assert looked_at(nodes, "Lead") <= 2 * old["count"] + 2 * TENANTS
    assert looked_at(nodes, "lead_reminder") <= remembered["count"] + 2 * TENANTS
    assert sum(node.get("Rows Removed by Join Filter", 0) for node in nodes) <= 2 * TENANTS, "no loop over both"


def test_the_tenants(db: Database) -> None:
    """Users are read once for each of their two purposes, those of the tenant only; no lead at all."""
    nodes = explained(db, SQL["tenants"])
    assert looked_at(nodes, "Lead") == 0
    assert looked_at(nodes, "User") <= 2 * (TENANTS + MORE_USERS)
