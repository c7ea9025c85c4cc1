"""How fast an account may send, counted in Redis over all processes and machines.

A token bucket in the form of the generic cell rate algorithm: Redis keeps one number for each account, the time at
which its bucket would be full again, and one script moves it by Redis's own clock. Bursts are small (what may be sent
in 100 ms), so no second sees much more than the rate, and many workers share it evenly.

A key that no worker can have written (of another type, no number, a time more than a day ahead) counts as absent: it
is deleted and the log names it. Otherwise it would fail every tick, or block an account for ever.
"""

import logging
import math

import redis

from worker.content.one_line import printable
from worker.runtime.clock import boot_seconds

log = logging.getLogger(__name__)

LONGEST_BACKOFF_SECONDS = 86_400.0  # a day, as for Retry-After
LOOK_SECONDS = 1.0  # a process looks no more often whether an account without a rate backs off
UNAVAILABLE_SECONDS = 10.0  # until it looks again when Redis did not answer
TOLERANCE_SECONDS = 3_600.0  # Redis's clock may have been set back by so much since a backoff began

# Lua that sets ``now`` to Redis's own time, in microseconds.
REDIS_CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# Lua that sets ``full_at`` to the key's time, 0 when there is none, and ``wrong`` to what is wrong with it, or ''.
# ``limit`` is the farthest time that a key can have.
_READ = """
local wrong, stored = '', redis.pcall('GET', KEYS[1])
if type(stored) == 'table' then
  if not string.find(stored.err, 'WRONGTYPE', 1, true) then return stored end
  wrong = 'it is a ' .. redis.call('TYPE', KEYS[1]).ok .. ', not a string'
end
local full_at = stored and wrong == '' and tonumber(stored) or 0
if stored and wrong == '' and not (string.find(stored, '^%d+$') and full_at <= limit) then
  wrong = 'its value is no time of a pace: ' .. string.sub(stored, 1, 40)
end
if wrong ~= '' then
  full_at = 0
  redis.call('DEL', KEYS[1])
end
"""

# All times are whole microseconds, rounded up: an account is at worst a microsecond too slow. %.0f, because Lua's own
# way to write numbers keeps 14 digits, and these have 16.
_TAKE = (
    """
local interval, want, capacity = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local burst = (capacity - 1) * interval
local limit = now + math.max(tonumber(ARGV[4]), interval) + burst
"""
    + _READ
    + """
full_at = math.max(full_at, now)
local granted = math.floor((now + burst - full_at) / interval + 1 + 1e-9)
granted = math.max(0, math.min(want, granted, capacity))
if granted > 0 then
  full_at = math.ceil(full_at + granted * interval)
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
end
return {granted, string.format('%.0f', math.max(0, math.ceil(full_at - burst - now))), wrong}
"""
)

_BACK_OFF = (
    """
local burst = tonumber(ARGV[2])
local limit = now + tonumber(ARGV[3]) + burst
local wanted = math.ceil(now + tonumber(ARGV[1]) + burst)
"""
    + _READ
    + """
if wanted > full_at then
  redis.call('SET', KEYS[1], string.format('%.0f', wanted), 'PX', math.ceil((wanted - now) / 1000) + 1)
end
return wrong
"""
)

_LOOK = (
    """
local limit = now + tonumber(ARGV[1])
"""
    + _READ
    + """
return {string.format('%.0f', math.max(0, full_at - now)), wrong}
"""
)


class Pace:
    """The pace of one account. ``key`` is ``pace:<channel>:<account>``; it expires when the bucket is full.

    ``capacity`` is the burst that is allowed after a pause: what may be sent in a tenth of a second, at least one. No
    window of one second sees more than rate + capacity tokens.
    """

    def __init__(
        self, client: redis.Redis, key: str, rate_per_second: float, clock_script: str = REDIS_CLOCK
    ) -> None:
        """Raises ValueError for a rate that is not above 0, and for a key that does not begin with ``pace:``."""
        if not rate_per_second or not 0 < rate_per_second < math.inf:
            raise ValueError(f"a pace needs a rate above 0 per second, not {rate_per_second!r}")
        if not key.startswith("pace:"):
            raise ValueError(f"the key of a pace is pace:<channel>:<account>, not {key!r}")
        self.key = key
        self.rate_per_second = rate_per_second
        self.capacity = max(1, math.ceil(rate_per_second / 10))
        self._interval = 1_000_000 / rate_per_second  # microseconds from token to token
        self._longest = round((LONGEST_BACKOFF_SECONDS + TOLERANCE_SECONDS) * 1_000_000)
        self._take = client.register_script(clock_script + _TAKE)
        self._back_off = client.register_script(clock_script + _BACK_OFF)

    def take(self, want: int) -> tuple[int, float]:
        """How many of ``want`` tokens are granted now, and the seconds until the next one is available.

        Never waits, and grants at most ``capacity`` at once. Raises redis.RedisError.
        """
        return self._taken(want, self.capacity)

    def take_ahead(self) -> tuple[bool, float]:
        """Takes the next token, also one that is not available yet, so that nobody else gets it: whether that was
        granted, and the seconds until it may be used; if not granted, until it can be asked for again.

        One token is taken ahead at a time. Never waits. Raises redis.RedisError.
        """
        granted, wait_seconds = self._taken(1, self.capacity + 1)
        return bool(granted), wait_seconds

    def back_off(self, seconds: float) -> None:
        """No token of this key is granted for so long, at most a day, and no burst after it.

        A longer backoff stays in force. Raises redis.RedisError.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a backoff lasts 0 or more seconds, not {seconds!r}")
        burst = (self.capacity - 1) * self._interval
        microseconds = min(seconds, LONGEST_BACKOFF_SECONDS) * 1_000_000
        self._report(self._back_off([self.key], [repr(microseconds), repr(burst), self._longest]))

    def _taken(self, want: int, capacity: int) -> tuple[int, float]:
        arguments: list[str | int] = [repr(self._interval), want, capacity, self._longest]
        granted, wait_microseconds, wrong = self._take([self.key], arguments)
        self._report(wrong)
        return int(granted), int(wait_microseconds) / 1_000_000

    def _report(self, wrong: str) -> None:
        if wrong:
            log.warning(
                "pace put aside: no worker can have written it", {"pace": self.key, "reason": printable(wrong)}
            )


class OpenPace(Pace):
    """The pace of an account without a rate: it grants all that is wanted, and nothing during a backoff.

    Redis is asked once a second at most, by each process that sends. While it is unavailable there is no backoff.
    """

    def __init__(self, client: redis.Redis, key: str, clock_script: str = REDIS_CLOCK) -> None:
        """Raises ValueError for a key that does not begin with ``pace:``."""
        super().__init__(client, key, 1.0, clock_script)
        self.rate_per_second = math.inf
        self._look = client.register_script(clock_script + _LOOK)
        self._look_at = 0.0  # both by boot_seconds
        self._backs_off_until = 0.0

    def take(self, want: int) -> tuple[int, float]:
        """``want``, or 0 and the seconds until the end of the backoff."""
        wait_seconds = self._wait_seconds()
        return (0, wait_seconds) if wait_seconds else (want, 0.0)

    def take_ahead(self) -> tuple[bool, float]:
        wait_seconds = self._wait_seconds()
        return not wait_seconds, wait_seconds

    def back_off(self, seconds: float) -> None:
        super().back_off(seconds)
        self._look_at = 0.0

    def _wait_seconds(self) -> float:
        if boot_seconds() >= self._look_at:
            self._read_backoff()
        return max(0.0, self._backs_off_until - boot_seconds())

    def _read_backoff(self) -> None:
        self._look_at = boot_seconds() + LOOK_SECONDS
        try:
            wait_microseconds, wrong = self._look([self.key], [self._longest])
        except redis.RedisError as error:
            log.debug("backoff of an account not read, none is assumed", {"pace": self.key, "reason": error})
            self._look_at = boot_seconds() + UNAVAILABLE_SECONDS
            return
        self._backs_off_until = boot_seconds() + int(wait_microseconds) / 1_000_000
        self._report(wrong)
