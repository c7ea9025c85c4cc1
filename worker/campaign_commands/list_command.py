"""bin/campaign list: the campaigns that are running, due next, or changed last."""

import argparse
from dataclasses import dataclass
from datetime import datetime

from worker.content.one_line import one_line
from worker.runtime.console import to_stderr, write
from worker.runtime.db import Database, queries
from worker.runtime.settings import Settings

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


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns the exit status. Raises psycopg2.Error."""
    rows = db.all(
        queries("campaign_check")["campaigns"],
        statuses=options.status,
        tenant_id=options.tenant,
        limit=options.limit + 1,
    )
    if rows:
        write(HEAD)
    for row in rows[: options.limit]:
        write(str(ListedCampaign(**row)))
    if len(rows) > options.limit:
        to_stderr(f"There are more than {options.limit}: --limit shows more of them.")
    elif not rows:
        to_stderr("There is no such campaign. Without --status and --tenant all campaigns are shown.")
    return 0
