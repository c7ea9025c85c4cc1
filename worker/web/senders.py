"""The senders of CAMPAIGN_ENGINE=procrastinate, by machine, and the units that wait for them."""

from collections import Counter
from dataclasses import dataclass

from worker.content.one_line import one_line
from worker.runtime.db import Database, queries

HOST_LENGTH = 100


@dataclass(frozen=True)
class SenderMachine:
    """The senders of one machine, and the units that they run."""

    host: str
    senders: int
    units: int


@dataclass(frozen=True)
class SendersAtWork:
    """All senders that gave a sign of life just now."""

    machines: tuple[SenderMachine, ...]
    units_waiting: int

    @property
    def text(self) -> str:
        """In one line, for people."""
        machines = [f"{each.host} {each.senders:,}, {each.units:,} at work" for each in self.machines]
        waiting = f"{self.units_waiting:,} units wait"
        return f"Senders: {'; '.join(machines) or 'none'}; {waiting}"


def read_senders(database: Database, timeout_seconds: float) -> SendersAtWork:
    """Raises psycopg2.Error, also where the schema engine is missing."""
    sql = queries("engine")
    senders, units = Counter[str](), Counter[str]()
    for row in database.all(sql["senders"], timeout_seconds=timeout_seconds):
        host = one_line(row["host"], HOST_LENGTH)
        senders[host] += 1
        units[host] += row["units"]
    waiting = database.one(sql["waiting"])
    machines = tuple(SenderMachine(host, number, units[host]) for host, number in sorted(senders.items()))
    return SendersAtWork(machines, waiting["number"] if waiting else 0)
