"""bin/campaign show: the state of one campaign, what it waits for, its failures, and when it is expected to end."""

import argparse
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

from worker.campaign_commands.campaign_state import (
    CampaignState,
    RecipientCounts,
    count_recipients,
    read_campaign,
    read_only,
    read_state,
)
from worker.campaign_commands.check_problems import ENDED
from worker.campaign_commands.expected_end import ExpectedEnd, expected_end
from worker.campaigns.transport import TransportRouter
from worker.content.one_line import one_line
from worker.errors import CampaignRejected, TransportMissing
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.console import write
from worker.runtime.db import Database, queries
from worker.runtime.settings import Settings

LABEL_WIDTH = 12
WAITS = {"quota": "the quota of its account", "window": "its hours, CAMPAIGN_WINDOW"}


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns the exit status. Raises CommandRefused, SettingsError and psycopg2.Error."""
    with read_only(db):
        state = read_state(db, options.campaign)
        counts = count_recipients(db, state)
        end = _end(db, settings, state, counts) if state.status not in ENDED else ""
        failures = db.all(queries("campaign_check")["failures"], campaign_id=state.id, tenant_id=state.tenant_id)
    for label, value in _facts(state, counts):
        write(f"{label:<{LABEL_WIDTH}}{value}")
    if failures:
        shown = ", ".join(f"{row['number']:,} {row['kind']}" for row in failures)
        write(f"{'Failures':<{LABEL_WIDTH}}{shown}: bin/campaign failures {state.id}")
    if isinstance(end, ExpectedEnd):
        write(f"{'Forecast':<{LABEL_WIDTH}}{end.forecast.words}")
        if end.forecast.begins_at:
            write(f"{'':<{LABEL_WIDTH}}at {end.rate.per_second:.3g} a second, {end.rate.source}")
    elif end:
        write(f"{'Forecast':<{LABEL_WIDTH}}none, it will fail: {one_line(end, 500)}")
    return 0


def _end(db: Database, settings: Settings, state: CampaignState, counts: RecipientCounts) -> ExpectedEnd | str:
    """Or why it has none."""
    campaign = read_campaign(db, state.id, settings.message_max_bytes)
    left = counts.statuses.get("pending", 0) + counts.statuses.get("sending", 0) if counts.statuses else state.total
    with (
        closing(program.redis_client(settings)) as client,
        closing(TransportRouter(settings, client, utc_now)) as transports,
    ):
        try:
            transport = transports.route(campaign)
        except (TransportMissing, CampaignRejected) as error:
            return str(error)
        return expected_end(db, settings, transport, state, left, counts.recently_sent)


def _facts(state: CampaignState, counts: RecipientCounts) -> Iterator[tuple[str, str]]:
    yield "Campaign", f"{one_line(state.name, 100)!r} ({one_line(state.status, 20)}, {one_line(state.channel, 20)})"
    yield "Tenant", one_line(f"{state.tenant or 'deleted'}, {state.tenant_id}", 200)
    if state.scheduled_at:
        yield "Scheduled", _time(state.scheduled_at)
    if state.started_at:
        yield "Running", f"since {_time(state.started_at)}"
    elif state.status == "running":
        yield "Running", "sent by an app server of the CRM, not by the worker"
    statuses = ", ".join(f"{number:,} {one_line(status, 20)}" for status, number in counts.statuses.items())
    yield "Recipients", statuses or "not selected yet"
    if counts.of_other_tenants:
        yield "", f"{counts.of_other_tenants:,} of another tenant, to whom nobody writes"
    yield from _waits(state)


def _waits(state: CampaignState) -> Iterator[tuple[str, str]]:
    if state.waits_for and state.waits_until:
        yield "Waits", f"until {_time(state.waits_until)} for {WAITS.get(state.waits_for, state.waits_for)}"
    elif state.next_batch_at and state.next_batch_at > state.now:
        why = "its provider deferred it" if state.backoffs else "the next batch"
        yield "Waits", f"until {_time(state.next_batch_at)}: {why}"
    if state.next_retry:
        yield "Retries", f"the next deferred recipient at {_time(state.next_retry)}"
    if state.unconfirmed:
        yield "Unconfirmed", f"{state.unconfirmed:,}: Gmail is asked whether it has them"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
