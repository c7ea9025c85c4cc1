"""ConnectionPlaces: SMTP_CONNECTIONS, shared by all processes on all machines.

Redis has a hash for each account, with an entry for each process that sends: how many places it was granted, has and
wants, and the end of its lease. A thread of each process asks once a second, while it has or wants connections; one
script counts and grants, so together they never have more than the limit. A process that wants more than its fair
share gives the rest back as soon as another one wants it. Where there are more processes than places, they take
turns. No message and no batch costs a round trip.

A lease is short: the places of a dead process are free after LEASE_SECONDS. A frozen one uses none of its
connections afterwards until it was granted places again; so does one that Redis does not answer for so long.
"""

import logging
import threading
from contextlib import suppress

import redis

from worker.content.one_line import printable
from worker.providers.places import Connections, ConnectionUse
from worker.runtime.clock import boot_seconds
from worker.runtime.process_token import new_token
from worker.sending.pacing import REDIS_CLOCK

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
DRIFT_SECONDS = 0.5  # a process takes its lease for so much shorter, for clocks of different speed
ASK_SECONDS = 1.0  # from one question to the next
SOON_SECONDS = 0.25  # the same, while a place is waited for, or one has to be given back
TURN_SECONDS = 3.0  # how long a process keeps its place while others have none
IDLE_SECONDS = 15.0  # after it a process that sends nothing gives its places back, also when nobody wants them
JOIN_SECONDS = 2.0

# ARGV: the process's token, its open and wanted connections, the limit, lease and turn in microseconds.
# Returns the number of places granted, and what was wrong with the key, or ''.
_SHARE = (
    REDIS_CLOCK
    + """
local token, open, wanted, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, turn, wrong = tonumber(ARGV[5]), tonumber(ARGV[6]), ''
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then
  redis.call('DEL', KEYS[1])
  wrong = 'it is a ' .. kind .. ', not a hash'
end

-- who has and wants how many; an entry's lease that is over, or too long to be one, frees its places
local own = {token = token, granted = 0, wanted = wanted, since = now}
local all, of_others, entries = {}, 0, redis.call('HGETALL', KEYS[1])
for index = 1, #entries, 2 do
  local granted, has, wants, since, ends = string.match(entries[index + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not ends or tonumber(ends) <= now or tonumber(ends) > now + 2 * lease then
    redis.call('HDEL', KEYS[1], entries[index])
  elseif entries[index] == token then
    own.granted, own.since = tonumber(granted), tonumber(since)
  else
    of_others = of_others + tonumber(has)
    if tonumber(wants) > 0 then
      table.insert(all, {token = entries[index], granted = tonumber(granted), wanted = tonumber(wants),
                         since = tonumber(since)})
    end
  end
end
if wanted > 0 then table.insert(all, own) end

-- fair shares: who wants least comes first and gets at most an equal part of what is left, the last one the rest
local crowded = #all > limit
for _, each in ipairs(all) do
  each.turn, each.order = 0, 0
  if crowded then  -- one place each: first for who has just got it, then for who has waited longest
    each.wanted = 1
    if each.granted == 0 then
      each.turn, each.order = 1, -each.since
    else
      each.turn, each.order = now - each.since < turn and 2 or 0, each.since
    end
  end
end
table.sort(all, function(a, b)
  if a.wanted ~= b.wanted then return a.wanted < b.wanted end
  if a.turn ~= b.turn then return a.turn < b.turn end
  if a.order ~= b.order then return a.order < b.order end
  return a.token < b.token
end)
local left, others_wait = limit, false
own.share = 0
for index, each in ipairs(all) do
  each.share = math.min(each.wanted, math.floor(left / (#all - index + 1)))
  left = left - each.share
  others_wait = others_wait or (each.token ~= token and each.granted < each.share)
end

local free = math.max(0, limit - of_others)
local granted = math.min(own.share, free)
if not others_wait then granted = math.min(math.max(wanted, open), free) end
if (granted > 0) ~= (own.granted > 0) then own.since = now end
redis.call('HSET', KEYS[1], token, string.format('%.0f %.0f %.0f %.0f %.0f',
  granted, math.max(open, granted), wanted, own.since, now + lease))
redis.call('PEXPIRE', KEYS[1], math.ceil(lease / 1000))
return {granted, wrong}
"""
)


class ConnectionPlaces:
    """The places of this process at one account: ``SharedPlaces`` of worker/providers/places.py."""

    def __init__(self, client: redis.Redis, account: str, limit: int) -> None:
        """``account``: smtp:<host>. Does not ask yet."""
        self.key = f"worker:connections:{account}"
        self._client = client
        self._limit = limit
        self._token = new_token()
        self._script = client.register_script(_SHARE)
        self._connections: Connections | None = None
        self._guard = threading.Lock()  # guards the thread's start, and what is wanted
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._most_wanted = 0  # since the latest question
        self._asked_for = 0  # by the latest question
        self._asking = False
        self._granted = 0
        self._lease_until = 0.0  # both by boot_seconds
        self._wanted_at = 0.0
        self._failing = False
        self._closed = False

    @property
    def number(self) -> int:
        return self._granted if boot_seconds() < self._lease_until else 0

    def may_open(self, connections: int) -> bool:
        return not self._asking and connections < self.number

    def want(self, number: int) -> None:
        number = min(number, self._limit)
        with self._guard:
            self._most_wanted = max(self._most_wanted, number)
            if number > self._asked_for:
                self._wake.set()
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name=self.key, daemon=True)
                thread.start()
                self._thread = thread

    def serve(self, connections: Connections) -> None:
        self._connections = connections

    def close(self) -> None:
        with self._guard:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._wake.set()
        thread.join(JOIN_SECONDS)
        self._give_back()

    def _run(self) -> None:
        assert self._connections is not None  # noqa: S101 - set before anything is wanted
        while not self._closed:
            self._wake.clear()
            self._wake.wait(self._next(self._connections))

    def _next(self, connections: Connections) -> float | None:
        """Asks, or gives back; returns the seconds until the next time, None when nothing is open or wanted."""
        self._asking = True  # what is opened now would not be counted
        use = connections.use()
        with self._guard:
            wanted = min(max(self._most_wanted, use.wanted), self._limit)
            self._most_wanted, self._asked_for = 0, wanted
        now = boot_seconds()
        if wanted:
            self._wanted_at = now
        if not (use.open or wanted):
            self._granted, self._asking = 0, False
            self._give_back()
            return None
        if not wanted and now - self._wanted_at > IDLE_SECONDS:
            self._granted = 0
            connections.keep(0)
            return SOON_SECONDS
        pause_seconds = self._ask(use, wanted)
        self._asking = False
        connections.keep(self.number)
        return pause_seconds

    def _ask(self, use: ConnectionUse, wanted: int) -> float:
        began = boot_seconds()
        numbers = (use.open, wanted, self._limit, round(LEASE_SECONDS * 1e6), round(TURN_SECONDS * 1e6))
        try:
            granted, wrong = self._script([self.key], [self._token, *numbers])
        except redis.RedisError as error:
            if not self._failing:
                log.warning("SMTP_CONNECTIONS cannot be shared out, no new connection is opened", {"reason": error})
            self._failing = True
            # Redis may have counted the question although its answer was lost: only what is open is certain
            self._granted = min(self._granted, use.open)
            return ASK_SECONDS
        self._failing = False
        if wrong:
            log.warning(
                "connections put aside: no worker can have written it",
                {"connections": self.key, "reason": printable(wrong)},
            )
        self._granted, self._lease_until = int(granted), began + LEASE_SECONDS - DRIFT_SECONDS
        return SOON_SECONDS if use.open > self._granted or (wanted and not self._granted) else ASK_SECONDS

    def _give_back(self) -> None:
        with suppress(redis.RedisError):  # then the lease ends by itself
            self._client.hdel(self.key, self._token)
