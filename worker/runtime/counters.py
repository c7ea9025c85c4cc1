"""What a job reports about itself: counters, gauges and its own state, as hashes in Redis that `web` reads.

    worker:counters     messages_total{channel="email",outcome="sent"} -> a number that only grows
    worker:gauges       the same kind of field -> the latest value
    worker:job:<job>    running, last_run, last_success, interval, durations, last_error, refused_by, pid, host,
                        heartbeat, stuck
    worker:jobs         the set of the names of all jobs that ever ran

``add``, ``gauge`` and ``job_ended`` work in memory only; ``flush`` writes everything in one round trip. While Redis
is unavailable, everything is kept in memory and added up.
"""

import json
import logging
import math
import os
import secrets
import socket
import threading
from datetime import UTC, datetime

import redis

from worker.runtime.counter_readings import (
    BUCKET,
    COUNTERS,
    DURATION_BOUNDS_SECONDS,
    GAUGES,
    JOBS,
    job_key,
    read_all,
    series_name,
)
from worker.runtime.poisoned_keys import LUA_PUT_ASIDE

__all__ = ["Counters", "read_all"]

log = logging.getLogger(__name__)

ERROR_LENGTH = 500
_BATCH_MEMORY_SECONDS = 86_400

# A batch whose answer was lost is sent again with the same number, and the server ignores a number that it has
# seen: so nothing is lost and nothing is counted twice, which MULTI alone could not guarantee. The number is
# written first: if the server takes no writes, the script ends there and nothing is done. A key of another type, and
# a field that cannot be added to, are put aside. A single command that fails must not stop the others.
_APPLY = (
    LUA_PUT_ASIDE
    + """
keep_type(KEYS[1], 'string')
if redis.call('GET', KEYS[1]) == ARGV[1] then return {{}, {}} end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local refused, aside = {}, {}
local function failed(answer) return type(answer) == 'table' and answer.err end
for _, command in ipairs(cjson.decode(ARGV[3])) do
  local name, key, field = command[1], command[2], command[3]
  local found = keep_type(key, name == 'SADD' and 'set' or 'hash')
  if found then aside[#aside + 1] = key .. ': WRONGTYPE, it was a ' .. found end
  local answer
  if name ~= 'HDELIF' then
    answer = redis.pcall(unpack(command))
    if name == 'HINCRBYFLOAT' and failed(answer) and redis.call('HEXISTS', key, field) == 1 then
      aside[#aside + 1] = key .. ', field ' .. field .. ': ' .. answer.err
      put_entry_aside(key, 'hash', field)
      answer = redis.pcall(unpack(command))
    end
  elseif redis.call('HGET', key, field) == command[4] then
    answer = redis.pcall('HDEL', key, field)
  end
  if failed(answer) then refused[#refused + 1] = key .. ': ' .. answer.err end
end
return {refused, aside}
"""
)


class Counters:
    """The counters of one process of ``job``. Thread-safe; no method raises an error of Redis."""

    def __init__(self, client: redis.Redis, job: str) -> None:
        self.job = job
        self._apply = client.register_script(_APPLY)
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._process = f"{self._host}:{self._pid}:{secrets.token_hex(8)}"
        self._pending = threading.Lock()  # guards _sums, _values, _dropped and _ended
        self._sums: dict[tuple[str, str], float] = {}
        self._values: dict[tuple[str, str], str] = {}
        self._dropped: list[str] = []  # gauges
        self._ended = False
        self._writing = threading.Lock()  # guards _batch, _number and _failing
        self._batch: list[list[str]] = []  # commands that Redis has not confirmed yet
        self._number = 0  # of the batch
        self._failing = False

    def add(self, metric: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter, in memory. Raises ValueError for an amount below 0 and for an invalid name."""
        if not 0 <= amount < math.inf:
            raise ValueError(f"a counter only grows, not by {amount}")
        self._add((COUNTERS, series_name(metric, labels)), amount)

    def gauge(self, metric: str, value: float, **labels: str) -> None:
        """Sets a gauge, in memory; ``flush`` writes the latest value."""
        with self._pending:
            self._values[GAUGES, series_name(metric, labels)] = repr(float(value))

    def drop_gauge(self, metric: str, **labels: str) -> None:
        """Forgets a gauge that nobody sets any more, in memory; ``flush`` deletes it."""
        with self._pending:
            self._dropped.append(series_name(metric, labels))

    def job_started(self, at: datetime, interval_seconds: float) -> None:
        """Reports that a tick begins in this process, and writes it at once. ``at`` without a zone is UTC."""
        self._set(
            running=self._process,
            pid=str(self._pid),
            host=self._host,
            last_run=_unix(at),
            heartbeat=_unix(at),
            stuck="0",
            interval=repr(float(interval_seconds)),
        )
        self.flush()

    def job_ended(
        self, at: datetime, outcome: str, duration_seconds: float, error: str | None, refused_by: str = ""
    ) -> None:
        """Reports how a tick ended, in memory: success, failure, or skipped (another process has the lock).

        ``refused_by``: the server that answers, but takes no writes, when the tick failed because of that.
        """
        self.add("job_runs_total", job=self.job, outcome=outcome)
        if outcome == "skipped":
            return  # the job's state belongs to the process that has the lock
        bound = next(bound for bound in DURATION_BOUNDS_SECONDS if duration_seconds <= bound)
        for field, amount in (
            (f"{BUCKET}{bound}", 1.0),
            ("duration_sum", duration_seconds),
            ("duration_count", 1.0),
        ):
            self._add((job_key(self.job), field), amount)
        self._set(heartbeat=_unix(at), stuck="0")
        if outcome == "success":
            self._set(last_success=_unix(at))
        if error is not None:
            self._set(last_error=error[:ERROR_LENGTH], last_error_at=_unix(at), refused_by=refused_by)
        with self._pending:
            self._ended = True
            self._values.pop((job_key(self.job), "running"), None)

    def heartbeat(self, at: datetime, stuck: int = 0) -> None:
        """Reports that the job is alive, and writes it at once. For the process that has the lock.

        ``stuck``: how many requests it waits for that have had no answer for long, when that is all that it does.
        """
        self._set(heartbeat=_unix(at), pid=str(self._pid), host=self._host, stuck=str(stuck))
        self.flush()

    def flush(self) -> bool:
        """Writes everything that is pending, in one round trip. False when Redis did not take it; it is kept."""
        with self._writing:
            while self._batch or self._next_batch():
                try:
                    self._write()
                except redis.RedisError as error:
                    self._log_once(error)
                    return False
                self._batch = []
                self._failing = False
            return True

    def _log_once(self, error: redis.RedisError) -> None:
        if not self._failing:
            log.warning(
                "counters cannot be written to Redis, they are kept in memory", {"job": self.job, "reason": error}
            )
        self._failing = True

    def _add(self, series: tuple[str, str], amount: float) -> None:
        with self._pending:
            self._sums[series] = self._sums.get(series, 0.0) + amount

    def _set(self, **fields: str) -> None:
        with self._pending:
            self._ended = self._ended and "running" not in fields
            for field, text in fields.items():
                self._values[job_key(self.job), field] = text

    def _next_batch(self) -> bool:
        """Prepares the commands of the next write; False when there is nothing to write."""
        with self._pending:
            sums, self._sums = self._sums, {}
            values, self._values = self._values, {}
            dropped, self._dropped = self._dropped, []
            ended, self._ended = self._ended, False
        self._batch = [["HDEL", GAUGES, name] for name in dropped]
        self._batch += [["HINCRBYFLOAT", key, field, repr(amount)] for (key, field), amount in sums.items()]
        self._batch += [["HSET", key, field, text] for (key, field), text in values.items()]
        if any(key == job_key(self.job) for key, _ in values):
            self._batch.append(["SADD", JOBS, self.job])
        if ended:  # only if no other process has got the lock meanwhile and reported that it is running
            self._batch.append(["HDELIF", job_key(self.job), "running", self._process])
        self._number += bool(self._batch)
        return bool(self._batch)

    def _write(self) -> None:
        keys = [f"worker:batch:{self._process}"]
        batch = json.dumps(self._batch, ensure_ascii=False).encode("utf-8", "replace")
        refused, aside = self._apply(keys, [self._number, _BATCH_MEMORY_SECONDS, batch])
        if aside:
            what = {"job": self.job, "keys": len(aside), "first": aside[0]}
            log.warning("poisoned keys in Redis were put aside", what)
        if refused:
            log.error("Redis refused counters", {"job": self.job, "refused": len(refused), "reason": refused[0]})


def _unix(at: datetime) -> str:
    return repr((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
