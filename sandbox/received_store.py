"""What the stand-ins received, in an SQLite file that survives them and that other processes can read at any time.

A row is written before the answer is sent, so a killed stand-in has recorded everything that it accepted.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sandbox.failure_script import normal_address

Outcome = Literal["accepted", "unanswered", "refused"]

_TABLE = """
CREATE TABLE IF NOT EXISTS received (
    id          INTEGER PRIMARY KEY,
    channel     TEXT NOT NULL,
    address     TEXT NOT NULL,
    outcome     TEXT NOT NULL,
    account     TEXT NOT NULL,
    credential  TEXT NOT NULL,
    external_id TEXT NOT NULL,
    message_id  TEXT NOT NULL,
    status      INTEGER NOT NULL,
    at          TEXT NOT NULL,
    content     BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS received_address ON received (channel, address);
CREATE INDEX IF NOT EXISTS received_message_id ON received (channel, message_id) WHERE message_id <> '';
CREATE INDEX IF NOT EXISTS received_external_id ON received (channel, external_id) WHERE external_id <> '';
"""
_COLUMNS = "channel, address, outcome, account, credential, external_id, message_id, status, at, content"


@dataclass(frozen=True)
class Received:
    """One message or call for one recipient, or a request that was refused."""

    channel: str
    address: str  # lower case, or digits
    outcome: Outcome  # unanswered: accepted, but the connection was cut instead of answered
    account: str = ""  # envelope sender, phone id, account sid, client id
    credential: str = ""  # the token or the user of the request
    external_id: str = ""  # the provider's id: Gmail id, wamid, call sid
    message_id: str = ""  # an e-mail's Message-ID
    status: int = 0  # of the answer
    at: str = ""  # UTC, ISO 8601
    content: bytes = b""  # the message as it came: an e-mail, JSON or a form


class ReceivedStore:
    """Opens the file, and creates it if it is missing. The caller closes it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None, timeout=20)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")  # survives the end of the process, not of the machine
        self._database.executescript(_TABLE)

    def add(self, *rows: Received) -> None:
        """Writes rows, all or none; their ``at`` is replaced by the present time."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = [(*_values(row)[:-2], now, row.content) for row in rows]
        statement = f"INSERT INTO received ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 - a constant
        if len(values) == 1:
            self._database.execute(statement, values[0])
            return
        self._database.execute("BEGIN")
        self._database.executemany(statement, values)
        self._database.execute("COMMIT")

    def deliveries(self, channel: str | None = None, address: str | None = None, limit: int = -1) -> list[Received]:
        """What was accepted, answered or not, in order."""
        where, values = _where(channel, address, "outcome <> 'refused'")
        return self._rows(f"{where} ORDER BY id LIMIT ?", [*values, limit])

    def refusals(self, channel: str | None = None, address: str | None = None) -> list[Received]:
        """What was refused or cut off unread, in order."""
        where, values = _where(channel, address, "outcome = 'refused'")
        return self._rows(f"{where} ORDER BY id", values)

    def counts(self, channel: str | None = None) -> Counter[str]:
        """How many deliveries each address got."""
        where, values = _where(channel, None, "outcome <> 'refused'")
        statement = f"SELECT address, count(*) FROM received {where} GROUP BY address"  # noqa: S608 - no input in it
        return Counter(dict(self._database.execute(statement, values).fetchall()))

    def total(self, channel: str | None = None) -> int:
        """The number of deliveries; fast enough for polling."""
        where, values = _where(channel, None, "outcome <> 'refused'")
        statement = f"SELECT count(*) FROM received {where}"  # noqa: S608 - no input in it
        return int(self._database.execute(statement, values).fetchone()[0])

    def find(self, channel: str, *, message_id: str = "", external_id: str = "") -> list[Received]:
        """The deliveries with this Message-ID, or with this id of the provider."""
        name, value = ("message_id", message_id) if message_id else ("external_id", external_id)
        return self._rows(f"WHERE channel = ? AND {name} = ? AND {name} <> '' ORDER BY id", [channel, value])

    def clear(self) -> None:
        self._database.execute("DELETE FROM received")

    def close(self) -> None:
        self._database.close()

    def _rows(self, rest: str, values: Sequence[object]) -> list[Received]:
        statement = f"SELECT {_COLUMNS} FROM received {rest}"  # noqa: S608 - the parts are ours
        return [Received(*row) for row in self._database.execute(statement, values)]


def _values(row: Received) -> tuple[object, ...]:
    ids = (row.account, row.credential, row.external_id, row.message_id)
    return (row.channel, normal_address(row.address), row.outcome, *ids, row.status, row.at, row.content)


def _where(channel: str | None, address: str | None, condition: str) -> tuple[str, list[object]]:
    conditions, values = [condition], list[object]()
    if channel is not None:
        conditions.append("channel = ?")
        values.append(channel)
    if address is not None:
        conditions.append("address = ?")
        values.append(normal_address(address))
    return "WHERE " + " AND ".join(conditions), values
