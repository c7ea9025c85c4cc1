"""The last hour of the jobs' counters: a list in Redis with one sample of them per minute.

    worker:history            the newest 61 samples, newest first, each a JSON object
    worker:history:<minute>   set by the process that takes that minute's sample, so that two web processes take one

The history survives restarts of everything except Redis. A counter that starts again, as after a loss of Redis's
data, counts from 0.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import redis

from worker.runtime.counter_readings import CounterReadings

log = logging.getLogger(__name__)

HISTORY_KEY = "worker:history"
MINUTES = 60
MINUTE_SECONDS = 60
_TAKEN_SECONDS = 300  # life of worker:history:<minute>
# what the charts show: name -> (counter, the outcomes whose sum it is)
TOTALS = {
    "messages": ("messages_total", ("sent",)),
    "messages_failed": ("messages_total", ("failed",)),
    "calls": ("calls_total", ("placed",)),
    "calls_failed": ("calls_total", ("failed",)),
    "reminders": ("reminders_total", ("sent",)),
}


@dataclass(frozen=True)
class MinuteSample:
    """The counters at one moment: TOTALS, and for each job ``runs:<job>`` and ``seconds:<job>``, their duration."""

    minute: int  # since the beginning of 1970
    totals: Mapping[str, float]


@dataclass(frozen=True)
class Minute:
    """What was added to the counters in one minute."""

    minute: int
    added: Mapping[str, float]
    measured: bool = True  # False: no sample was taken; it is an even share of what was added in the gap

    def mean_seconds(self, job: str) -> float | None:
        """The mean duration of the runs that ended in this minute; None when none ended."""
        runs = self.added.get(f"runs:{job}", 0.0)
        return self.added.get(f"seconds:{job}", 0.0) / runs if runs > 0 else None


def take_sample(readings: CounterReadings, now: float) -> MinuteSample:
    """A sample of the counters at ``now`` (Unix seconds)."""
    totals = {
        name: sum(
            each.value
            for each in readings.counters
            if each.metric == metric and each.labels.get("outcome") in outcomes
        )
        for name, (metric, outcomes) in TOTALS.items()
    }
    for job, state in readings.jobs.items():
        totals[f"runs:{job}"] = float(state.duration_count)
        totals[f"seconds:{job}"] = state.duration_sum_seconds
    return MinuteSample(int(now // MINUTE_SECONDS), totals)


def store_sample(client: redis.Redis, taken: MinuteSample) -> bool:
    """Appends a sample; returns False when that minute has one already. Raises redis.RedisError."""
    if not client.set(f"{HISTORY_KEY}:{taken.minute}", "taken", nx=True, ex=_TAKEN_SECONDS):
        return False
    with client.pipeline() as pipeline:
        pipeline.lpush(HISTORY_KEY, json.dumps({"minute": taken.minute, "totals": taken.totals}))
        pipeline.ltrim(HISTORY_KEY, 0, MINUTES)
        pipeline.execute()
    return True


def parse_samples(entries: Iterable[str]) -> tuple[MinuteSample, ...]:
    """The samples in Redis, oldest first; entries that are not samples are left out."""
    samples = {each.minute: each for each in map(_parsed, entries) if each}
    return tuple(samples[minute] for minute in sorted(samples))


def last_hour(samples: Sequence[MinuteSample], latest: MinuteSample | None) -> tuple[Minute, ...]:
    """What was added in each minute, oldest first; ``latest`` is a sample of the minute that is not over yet."""
    known = [*samples, *([latest] if latest else [])]
    if not known:
        return ()
    first, last = known[-1].minute - MINUTES, known[-1].minute
    minutes: list[Minute] = []
    for before, after in pairwise(known):
        added = _added(before.totals, after.totals)
        over = max(1, after.minute - before.minute)
        share = added if over == 1 else {name: amount / over for name, amount in added.items()}
        # only the last hour of a long gap, and no future minute, which somebody may have written into Redis
        shown = range(max(before.minute, first), min(before.minute + over, last + 1))
        minutes += [Minute(minute, share, measured=over == 1) for minute in shown]
    return tuple(minutes)


class CounterSampler(threading.Thread):
    """A thread that takes a sample at the beginning of each minute until it is stopped."""

    def __init__(
        self,
        client: redis.Redis,
        readings: Callable[[], CounterReadings | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="history", daemon=True)  # the process may end without it
        self._client = client
        self._readings = readings
        self._clock = clock
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._take()):
            pass

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _take(self) -> float:
        """Takes this minute's sample if there is none; returns the seconds until the next minute."""
        readings = self._readings()
        if readings is not None:
            try:
                store_sample(self._client, take_sample(readings, self._clock()))
            except redis.RedisError as error:  # the probes report it, too; that minute stays without a sample
                log.debug("sample not taken", {"reason": error})
        return MINUTE_SECONDS - self._clock() % MINUTE_SECONDS


def _added(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was added to each counter. A counter that fell, or that is new, counted from 0."""
    return {
        name: total - before.get(name, 0.0) if total >= before.get(name, 0.0) else total
        for name, total in after.items()
    }


def _parsed(text: str) -> MinuteSample | None:
    try:
        fields = json.loads(text)
        return MinuteSample(
            int(fields["minute"]), {str(name): float(total) for name, total in fields["totals"].items()}
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
