"""How fast an account may send, counted in Redis over all processes and machines.

A token bucket in the form of the generic cell rate algorithm: Redis keeps one number for each account, the time at
which its bucket would be full again, and one script moves it by Redis's own clock. Bursts are small (what may be sent
in 100 ms), so no second sees much more than the rate, and many workers share it evenly.
"""

import math

import redis

# Lua that sets ``now`` to Redis's own time, in microseconds.
REDIS_CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# All times are whole microseconds, rounded up: an account is at worst a microsecond too slow. %.0f, because Lua's own
# way to write numbers keeps 14 digits, and these have 16.
_TAKE = """
local interval, want, capacity = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local burst = (capacity - 1) * interval
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local granted = math.floor((now + burst - full_at) / interval + 1 + 1e-9)
granted = math.max(0, math.min(want, granted, capacity))
if granted > 0 then
  full_at = math.ceil(full_at + granted * interval)
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
end
return {granted, string.format('%.0f', math.max(0, math.ceil(full_at - burst - now)))}
"""

_BACK_OFF = """
local full_at = math.ceil(now + tonumber(ARGV[1]) + tonumber(ARGV[2]))
if full_at > tonumber(redis.call('GET', KEYS[1]) or 0) then
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
end
"""


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
        self._take = client.register_script(clock_script + _TAKE)
        self._back_off = client.register_script(clock_script + _BACK_OFF)

    def take(self, want: int) -> tuple[int, float]:
        """How many of ``want`` tokens are granted now, and the seconds until the next one is available.

        Never waits, and grants at most ``capacity`` at once. Raises redis.RedisError.
        """
        granted, wait_microseconds = self._take([self.key], [repr(self._interval), want, self.capacity])
        return int(granted), int(wait_microseconds) / 1_000_000

    def back_off(self, seconds: float) -> None:
        """No token of this key is granted for so long, and no burst after it. A longer backoff stays in force.

        Raises redis.RedisError.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a backoff lasts 0 or more seconds, not {seconds!r}")
        burst = (self.capacity - 1) * self._interval
        self._back_off([self.key], [repr(seconds * 1_000_000), repr(burst)])
