"""/metrics: what the jobs reported to Redis, in Prometheus's format.

Only the metrics that are named here are exported, each with exactly its labels, so that nothing that is written into
Redis can make their number grow.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from worker import __version__
from worker.registry import LOCKS
from worker.runtime.counter_readings import JobState, MetricValue
from worker.web.dependencies import SystemSnapshot
from worker.web.program_states import of_live_hosts
from worker.web.senders import SendersAtWork

PREFIX = "crm_worker_"
SERIES_LIMIT = 200  # of one metric; more would be a mistake

COUNTERS = {
    "job_runs_total": ("Ticks of a job, by outcome.", ("job", "outcome")),
    "messages_total": ("Messages of campaigns and about trials, by outcome.", ("channel", "outcome")),
    "calls_total": ("Queued calls, by outcome of an attempt.", ("outcome",)),
    "calls_cleaned_total": ("Old rows of the call queue that were deleted.", ()),
    "reminders_total": ("Digests of quiet leads, by outcome.", ("channel", "outcome")),
    "trials_suspended_total": ("Tenants whose expired trial was suspended.", ()),
    "unconfirmed_total": (
        "Messages and calls that ended unconfirmed: they may have arrived.",
        ("channel",),
    ),
    "suppressions_total": (
        "Addresses that the worker or an operator put on the list of those that may not be written to or called.",
        ("channel", "source"),
    ),
    "refusals_total": (
        "Messages and campaigns that a provider refused: for an address, another reason, or too many in a row.",
        ("channel", "kind"),
    ),
    "bounces_total": ("Delivery reports and complaints that were read, by what they say.", ("kind",)),
    "program_exits_total": ("Exits of a program under supervisord.", ("program",)),
    "lock_lost_total": ("Locks that were lost before their tick ended.", ("lock",)),
}
# Exported as 0 before anything is counted: Prometheus sees an increase only between two samples, so it would not see
# the first failure.
FROM_ZERO: Mapping[str, tuple[Iterable[str], ...]] = {
    "job_runs_total": (tuple(LOCKS), ("success", "failure", "skipped")),
    "unconfirmed_total": (("email", "whatsapp", "call"),),
    "refusals_total": (("email", "whatsapp"), ("address", "refused", "campaign", "account", "breaker")),
    "bounces_total": (("hard", "soft", "refused", "complaint", "unrecognised"),),
    "lock_lost_total": (tuple(LOCKS.values()),),
}
GAUGES = {
    "campaign_pending_recipients": ("Recipients of running campaigns whose message is not sent yet.", ()),
    "campaign_oldest_due_seconds": ("How long the longest waiting campaign has been due.", ()),
    "quota_used_ratio": (
        "How much of its limit in 24 hours the fullest account of a kind has used: 1 is all of it.",
        ("account_kind",),
    ),
    "calls_due": ("Queued calls that are due.", ()),
    "calls_oldest_due_seconds": ("How long the oldest due call has been due.", ()),
    "window_waiting": ("Calls, and campaigns, that wait for the hours in which they may go on.", ("kind",)),
    "program_state": ("State of a program, as supervisord's number.", ("host", "program")),
    "program_bad_settings": (
        "Whether a program ended because of bad settings or a missing migration.",
        ("host", "program"),
    ),
    "knowledge_points": ("Points in Qdrant's collection.", ()),
    "knowledge_snapshot_timestamp_seconds": ("When the latest snapshot of Qdrant's collection was taken.", ()),
    "knowledge_snapshot_size_bytes": ("Size of that snapshot.", ()),
}


@dataclass(frozen=True)
class _SnapshotTexts:
    """The texts that were made of one snapshot, by content type: the formats that are known here."""

    snapshot: SystemSnapshot
    by_type: dict[str, bytes] = field(default_factory=dict)


class MetricsText:
    """/metrics as text, made once for each snapshot and format, because that is most of what an answer costs."""

    def __init__(self, snapshot: Callable[[], SystemSnapshot]) -> None:
        self._snapshot = snapshot
        self._latest: _SnapshotTexts | None = None

    def answer(self, accept: str) -> tuple[bytes, str]:
        """The text of the current snapshot and its content type. ``accept``: as from ``prometheus_accept``."""
        snapshot, texts = self._snapshot(), self._latest
        if texts is None or texts.snapshot is not snapshot:
            texts = self._latest = _SnapshotTexts(snapshot)
        encode, content_type = choose_encoder(accept)
        if content_type not in texts.by_type:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(WorkerCollector(snapshot))
            texts.by_type[content_type] = encode(registry)
        return texts.by_type[content_type], content_type


class WorkerCollector(Collector):
    """Exports one snapshot."""

    def __init__(self, snapshot: SystemSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield InfoMetricFamily(f"{PREFIX}build", "The worker's version.", {"version": __version__})
        yield _gauges(
            "dependency_up",
            "Whether a server answers, and Redis and PostgreSQL take writes.",
            "service",
            {name: float(service.up) for name, service in snapshot.services.items()},
        )
        text = "Warnings on the status page: problems found by checks although every server answers."
        yield GaugeMetricFamily(f"{PREFIX}warnings", text, value=len(snapshot.warnings))
        if snapshot.work and snapshot.work.senders:
            yield from _senders(snapshot.work.senders)
        if snapshot.readings is None:
            return
        yield _gauges(
            "lock_held",
            "Whether a process holds a job's lock.",
            "lock",
            {name: float(name in snapshot.holders) for name in LOCKS.values()},
        )
        yield from _families(COUNTERS, snapshot.readings.counters, CounterMetricFamily)
        yield from _families(GAUGES, of_live_hosts(snapshot.readings.gauges, time.time()), GaugeMetricFamily)
        yield from _jobs(snapshot)


def _senders(senders: SendersAtWork) -> Iterator[Metric]:
    by_host = {each.host: float(each.senders) for each in senders.machines[:SERIES_LIMIT]}
    yield _gauges("senders", "Processes of bin/campaign-sender that gave a sign of life.", "host", by_host)
    running = float(sum(each.units for each in senders.machines))
    units = {"waiting": float(senders.units_waiting), "running": running}
    yield _gauges(
        "campaign_units", "Units of running campaigns: those that wait for a sender, and run.", "state", units
    )


def _families(
    known: Mapping[str, tuple[str, tuple[str, ...]]], samples: Iterable[MetricValue], family: Any
) -> Iterator[Metric]:
    by_name: dict[str, list[MetricValue]] = {}
    for sample in samples:
        by_name.setdefault(sample.metric, []).append(sample)
    for name, (text, labels) in known.items():
        made = family(PREFIX + name, text, labels=labels)
        values = dict.fromkeys(product(*FROM_ZERO[name]), 0.0) if name in FROM_ZERO else {}
        for sample in by_name.get(name, [])[:SERIES_LIMIT]:
            if tuple(sorted(sample.labels)) == tuple(sorted(labels)):
                values[tuple(sample.labels[label] for label in labels)] = sample.value
        for key, value in values.items():
            made.add_metric(key, value)
        yield made


def _jobs(snapshot: SystemSnapshot) -> Iterator[Metric]:
    jobs: Mapping[str, JobState] = snapshot.readings.jobs if snapshot.readings else {}
    known = {name: state for name, state in jobs.items() if name in LOCKS}
    yield _gauges(
        "job_running", "Whether a tick is running.", "job", {name: float(snapshot.is_running(name)) for name in known}
    )
    stuck = {name: float(state.stuck if snapshot.is_running(name) else 0) for name, state in known.items()}
    text = "Requests that a provider does not answer, while the job's tick does nothing but wait for them."
    yield _gauges("job_stuck_requests", text, "job", stuck)
    for metric, text, attribute in (
        ("job_last_run_timestamp_seconds", "When the latest tick began.", "last_run"),
        ("job_last_success_timestamp_seconds", "When the latest tick that succeeded ended.", "last_success"),
        ("job_heartbeat_timestamp_seconds", "When the job last gave a sign of life.", "heartbeat"),
        ("job_interval_seconds", "Seconds from one tick to the next.", "interval_seconds"),
    ):
        values = {name: getattr(state, attribute) for name, state in known.items()}
        yield _gauges(metric, text, "job", {name: value for name, value in values.items() if value is not None})
    durations = HistogramMetricFamily(f"{PREFIX}job_duration_seconds", "How long ticks took.", labels=("job",))
    for name, state in known.items():
        buckets = [("+Inf" if bound == float("inf") else str(bound), float(n)) for bound, n in state.duration_buckets]
        durations.add_metric([name], buckets, state.duration_sum_seconds)
    yield durations


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    made = GaugeMetricFamily(PREFIX + name, text, labels=(label,))
    for value, number in values.items():
        made.add_metric([value], number)
    return made
