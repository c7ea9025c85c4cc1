"""What `web` does about poisoned keys in Redis (worker/runtime/poisoned_keys.py): it warns, and puts them aside."""

import logging
from collections.abc import Iterator, Sequence

import redis

from worker.runtime.counter_readings import JOBS, CounterReadings
from worker.runtime.poisoned_keys import KEPT_SECONDS, PoisonedKey, put_aside

log = logging.getLogger(__name__)

NAMED = 5  # so many keys are named in a warning


def poison_warnings(poisoned: Sequence[PoisonedKey], asides: Sequence[str]) -> Iterator[str]:
    """One sentence for each key that is poisoned, and one about all that was put aside."""
    for each in poisoned[:NAMED]:
        yield (
            f'The key "{each.own.name}" in Redis {each.reason}. It is not read; `web` puts it aside within a minute.'
        )
    if len(poisoned) > NAMED:
        yield f"{len(poisoned) - NAMED} more keys of the worker in Redis are poisoned."
    if asides:
        names = ", ".join(f'"{each}"' for each in asides[:NAMED])
        more = f" and {len(asides) - NAMED} more" if len(asides) > NAMED else ""
        yield (
            f"Keys of the worker in Redis were poisoned. What was in them is kept for {KEPT_SECONDS // 86_400} days "
            f"as {names}{more}: find out what wrote it, then delete it."
        )


def repair(client: redis.Redis, poisoned: Sequence[PoisonedKey], readings: CounterReadings | None) -> None:
    """Puts aside what is poisoned; where Redis takes no writes, it stays as it is."""
    try:
        for each in poisoned:
            put_aside(client, each)
            log.warning("a poisoned key in Redis was put aside", {"key": each.own.name, "reason": each.reason})
            if each.own.name == JOBS and readings and readings.jobs:
                client.sadd(JOBS, *readings.jobs)  # or a job that runs once a day would be unknown until then
    except redis.RedisError as error:  # the page says that Redis takes no writes
        log.debug("poisoned keys not put aside", {"reason": error})
