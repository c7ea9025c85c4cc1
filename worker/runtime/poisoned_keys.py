"""The worker's keys in Redis, read and repaired whatever somebody else wrote into them.

A key of another type, an entry that is too long, or a value that cannot be what it should be is **poisoned**. Readers
leave it out and name it. What is poisoned is put aside, so that the worker can write its own value again:

    <key>:poisoned:<n>   a whole key, renamed; n from 1 to 9, and the next one replaces the ninth
    <key>:poisoned       single entries of a key, as a hash

Both are kept for KEPT_SECONDS after the latest of them, for whoever wants to know who wrote it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis
from redis.client import NEVER_DECODE

log = logging.getLogger(__name__)

KEPT_SECONDS = 7 * 86_400
LONGEST_BYTES = 16_384  # of a field, a value, a member of a set or an entry of a list
MOST_ENTRIES = 10_000  # of a hash or set
_SHOWN_BYTES = 60  # of an entry, in a reason

_LUA_LIMITS = f"""
local KEPT_SECONDS, LONGEST, ASIDE, LAST_ASIDE = {KEPT_SECONDS}, {LONGEST_BYTES}, ':poisoned', 9
"""

# For scripts that write: keep_type(key, kind) returns the type that was put aside, false if there was none.
LUA_PUT_ASIDE = (
    _LUA_LIMITS
    + """
local function put_key_aside(key)
  local aside
  for number = 1, LAST_ASIDE do
    aside = key .. ASIDE .. ':' .. number
    if redis.call('EXISTS', aside) == 0 then break end
  end
  redis.call('RENAME', key, aside)
  redis.call('EXPIRE', aside, KEPT_SECONDS)
end
local function keep_type(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == kind or found == 'none' then return false end
  put_key_aside(key)
  return found
end
local function put_entry_aside(key, kind, entry)
  keep_type(key .. ASIDE, 'hash')
  redis.call('HSET', key .. ASIDE, entry, kind == 'hash' and redis.call('HGET', key, entry) or '')
  redis.call('EXPIRE', key .. ASIDE, KEPT_SECONDS)
  redis.call(kind == 'hash' and 'HDEL' or 'SREM', key, entry)
end
"""
)

# KEYS[1]; ARGV: its type, the most entries, then the entries and their values, which may be others by now
_PUT_ASIDE = (
    LUA_PUT_ASIDE
    + """
local key, kind, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
if keep_type(key, kind) or kind == 'list' then return end
if redis.call(kind == 'hash' and 'HLEN' or 'SCARD', key) > most then return put_key_aside(key) end
for index = 3, #ARGV, 2 do
  local entry, value = ARGV[index], ARGV[index + 1]
  local now = kind == 'set' and redis.call('SISMEMBER', key, entry) == 1 and value
  if kind == 'hash' then now = redis.call('HGET', key, entry) end
  if now == value then put_entry_aside(key, kind, entry) end
end
for _, entry in ipairs(redis.call(kind == 'hash' and 'HKEYS' or 'SMEMBERS', key)) do
  if #entry > LONGEST or kind == 'hash' and redis.call('HSTRLEN', key, entry) > LONGEST then
    put_entry_aside(key, kind, entry)
  end
end
"""
)

# KEYS; ARGV: for each key its type and the most entries. Returns for each key its type, size, entries (of a hash
# field and value by turns), and the beginnings of entries that are too long; then the keys that were put aside.
# Nothing that is too long leaves the server.
_READ = (
    _LUA_LIMITS
    + """
local answers, asides, exist = {}, {}, {}
for index, key in ipairs(KEYS) do
  local kind, most = ARGV[2 * index - 1], tonumber(ARGV[2 * index])
  local found, size, entries, long = redis.call('TYPE', key).ok, 0, {}, {}
  if found == kind and kind == 'list' then
    size = redis.call('LLEN', key)
    for place = 0, math.min(size, most) - 1 do
      local entry = redis.call('LINDEX', key, place)
      if #entry <= LONGEST then entries[#entries + 1] = entry end
    end
  elseif found == kind then
    size = redis.call(kind == 'hash' and 'HLEN' or 'SCARD', key)
    local all = size <= most and redis.call(kind == 'hash' and 'HKEYS' or 'SMEMBERS', key) or {}
    for _, entry in ipairs(all) do
      if #entry > LONGEST or kind == 'hash' and redis.call('HSTRLEN', key, entry) > LONGEST then
        long[#long + 1] = string.sub(entry, 1, LONGEST)
      else
        entries[#entries + 1] = entry
        if kind == 'hash' then entries[#entries + 1] = redis.call('HGET', key, entry) end
      end
    end
  end
  answers[index] = {found, size, entries, long}
  asides[#asides + 1] = key .. ASIDE
  for number = 1, LAST_ASIDE do asides[#asides + 1] = key .. ASIDE .. ':' .. number end
end
if redis.call('EXISTS', unpack(asides)) > 0 then
  for _, aside in ipairs(asides) do
    if redis.call('EXISTS', aside) == 1 then exist[#exist + 1] = aside end
  end
end
return {answers, exist}
"""
)
_KEYS_AT_ONCE = 100  # Lua's unpack has a limit
_ENTRIES_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key of the worker: a hash, set or list. Of a list no more than ``most`` entries are read."""

    name: str
    kind: str
    most: int = MOST_ENTRIES


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What a key holds. ``entries`` are those of a set or list; ``fields`` those of a hash."""

    own: OwnKey
    found: str  # Redis's name of its type, 'none' when there is no such key
    size: int
    entries: tuple[bytes, ...]
    too_long: tuple[bytes, ...]  # the beginnings of entries that were not read
    asides: tuple[str, ...]  # the keys in which something of it was put aside

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        return dict(zip(self.entries[::2], self.entries[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class BadEntry:
    """An entry that its reader cannot use: a field with its value, or a member of a set without one."""

    entry: bytes
    value: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class PoisonedKey:
    """A key that is poisoned, or has entries that are."""

    own: OwnKey
    reason: str  # the first one, as the end of a sentence that begins with the key
    entries: tuple[tuple[bytes, bytes], ...] = ()  # entry and value ('' in a set); empty: the whole key, or too long


def read_keys(client: redis.Redis, keys: Sequence[OwnKey]) -> list[StoredKey]:
    """The keys' contents, in one round trip for each hundred. Raises redis.RedisError."""
    stored: list[StoredKey] = []
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        limits = [str(limit) for key in some for limit in (key.kind, key.most)]
        names = [key.name for key in some]
        # as bytes: what somebody else wrote need not be text
        command = ("EVAL", _READ, len(some), *names, *limits)
        answers, exist = client.execute_command(*command, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
        asides = [each.decode("utf-8", "replace") for each in exist]
        for key, (found, size, entries, too_long) in zip(some, answers, strict=True):
            own_asides = tuple(each for each in asides if each.startswith(f"{key.name}:poisoned"))
            stored.append(StoredKey(key, found.decode(), size, tuple(entries), tuple(too_long), own_asides))
    return stored


def poisoned(stored: StoredKey, bad: Sequence[BadEntry] = ()) -> PoisonedKey | None:
    """How the key is poisoned, None if it is not. ``bad``: what its reader cannot use."""
    own = stored.own
    if stored.found not in (own.kind, "none"):
        return PoisonedKey(own, f"is a {stored.found}, not a {own.kind}")
    if stored.size > own.most and own.kind != "list":
        return PoisonedKey(own, f"has {stored.size:,} entries, at most {own.most:,} are possible")
    reasons = [f"{_shown(each.entry)} {each.reason}" for each in bad[:1]]
    reasons += [f"{_shown(entry)} is too long" for entry in stored.too_long[:1]]
    if not reasons:
        return None
    number = len(bad) + len(stored.too_long)
    more = f", and {number - 1:,} more" if number > 1 else ""
    entries = tuple((each.entry, each.value) for each in bad)
    return PoisonedKey(own, f"has an entry that cannot be read: {reasons[0]}{more}", entries)


def put_aside(client: redis.Redis, key: PoisonedKey) -> None:
    """Puts aside what is still poisoned of the key. Raises redis.RedisError."""
    pairs = [each for pair in key.entries[:_ENTRIES_AT_ONCE] for each in pair]
    client.eval(_PUT_ASIDE, 1, key.own.name, key.own.kind, str(key.own.most), *pairs)


def read_own(client: redis.Redis, key: OwnKey, fault: Callable[[bytes, bytes], str] = lambda *_: "") -> StoredKey:
    """A key as the one program reads it that writes it: what is poisoned is put aside first, and named in the log.

    ``fault``: what is wrong with an entry and its value (b"" in a set), as a reason; '' if nothing is. The entries
    that are wrong are still in the answer. Raises redis.RedisError.
    """
    [stored] = read_keys(client, [key])
    pairs = stored.fields.items() if key.kind == "hash" else ((entry, b"") for entry in stored.entries)
    bad = [BadEntry(entry, value, reason) for entry, value in pairs if (reason := fault(entry, value))]
    if found := poisoned(stored, bad):
        put_aside(client, found)
        log.warning("a poisoned key in Redis was put aside", {"key": key.name, "reason": found.reason})
    return stored


def _shown(text: bytes) -> str:
    beginning = text[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return repr(beginning) + ("..." if len(text) > _SHOWN_BYTES else "")
