"""What the jobs have reported about themselves (worker/runtime/counters.py), read back from Redis as typed values."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

COUNTERS = "worker:counters"
GAUGES = "worker:gauges"
JOBS = "worker:jobs"
BUCKET = "duration_bucket:"
DURATION_BOUNDS_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, math.inf)

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
    stuck: int = 0  # requests without an answer for long that are all that the job's tick waits for


@dataclass(frozen=True, slots=True)
class CounterReadings:
    """Everything that the jobs of all processes have written."""

    counters: list[MetricValue]
    gauges: list[MetricValue]
    jobs: dict[str, JobState]


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


def read_all(client: redis.Redis) -> CounterReadings:
    """Everything that the jobs of all processes have written, in two round trips.

    ``client`` returns text, as clients of worker.runtime.redis_client.connect do. Raises redis.RedisError.
    """
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(COUNTERS)
        pipeline.hgetall(GAUGES)
        pipeline.smembers(JOBS)
        counters, gauges, members = pipeline.execute()
        jobs = sorted(members)
        for job in jobs:
            pipeline.hgetall(job_key(job))
        states = pipeline.execute()
    return CounterReadings(
        counters=_metric_values(counters),
        gauges=_metric_values(gauges),
        jobs={job: _job_state(job, state) for job, state in zip(jobs, states, strict=True)},
    )


def _metric_values(fields: Mapping[str, str]) -> list[MetricValue]:
    return [MetricValue(*parse_series(series), float(value)) for series, value in sorted(fields.items())]


def _job_state(job: str, fields: Mapping[str, str]) -> JobState:
    def number(name: str) -> float | None:
        return float(fields[name]) if name in fields else None

    return JobState(
        job=job,
        running="running" in fields,
        interval_seconds=number("interval"),
        last_run=number("last_run"),
        last_success=number("last_success"),
        heartbeat=number("heartbeat"),
        last_error=fields.get("last_error"),
        last_error_at=number("last_error_at"),
        pid=int(fields["pid"]) if "pid" in fields else None,
        host=fields.get("host"),
        duration_buckets=tuple(_cumulative_buckets(fields)),
        duration_sum_seconds=number("duration_sum") or 0.0,
        duration_count=int(number("duration_count") or 0),
        stuck=int(number("stuck") or 0),
    )


def _cumulative_buckets(fields: Mapping[str, Any]) -> Iterable[tuple[float, int]]:
    ticks = 0
    for bound in DURATION_BOUNDS_SECONDS:
        ticks += int(float(fields.get(f"{BUCKET}{bound}", 0)))
        yield bound, ticks


def _escaped(value: str) -> str:
    return "".join(_ESCAPE.get(char, char) for char in value)


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda match: _UNESCAPE.get(match[0], match[0]), value, flags=re.DOTALL)
