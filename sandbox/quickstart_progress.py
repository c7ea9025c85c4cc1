"""What quickstart prints: progress while the jobs work, then a summary, a message, and commands to try next."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sandbox import demo_jobs
from sandbox.demo import DemoCampaigns
from sandbox.quickstart_environment import QuickstartEnvironment

POLL_SECONDS = 0.1
BAR_WIDTH = 40
ENDED = ("completed", "failed")


@dataclass(frozen=True)
class CampaignProgress:
    """The state of one campaign."""

    status: str
    total: int
    sent: int
    failed: int
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def seconds(self) -> float:
        if not (self.started_at and self.ended_at):
            return 0.0
        return max((self.ended_at - self.started_at).total_seconds(), 0.001)


def watch(environment: QuickstartEnvironment, campaigns: DemoCampaigns, timeout_seconds: float) -> bool:
    """Shows progress until all jobs are done, then a summary. Returns whether every message arrived exactly once.

    ``timeout_seconds``: it gives up after so long without any progress.
    """
    with closing(environment.connect()) as connection, connection.cursor() as cursor:
        bars = _ProgressBars(sys.stdout.isatty())
        changed_at, before = time.monotonic(), None
        while True:
            now = {name: _progress(cursor, campaign_id) for name, campaign_id in campaigns.by_name.items()}
            jobs = demo_jobs.progress(cursor, environment.world)
            bars.draw(now)
            if all(each.status in ENDED for each in now.values()) and jobs.done:
                break
            if (now, jobs) != before:
                changed_at, before = time.monotonic(), (now, jobs)
            if time.monotonic() - changed_at > timeout_seconds:
                print("\n" + "\n".join(jobs.lines()))
                print(f"\nNo progress for {timeout_seconds:.0f} s; see the *-error.log files in {environment.logs}.")
                return False
            time.sleep(POLL_SECONDS)
        delivered = _sum_up(cursor, environment, campaigns, now)
        print("\n".join(jobs.lines()))
    _show_message(environment)
    _print_next_commands(environment)
    return delivered


def _progress(cursor: Any, campaign_id: str) -> CampaignProgress:
    cursor.execute(
        """SELECT status, "totalRecipients", "sentCount", "failedCount",
                  (SELECT min("createdAt") FROM "CampaignLog" WHERE "campaignId" = c.id AND action = 'started'),
                  "completedAt"
           FROM "Campaign" c WHERE id = %s""",
        (campaign_id,),
    )
    return CampaignProgress(*cursor.fetchone())


class _ProgressBars:
    """Bars that are redrawn in a terminal; in other output a line for each tenth."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._drawn = 0
        self._tenths: dict[str, int] = {}

    def draw(self, progress: dict[str, CampaignProgress]) -> None:
        if self._terminal:
            back = f"\x1b[{self._drawn}A" if self._drawn else ""
            print(back + "\n".join(f"\x1b[2K{_bar(name, each)}" for name, each in progress.items()), flush=True)
            self._drawn = len(progress)
            return
        for name, each in progress.items():
            tenth = 10 * (each.sent + each.failed) // max(each.total, 1)
            if self._tenths.get(name) != tenth:
                self._tenths[name] = tenth
                print(_bar(name, each), flush=True)


def _bar(name: str, each: CampaignProgress) -> str:
    done = each.sent + each.failed
    filled = BAR_WIDTH * done // max(each.total, 1)
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    return f"{name:<9} {bar} {done:>4} of {each.total}  {each.sent} sent, {each.failed} failed  {each.status}"


def _sum_up(
    cursor: Any, environment: QuickstartEnvironment, campaigns: DemoCampaigns, progress: dict[str, CampaignProgress]
) -> bool:
    print()
    delivered = True
    for name, campaign_id in campaigns.by_name.items():
        each = progress[name]
        rate = f"{each.sent / each.seconds:.0f} a second" if each.seconds else "at an earlier start"
        print(f"{name}: {each.sent} sent, {each.failed} failed, {rate}")
        cursor.execute(
            """SELECT "errorMessage", count(*), min("recipientEmail") FROM "CampaignRecipient"
               WHERE "campaignId" = %s AND status = 'failed' GROUP BY 1 ORDER BY 2 DESC""",
            (campaign_id,),
        )
        for reason, count, address in cursor.fetchall():
            print(f"    {count} x {address}: {reason}" if count == 1 else f"    {count} x {reason}")
            delivered &= address == campaigns.refused
        received = _received(cursor, environment, campaign_id, "smtp" if name == "E-mail" else "whatsapp")
        twice = sum(count > 1 for count in received.values())
        print(f"    {len(received)} received it, {twice} of them twice")
        delivered &= each.status == "completed" and len(received) == each.sent and not twice
    return delivered


def _received(cursor: Any, environment: QuickstartEnvironment, campaign_id: str, channel: str) -> dict[str, int]:
    """How many messages each recipient of the campaign got."""
    cursor.execute(
        """SELECT lower("recipientEmail"), ltrim("recipientPhone", '+') FROM "CampaignRecipient"
           WHERE "campaignId" = %s""",
        (campaign_id,),
    )
    addresses = {email if channel == "smtp" else phone for email, phone in cursor.fetchall()}
    return {address: count for address, count in environment.world.counts(channel).items() if address in addresses}


def _show_message(environment: QuickstartEnvironment) -> None:
    """Prints one of the e-mails as its recipient sees it."""
    address = min(environment.world.counts("smtp"), default=None)
    if address is None:
        return
    message = environment.world.email(address)
    body = message.get_body(("plain",))
    lines = [f"{name}: {message[name]}" for name in ("From", "To", "Subject", "Date")]
    lines += ["", *(body.get_content().strip().splitlines() if body else [])]
    print("\nOne of the e-mails, as its recipient sees it:\n")
    print("\n".join(f"    │ {line}" for line in lines))


def _print_next_commands(environment: QuickstartEnvironment) -> None:
    settings = (environment.folder / "environment").relative_to(environment.project)
    key = environment.qdrant_key.relative_to(environment.project)
    print(
        "\nCommands to try next, in another terminal:\n"
        "    bin/supervisorctl status\n"
        "    bin/supervisorctl restart campaign\n"
        f"    tail -f {environment.logs.relative_to(environment.project)}/campaign.log\n"
        f"    tail {environment.logs.relative_to(environment.project)}/*.log\n"
        f"    xdg-open {environment.web_url}/    # the status page, in any browser\n"
        f"    curl {environment.web_url}/health\n"
        f"    curl {environment.web_url}/metrics\n"
        f'    curl -H "api-key: $(cat {key})" {environment.qdrant_url}/collections\n'
        f"    (. {settings}; bin/status)    # the page in a terminal; the same for every program of bin/\n"
        "    bin/supervisorctl shutdown    # stops everything",
        flush=True,
    )
