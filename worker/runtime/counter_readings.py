"""What the jobs have reported about themselves (worker/runtime/counters.py), read back from Redis as typed values."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import redis

from worker.runtime.poisoned_keys import BadEntry, OwnKey, PoisonedKey, StoredKey, poisoned, read_keys

COUNTERS = "worker:counters"
GAUGES = "worker:gauges"
JOBS = "worker:jobs"
BUCKET = "duration_bucket:"
DURATION_BOUNDS_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, math.inf)

MOST_JOBS = 1_000
REFUSAL_SECONDS = 120.0  # a job that waits for a server tries again every half minute; an older refusal says nothing
LARGEST = 2.0**53  # a counter above it would not grow any more
LATEST = 32_503_680_000.0  # the year 3000, in Unix seconds
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.001, 1e9  # seconds

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_JOB = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}", re.ASCII)
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"', re.ASCII | re.DOTALL)
_ESCAPE = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
_UNESCAPE = {written: char for char, written in _ESCAPE.items()}


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One counter's or gauge's value."""

    metric: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of one job. Times are Unix seconds, None when it never happened."""

    job: str
    running: bool  # as its process reported last; a killed process reports nothing more, see heartbeat
    interval_seconds: float | None
    last_run: float | None  # start of the latest tick
    last_success: float | None  # end of the latest tick that succeeded
    heartbeat: float | None
    last_error: str | None  # stays after a success: compare last_error_at with last_success
    last_error_at: float | None
    pid: int | None
    host: str | None
    duration_buckets: tuple[tuple[float, int], ...]  # (upper bound in seconds, ticks), cumulative, up to infinity
    duration_sum_seconds: float
    duration_count: int
    refused_by: str = ""  # the server that took no writes at last_error_at
    stuck: int = 0  # requests without an answer for long that are all that the job's tick waits for


@dataclass(frozen=True, slots=True)
class CounterReadings:
    """Everything that the jobs of all processes have written."""

    counters: list[MetricValue]
    gauges: list[MetricValue]
    jobs: dict[str, JobState]
    poisoned: tuple[PoisonedKey, ...] = ()  # what is in Redis and could not be read; it is left out above
    asides: tuple[str, ...] = ()  # the keys in which something like that was put aside

    def refused_job(self, server: str, now: float) -> str | None:
        """A job that waits because this server takes no writes, None: there is none. ``now``: Unix seconds."""
        for job in self.jobs.values():
            at = job.last_error_at or 0.0
            if job.refused_by == server and at > (job.last_success or 0.0) and abs(now - at) < REFUSAL_SECONDS:
                return job.job
        return None


def job_key(job: str) -> str:
    """The Redis key of the hash with a job's own state."""
    return f"worker:job:{job}"


def series_name(metric: str, labels: Mapping[str, str]) -> str:
    """``metric{a="1",b="2"}`` with sorted labels, values escaped as in Prometheus's text format.

    Raises ValueError when the metric or a label has a name that Prometheus does not allow.
    """
    for name in (metric, *labels):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a metric or label")
    pairs = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in sorted(labels.items()))
    return f"{metric}{{{pairs}}}" if pairs else metric


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """The metric and the labels that ``series_name`` wrote."""
    metric, _, pairs = text.partition("{")
    return metric, {name: _unescaped(value) for name, value in _LABEL.findall(pairs)}


def read_all(client: redis.Redis, known_jobs: Iterable[str] = ()) -> CounterReadings:
    """Everything that the jobs of all processes have written, in two round trips, without what is poisoned.

    ``known_jobs`` are looked for when the set of jobs was lost to a poisoned one. Raises redis.RedisError.
    """
    own = (OwnKey(COUNTERS, "hash"), OwnKey(GAUGES, "hash"), OwnKey(JOBS, "set", MOST_JOBS))
    counters, gauges, members = read_keys(client, own)
    jobs, bad_jobs = _job_names(members)
    lost = set(known_jobs) - set(jobs) if members.asides or members.found not in ("set", "none") else set()
    names = sorted({*jobs, *lost})
    states = read_keys(client, [OwnKey(job_key(job), "hash") for job in names])
    (counted, bad_counts), (measured, bad_gauges) = (
        _metric_values(counters, least=0.0),
        _metric_values(gauges, least=-LARGEST),
    )
    found = [poisoned(counters, bad_counts), poisoned(gauges, bad_gauges), poisoned(members, bad_jobs)]
    read_jobs: dict[str, JobState] = {}
    for job, state in zip(names, states, strict=True):
        fields = _JobFields(state.fields if state.found == "hash" else {})
        if state.found == "hash" or (state.found == "none" and job not in lost):
            read_jobs[job] = _job_state(job, fields)
        found.append(poisoned(state, fields.bad))
    stored = (counters, gauges, members, *states)
    return CounterReadings(
        counted,
        measured,
        read_jobs,
        poisoned=tuple(each for each in found if each),
        asides=tuple(aside for each in stored for aside in each.asides),
    )


def _job_names(members: StoredKey) -> tuple[list[str], list[BadEntry]]:
    names, bad = [], []
    for member in members.entries:
        name = member.decode("utf-8", "replace")
        if _JOB.fullmatch(name):
            names.append(name)
        else:
            bad.append(BadEntry(member, b"", "is not the name of a job"))
    return names, bad


def _metric_values(stored: StoredKey, least: float) -> tuple[list[MetricValue], list[BadEntry]]:
    samples, bad = [], []
    for series, value in sorted(stored.fields.items()):
        try:
            samples.append(MetricValue(*_parse_strictly(series.decode()), _number(value, least, LARGEST)))
        except ValueError as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            bad.append(BadEntry(series, value, reason))
    return samples, bad


def _parse_strictly(series: str) -> tuple[str, dict[str, str]]:
    metric, labels = parse_series(series)
    if series_name(metric, labels) != series:
        raise ValueError("is not the name of a series as the worker writes it")
    return metric, labels


def _number(value: bytes, least: float, largest: float) -> float:
    """The number that stands there. Raises ValueError."""
    text = value.decode("utf-8", "replace")
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not least <= number <= largest:
        raise ValueError(f"has no possible value: {text[:60]!r}")
    return number


class _JobFields:
    """The fields of a job's state; those that cannot be read are collected in ``bad``."""

    def __init__(self, fields: Mapping[bytes, bytes]) -> None:
        self._fields = fields
        self.bad: list[BadEntry] = []

    def number(self, name: str, largest: float = LATEST, least: float = 0.0) -> float | None:
        """A number in these bounds; None when there is none."""
        value = self._fields.get(name.encode())
        try:
            return None if value is None else _number(value, least, largest)
        except ValueError as error:
            self.bad.append(BadEntry(name.encode(), value or b"", str(error)))
            return None

    def text(self, name: str) -> str | None:
        value = self._fields.get(name.encode())
        return None if value is None else value.decode("utf-8", "replace")


def _job_state(job: str, fields: _JobFields) -> JobState:
    pid = fields.number("pid")
    return JobState(
        job=job,
        running=fields.text("running") is not None,
        interval_seconds=fields.number("interval", LONGEST_INTERVAL, SHORTEST_INTERVAL),
        last_run=fields.number("last_run"),
        last_success=fields.number("last_success"),
        heartbeat=fields.number("heartbeat"),
        last_error=fields.text("last_error"),
        last_error_at=fields.number("last_error_at"),
        pid=None if pid is None else int(pid),
        host=fields.text("host"),
        duration_buckets=tuple(_cumulative_buckets(fields)),
        duration_sum_seconds=fields.number("duration_sum", LARGEST) or 0.0,
        duration_count=int(fields.number("duration_count", LARGEST) or 0),
        refused_by=fields.text("refused_by") or "",
        stuck=int(fields.number("stuck", LARGEST) or 0),
    )


def _cumulative_buckets(fields: _JobFields) -> Iterable[tuple[float, int]]:
    ticks = 0
    for bound in DURATION_BOUNDS_SECONDS:
        ticks += int(fields.number(f"{BUCKET}{bound}", LARGEST) or 0)
        yield bound, ticks


def _escaped(value: str) -> str:
    return "".join(_ESCAPE.get(char, char) for char in value)


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda match: _UNESCAPE.get(match[0], match[0]), value, flags=re.DOTALL)
