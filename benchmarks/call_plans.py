"""The query plans of the calls job's main statements, as PostgreSQL runs them on the database at hand."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from worker.calling.selection import CALLS_A_TURN, SPARE
from worker.calls import ACCOUNTS_AT_ONCE
from worker.content.calls import WAITING_FOR_HOURS
from worker.runtime.clock import utc_now
from worker.runtime.db import Database, Row, queries

TABLES = {"CallQueue", "CallLog"}  # the CRM's, which grow for ever
TENANTS = ACCOUNTS_AT_ONCE  # that are looked at together
LIMIT = CALLS_A_TURN + SPARE  # calls of each


@dataclass(frozen=True)
class Plan:
    """How one statement was run."""

    statement: str
    seconds: float
    indexes: list[str]  # on the large tables
    sequential: list[str]  # of the large tables, read from end to end


def plans(url: str) -> list[Plan]:
    """The plans of the statements below; the database stays as it is."""
    sql = queries("calls")
    with closing(Database(url, "bench plans")) as database:
        now = utc_now()
        tenants = [row["tenant_id"] for row in database.all(sql["due_tenants"], now=now)][:TENANTS]
        chosen: dict[str, Any] = {
            "tenant_ids": tenants,
            "limits": [LIMIT] * len(tenants),
            "left_alone": [],
            "now": now,
        }
        items = database.all(sql["candidates"], **chosen)
        claim = {"wanted": json.dumps(list(wanted(items))), "holder": "bench", "now": now}
        database.execute("BEGIN")
        # today's calls end, so that there are free slots
        database.execute("""UPDATE "CallLog" SET "twilioStatus" = 'completed' WHERE "twilioStatus" = 'queued'""")
        found = [
            explained(database, "survey", now=now),
            explained(database, "backlog", now=now, reason=WAITING_FOR_HOURS),
            explained(database, "due_tenants", now=now),
            explained(database, "candidates", **chosen),
            explained(database, "claim", **claim),
        ]
        (first, *_) = database.all("SELECT queue_id FROM worker.call_claim")
        booked = {
            "ids": [first["queue_id"]],
            "sids": ["CA-bench"],
            "statuses": ["queued"],
            "holder": "bench",
            "now": now,
        }
        found.append(explained(database, "book", **booked))
        found.append(explained(database, "stale_calls", now=now, skipped_tenants=[], size=8))
        database.execute("ROLLBACK")
    return found


def wanted(items: list[Row]) -> Iterator[Row]:
    for place, item in enumerate(items):
        yield {
            "id": item["id"],
            "tenant_id": item["tenant_id"],
            "account_sid": f"AC-{item['tenant_id']}",
            "from_number": "+918047112233",
            "to_number": item["phone_number"],
            "place": place,
        }


def explained(database: Database, name: str, **parameters: Any) -> Plan:
    """The plan of a statement that is really run, with its effect."""
    (found,) = database.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {queries('calls')[name]}", **parameters)
    result = found["QUERY PLAN"][0]
    every = list(nodes(result["Plan"]))
    indexes = {node["Index Name"] for node in every if "Index Name" in node}
    sequential = {node["Relation Name"] for node in every if node["Node Type"] == "Seq Scan"}
    ours = sorted(index for index in indexes if index.startswith(("worker_", "CallQueue_", "CallLog_")))
    return Plan(name, result["Execution Time"] / 1e3, ours, sorted(sequential & TABLES))


def nodes(node: Row) -> Iterator[Row]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)
