"""What quickstart shows: progress while the jobs work, then a summary, a message, and what to type next."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sandbox import demo_jobs
from sandbox.demo import Show
from sandbox.stage import Stage

POLL_SECONDS = 0.1
BAR_WIDTH = 40
ENDED = ("completed", "failed")


@dataclass(frozen=True)
class Progress:
    """How far one campaign is."""

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


def watch(stage: Stage, show: Show, patience_seconds: float) -> bool:
    """Draws until all jobs did what there is to do, then sums up. Returns whether all went as it should, once."""
    with closing(stage.connect()) as connection, connection.cursor() as cursor:
        drawing = _Drawing(sys.stdout.isatty())
        changed_at, before = time.monotonic(), None
        while True:
            now = {name: _progress(cursor, campaign_id) for name, campaign_id in show.campaigns.items()}
            jobs = demo_jobs.progress(cursor, stage.world)
            drawing.draw(now)
            if all(each.status in ENDED for each in now.values()) and jobs.done:
                break
            if (now, jobs) != before:
                changed_at, before = time.monotonic(), (now, jobs)
            if time.monotonic() - changed_at > patience_seconds:
                print("\n" + "\n".join(jobs.lines()))
                print(f"\nNo progress for {patience_seconds:.0f} s; see the *-error.log files in {stage.logs}.")
                return False
            time.sleep(POLL_SECONDS)
        delivered = _sum_up(cursor, stage, show, now)
        print("\n".join(jobs.lines()))
    _show_message(stage)
    _what_next(stage)
    return delivered


def _progress(cursor: Any, campaign_id: str) -> Progress:
    cursor.execute(
        """SELECT status, "totalRecipients", "sentCount", "failedCount",
                  (SELECT min("createdAt") FROM "CampaignLog" WHERE "campaignId" = c.id AND action = 'started'),
                  "completedAt"
           FROM "Campaign" c WHERE id = %s""",
        (campaign_id,),
    )
    return Progress(*cursor.fetchone())


class _Drawing:
    """Bars that are drawn over in a terminal; elsewhere a line at each tenth."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._drawn = 0
        self._tenths: dict[str, int] = {}

    def draw(self, progress: dict[str, Progress]) -> None:
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


def _bar(name: str, each: Progress) -> str:
    done = each.sent + each.failed
    filled = BAR_WIDTH * done // max(each.total, 1)
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    return f"{name:<9} {bar} {done:>4} of {each.total}  {each.sent} sent, {each.failed} failed  {each.status}"


def _sum_up(cursor: Any, stage: Stage, show: Show, progress: dict[str, Progress]) -> bool:
    print()
    delivered = True
    for name, campaign_id in show.campaigns.items():
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
            delivered &= address == show.refused
        received = _received(cursor, stage, campaign_id, "smtp" if name == "E-mail" else "whatsapp")
        twice = sum(count > 1 for count in received.values())
        print(f"    {len(received)} received it, {twice} of them twice")
        delivered &= each.status == "completed" and len(received) == each.sent and not twice
    return delivered


def _received(cursor: Any, stage: Stage, campaign_id: str, channel: str) -> dict[str, int]:
    """How often each recipient of the campaign got something."""
    cursor.execute(
        """SELECT lower("recipientEmail"), ltrim("recipientPhone", '+') FROM "CampaignRecipient"
           WHERE "campaignId" = %s""",
        (campaign_id,),
    )
    addresses = {email if channel == "smtp" else phone for email, phone in cursor.fetchall()}
    return {address: count for address, count in stage.world.counts(channel).items() if address in addresses}


def _show_message(stage: Stage) -> None:
    """One of the e-mails as its recipient sees it."""
    address = min(stage.world.counts("smtp"), default=None)
    if address is None:
        return
    message = stage.world.email(address)
    body = message.get_body(("plain",))
    lines = [f"{name}: {message[name]}" for name in ("From", "To", "Subject", "Date")]
    lines += ["", *(body.get_content().strip().splitlines() if body else [])]
    print("\nOne of the e-mails, as its recipient sees it:\n")
    print("\n".join(f"    │ {line}" for line in lines))


def _what_next(stage: Stage) -> None:
    environment = (stage.folder / "environment").relative_to(stage.project)
    key = stage.qdrant_key.relative_to(stage.project)
    print(
        "\nWhat to type next, in another terminal:\n"
        "    bin/supervisorctl status\n"
        "    bin/supervisorctl restart campaign\n"
        f"    tail -f {stage.logs.relative_to(stage.project)}/campaign.log\n"
        f"    tail {stage.logs.relative_to(stage.project)}/*.log\n"
        f"    xdg-open {stage.web_url}/        the status page, in any browser\n"
        f"    curl {stage.web_url}/health\n"
        f"    curl {stage.web_url}/metrics\n"
        f'    curl -H "api-key: $(cat {key})" {stage.qdrant_url}/collections\n'
        f"    (. {environment}; bin/status)        the page in a terminal; so for every program of bin/\n"
        "    bin/supervisorctl shutdown        stops everything",
        flush=True,
    )
