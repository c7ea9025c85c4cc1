"""The last hour, minute by minute: a short ring in Redis of what the counters said at each minute's begin.

    worker:history            the newest 61 samples, newest first, each a JSON object
    worker:history:<minute>   who came first took that minute's sample: two web processes do not take two

It survives restarts of everything but Redis. Counters that start anew, as after a loss of Redis's data, count from 0.
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

RING = "worker:history"
MINUTES = 60
MINUTE_SECONDS = 60
_TAKEN_SECONDS = 300
# what is charted: name -> (counter, the outcomes that it sums up)
TOTALS = {
    "messages": ("messages_total", ("sent",)),
    "messages_failed": ("messages_total", ("failed",)),
    "calls": ("calls_total", ("placed",)),
    "calls_failed": ("calls_total", ("failed",)),
    "reminders": ("reminders_total", ("sent",)),
}


@dataclass(frozen=True)
class MinuteSample:
    """What counters had added up to, TOTALS and for each job ``runs:<job>`` and the ``seconds:<job>`` they took."""

    minute: int  # since 1970
    totals: Mapping[str, float]


@dataclass(frozen=True)
class Minute:
    """What was added in one minute."""

    minute: int
    added: Mapping[str, float]
    measured: bool = True  # False: nobody took samples, an even share of what was added meanwhile

    def mean_seconds(self, job: str) -> float | None:
        """How long a run took on average, None when none ended."""
        runs = self.added.get(f"runs:{job}", 0.0)
        return self.added.get(f"seconds:{job}", 0.0) / runs if runs > 0 else None


def sample(readings: CounterReadings, now: float) -> MinuteSample:
    """What the counters say at ``now`` (Unix seconds)."""
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


def keep(client: redis.Redis, taken: MinuteSample) -> bool:
    """Puts a sample into the ring; False when the ring has that minute. Raises redis.RedisError."""
    if not client.set(f"{RING}:{taken.minute}", "taken", nx=True, ex=_TAKEN_SECONDS):
        return False
    with client.pipeline() as pipeline:
        pipeline.lpush(RING, json.dumps({"minute": taken.minute, "totals": taken.totals}))
        pipeline.ltrim(RING, 0, MINUTES)
        pipeline.execute()
    return True


def parsed(ring: Iterable[str]) -> tuple[MinuteSample, ...]:
    """The ring's samples, oldest first; what is no sample is left out."""
    samples = {each.minute: each for each in map(_parsed, ring) if each}
    return tuple(samples[minute] for minute in sorted(samples))


def last_hour(samples: Sequence[MinuteSample], latest: MinuteSample | None) -> tuple[Minute, ...]:
    """What was added in each minute between samples, oldest first; ``latest`` adds the minute under way."""
    known = [*samples, *([latest] if latest else [])]
    if not known:
        return ()
    first, last = known[-1].minute - MINUTES, known[-1].minute
    minutes: list[Minute] = []
    for before, after in pairwise(known):
        added = _added(before.totals, after.totals)
        over = max(1, after.minute - before.minute)
        share = added if over == 1 else {name: amount / over for name, amount in added.items()}
        # of a long silence only its end, and nothing of a future that somebody wrote into Redis
        shown = range(max(before.minute, first), min(before.minute + over, last + 1))
        minutes += [Minute(minute, share, measured=over == 1) for minute in shown]
    return tuple(minutes)


class Sampler(threading.Thread):
    """Takes a sample at each minute's begin, for as long as the process lives."""

    def __init__(
        self,
        client: redis.Redis,
        readings: Callable[[], CounterReadings | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="history", daemon=True)  # nobody waits for it at the end
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
        """Takes this minute's sample unless there is one; returns the seconds until the next minute."""
        readings = self._readings()
        if readings is not None:
            try:
                keep(self._client, sample(readings, self._clock()))
            except redis.RedisError as error:  # the probes say so, too: that minute is missing
                log.debug("no sample of this minute", {"reason": error})
        return MINUTE_SECONDS - self._clock() % MINUTE_SECONDS


def _added(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was added to each counter; one that fell was started anew, and one that is new began at 0."""
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
