"""bin/campaign list: the campaigns that are running, due next, or changed last."""

import argparse
from dataclasses import dataclass
from datetime import datetime

from worker.campaigns.states import CAMPAIGN_STATUSES
from worker.content.one_line import one_line, printable
from worker.errors import CommandRefused
from worker.runtime.console import to_stderr, write
from worker.runtime.db import Database, queries
from worker.runtime.settings import Settings

DEFAULT_LIMIT = 50
HEAD = f"{'ID':<36}  {'STATUS':<9}  {'CHANNEL':<8}  {'SCHEDULED (UTC)':<16}  {'DONE':>19}  {'TENANT':<20}  NAME"


@dataclass(frozen=True, slots=True)
class ListedCampaign:
    """A row of the statement ``campaigns``."""

    id: str
    tenant_id: str
    tenant: str | None
    name: str
    channel: str
    status: str
    total: int
    sent: int
    failed: int
    scheduled_at: datetime | None

    def __str__(self) -> str:
        at = f"{self.scheduled_at:%Y-%m-%d %H:%M}" if self.scheduled_at else ""
        done = f"{self.sent + self.failed:,} of {self.total:,}"
        tenant, name = one_line(self.tenant or self.tenant_id, 20), one_line(self.name, 60)
        status, channel = one_line(self.status, 9), one_line(self.channel, 8)
        return f"{self.id:<36}  {status:<9}  {channel:<8}  {at:<16}  {done:>19}  {tenant:<20}  {name}"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "list",
        help="show the campaigns and their ids",
        description="Shows campaigns of all tenants: those that are running, then those due next, then the others, "
        "the latest changed first.",
    )
    parser.add_argument(
        "--status",
        type=_statuses,
        default=[],
        help=f"only these, separated by commas: {', '.join(CAMPAIGN_STATUSES)}",
    )
    parser.add_argument("--tenant", metavar="ID", help="only those of the tenant with this id")
    parser.add_argument(
        "--limit", type=_limit, default=DEFAULT_LIMIT, help=f"campaigns that are shown; default {DEFAULT_LIMIT}"
    )
    parser.set_defaults(run=run, failed=1)


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns the exit status. Raises CommandRefused and psycopg2.Error."""
    rows = db.all(
        queries("campaign_check")["campaigns"],
        statuses=options.status,
        tenant_id=options.tenant,
        limit=options.limit + 1,
    )
    if rows:
        write(HEAD)
    elif options.tenant is not None and not db.all(queries("campaign_check")["tenant"], tenant_id=options.tenant):
        raise CommandRefused(f"There is no tenant with the id {printable(options.tenant)}.")
    for row in rows[: options.limit]:
        write(str(ListedCampaign(**row)))
    if len(rows) > options.limit:
        to_stderr(f"There are more than {options.limit}: --limit shows more of them.")
    elif not rows:
        to_stderr("There is no such campaign. Without --status and --tenant all campaigns are shown.")
    return 0


def _statuses(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(CAMPAIGN_STATUSES):
        raise argparse.ArgumentTypeError(f"{text!r}: one or more of {', '.join(CAMPAIGN_STATUSES)}")
    return names


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError("a number from 1 to 100000")
    return int(text)
