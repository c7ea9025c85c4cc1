"""The pace of an account, against Redis's own clock and against one that hypothesis sets."""

import logging
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_servers import Server, wait_until

from worker.runtime.redis_client import connect
from worker.sending.pacing import LOOK_SECONDS, OpenPace, Pace

KEY = "pace:whatsapp:123"

# Takes tokens as fast as it may for some seconds. For each grant it prints the number of tokens, and Redis's time in
# microseconds before and after it.
TAKER = """
    import sys, time
    from worker.sending.pacing import Pace
    from worker.runtime.redis_client import connect
    client = connect(sys.argv[1])
    pace = Pace(client, sys.argv[2], float(sys.argv[3]))

    def now():
        seconds, microseconds = client.time()
        return seconds * 1_000_000 + microseconds

    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + float(sys.argv[4])
    while time.monotonic() < until:
        before = now()
        granted, wait_seconds = pace.take(1000)
        if granted:
            print(granted, before, now())
        time.sleep(wait_seconds)
    client.close()
"""

RATE, SECONDS = 200.0, 2.0


def take_together(url: str) -> list[list[int]]:
    """The grants of two takers that begin at the same moment: tokens, the time before and the time after."""
    command = [sys.executable, "-c", textwrap.dedent(TAKER), url, KEY, str(RATE), str(SECONDS)]
    takers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for taker in takers:
        assert taker.stdout
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin
        taker.stdin.write("go\n")
        taker.stdin.flush()
    printed = [taker.communicate(timeout=60)[0].splitlines() for taker in takers]
    assert all(printed), "one of them got nothing"
    return [[int(word) for word in line.split()] for lines in printed for line in lines]


def test_two_processes_share_a_pace(url: str) -> None:
    """Two processes together send as fast as one may, and hardly slower, and in no time faster."""
    for _ in range(3):
        grants = sorted(take_together(url), key=lambda grant: grant[2])
        for _, start, _ in grants:
            surely_since = 0
            for tokens, before, after in grants:
                surely_since += tokens if before >= start else 0
                assert surely_since <= RATE * max(0, after - start) / 1_000_000 + math.ceil(RATE / 10)
        if sum(tokens for tokens, _, _ in grants) >= RATE * SECONDS * 0.8:
            return
    pytest.fail("slower than the rate each time, and not only while the machine does other things")


def test_first_block(client: redis.Redis) -> None:
    """After silence a tenth of a second's worth is granted at once, then nothing until the time that it says."""
    pace = Pace(client, KEY, 20)
    began = time_of(client)
    assert pace.take(100)[0] == 2
    granted, wait_seconds = pace.take(100)
    assert granted <= 20 * (time_of(client) - began)
    assert 0 < wait_seconds <= 0.05
    wait_until(lambda: pace.take(1)[0], "the next one")


def test_slow_pace(client: redis.Redis) -> None:
    """One message every ten seconds: the second has to wait for ten."""
    pace = Pace(client, KEY, 0.1)
    assert pace.take(5) == (1, pytest.approx(10, abs=0.001))
    granted, wait_seconds = pace.take(5)
    assert granted == 0
    assert 9 < wait_seconds <= 10


def test_wants_little(client: redis.Redis) -> None:
    """Who wants one of ten gets one, and the other nine are available at once."""
    pace = Pace(client, KEY, 100)
    assert pace.take(1) == (1, 0.0)
    assert pace.take(0)[0] == 0
    assert pace.take(100)[0] in {9, 10}


def time_of(client: redis.Redis) -> float:
    """Redis's clock, in seconds."""
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1_000_000)


def test_accounts_do_not_wait_for_each_other(client: redis.Redis) -> None:
    """Another account has a pace of its own."""
    one, other = Pace(client, KEY, 1), Pace(client, "pace:whatsapp:456", 1)
    assert one.take(1)[0] == 1
    assert other.take(1)[0] == 1


def test_back_off(client: redis.Redis) -> None:
    """During a backoff that the provider asked for nobody gets a token, and after it there is no burst."""
    pace, elsewhere = Pace(client, KEY, 50), Pace(client, KEY, 50)
    before = time_of(client)
    pace.back_off(1.5)
    pace.back_off(0.1)  # a shorter one takes nothing away
    granted, wait_seconds = elsewhere.take(50)
    assert granted == 0
    assert before + 1.5 - time_of(client) <= wait_seconds <= 1.5
    granted_then: list[int] = []
    wait_until(lambda: granted_then.append(elsewhere.take(50)[0]) or granted_then[-1], "the end of the backoff")
    now = time_of(client)
    assert now >= before + 1.5
    assert granted_then[-1] <= 50 * (now - before - 1.5) + 1


def test_the_next_token_is_taken_ahead_of_others(client: redis.Redis) -> None:
    """It may be used when it would have been available, and everybody else waits for the one after it."""
    campaigns, reminders = Pace(client, KEY, 1), Pace(client, KEY, 1)
    assert campaigns.take(1)[0] == 1
    granted, usable_seconds = reminders.take_ahead()
    assert granted
    assert 0 < usable_seconds <= 1
    assert reminders.take_ahead()[0] is False
    granted_then, wait_seconds = campaigns.take(1)
    assert granted_then == 0
    assert usable_seconds < wait_seconds <= 2


def test_a_token_is_not_taken_ahead_out_of_a_backoff(client: redis.Redis) -> None:
    pace = Pace(client, KEY, 1)
    pace.back_off(30)
    granted, wait_seconds = pace.take_ahead()
    assert not granted
    assert wait_seconds > 25


def test_key_expires(client: redis.Redis) -> None:
    """Nothing is left in Redis when the bucket is full again."""
    pace = Pace(client, KEY, 0.1)
    pace.take(1)
    assert 0 < int(client.pttl(KEY)) <= 10_002
    pace.back_off(60)
    assert 30_000 < int(client.pttl(KEY)) <= 60_002


def poison(client: redis.Redis, value: object) -> None:
    """Puts a value where the pace is, as no worker would."""
    client.delete(KEY)
    if isinstance(value, list):
        client.rpush(KEY, *value)
    elif isinstance(value, set):
        client.sadd(KEY, *value)
    elif isinstance(value, dict):
        client.hset(KEY, mapping=value)
    elif value == "stream":
        client.xadd(KEY, {"a": "b"})
    elif value == "a year ahead":
        client.set(KEY, int((time_of(client) + 365 * 86_400) * 1_000_000))
    else:
        client.set(KEY, str(value))


POISON = ["", "abc", "nan", "inf", "-inf", "1e400", "-5", "0x10", "9" * 400, "12 34", "\n1", "a year ahead", "stream",
          ["a"], {"a"}, {"a": "b"}]  # fmt: skip


@pytest.mark.parametrize("value", POISON, ids=lambda value: repr(value)[:20])
def test_a_key_that_is_no_pace(value: object, client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as absent, whatever is asked first, is replaced, and the log names it once."""
    pace = Pace(client, KEY, 20)
    for ask in (lambda: pace.take(100), lambda: pace.back_off(0.05), lambda: pace.take(0)):
        caplog.clear()
        poison(client, value)
        ask()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == "pace put aside: no worker can have written it"
        assert record.args["pace"] == KEY  # type: ignore[index, call-overload]
        pace.take(100)
        assert len(caplog.records) == 1
    poison(client, value)
    assert pace.take(100)[0] == 2


def test_a_backoff_lasts_a_day_at_most(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """As a Retry-After does; and its own value is one that a worker can have written."""
    pace = Pace(client, KEY, 20)
    pace.back_off(365 * 86_400)
    granted, wait_seconds = pace.take(1)
    assert (granted, wait_seconds) == (0, pytest.approx(86_400, abs=5))
    assert 86_000_000 < int(client.pttl(KEY)) <= 86_401_000
    assert not caplog.records


def test_a_rate_of_less_than_one_a_day(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Its own value is one that a worker can have written, too."""
    pace = Pace(client, KEY, 1 / (7 * 86_400))
    assert pace.take(1)[0] == 1
    assert pace.take(1) == (0, pytest.approx(7 * 86_400, abs=5))
    assert not caplog.records


@pytest.mark.parametrize("rate", [0, None, -1, math.inf, math.nan])
def test_no_rate(rate: float, client: redis.Redis) -> None:
    """A rate has to be a positive, finite number."""
    with pytest.raises(ValueError, match="rate above 0"):
        Pace(client, KEY, rate)


def test_bad_key_and_bad_backoff(client: redis.Redis) -> None:
    """A key that is not a pace's, or a backoff of negative length, is refused."""
    with pytest.raises(ValueError, match="pace:<channel>:<account>"):
        Pace(client, "whatsapp:123", 1)
    with pytest.raises(ValueError, match="0 or more seconds"):
        Pace(client, KEY, 1).back_off(-1)


# Its clock is a key that the test sets. Redis ends a key's life by its own clock, so this key lives for ever.
CLOCK_OF_THE_TEST = """
local server = redis
local now = tonumber(server.call('GET', 'clock'))
local redis = {pcall = server.pcall, call = function(command, ...)
  if command ~= 'SET' then return server.call(command, ...) end
  local key, value = ...
  return server.call(command, key, value)
end}
"""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.one_of(st.integers(1, 5000).map(float), st.floats(0.05, 5000)),
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 50_000), st.integers(0, 2_000_000)),  # microseconds until the next take
            st.integers(1, 600),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_bound(rate: float, steps: list[tuple[int, int]], client: redis.Redis) -> None:
    """At any times and for any wants: no window sees more than its share and the capacity, no wait is too long."""
    pace = Pace(client, KEY, rate, CLOCK_OF_THE_TEST)
    client.delete(KEY)
    now = 1_790_000_000_000_000
    grants: list[tuple[int, int]] = []
    for pause, want in steps:
        client.set("clock", now)
        granted, wait_seconds = pace.take(want)
        assert 0 <= granted <= min(want, pace.capacity)
        assert (granted == 0) <= (wait_seconds > 0)
        assert wait_seconds <= 1 / rate + 0.000_002
        if wait_seconds > 0:  # it is as long as it says and no longer
            assert pace.take(1)[0] == 0
        grants.append((now, granted))
        now += pause
    for first, (start, _) in enumerate(grants):
        tokens = 0
        for at, granted in grants[first:]:
            tokens += granted
            assert tokens <= (at - start) / 1_000_000 * rate + pace.capacity + 1e-6
    if grants[-1][1] and wait_seconds > 0:
        client.set("clock", grants[-1][0] + round(wait_seconds * 1_000_000))
        assert pace.take(1)[0] == 1


def test_an_account_without_a_rate(client: redis.Redis) -> None:
    """It grants all that is wanted; during a backoff that another process was told of, nothing, also not ahead."""
    pace, elsewhere = OpenPace(client, KEY), OpenPace(client, KEY)
    assert (pace.take(100_000), pace.take_ahead()) == ((100_000, 0.0), (True, 0.0))
    assert pace.rate_per_second == math.inf
    elsewhere.back_off(1.5)
    elsewhere.back_off(0.1)  # a shorter one takes nothing away
    assert elsewhere.take(1)[0] == 0  # who was told knows it at once
    wait_until(lambda: pace.take(5)[0] == 0, "it is noticed")
    granted, wait_seconds = pace.take(5)
    assert granted == 0 < wait_seconds <= 1.5
    assert not pace.take_ahead()[0]
    wait_until(lambda: pace.take(5) == (5, 0.0) and elsewhere.take(5) == (5, 0.0), "the end of the backoff")


def test_a_backoff_holds_with_and_without_a_rate(client: redis.Redis) -> None:
    """Also where only some machines have the rate in their settings."""
    Pace(client, KEY, 50).back_off(30)
    granted, wait_seconds = OpenPace(client, KEY).take(5)
    assert granted == 0
    assert wait_seconds > 25


def test_what_an_account_without_a_rate_costs(client: redis.Redis) -> None:
    """One look, however often it is asked within a second."""
    pace = OpenPace(client, KEY)
    pace.take(1)
    before = int(client.info("stats")["total_commands_processed"])
    began = time.monotonic()
    asked = 0
    while time.monotonic() < began + LOOK_SECONDS / 2:
        asked += pace.take(1)[0]
    looked = int(client.info("stats")["total_commands_processed"]) - before
    assert asked > 100
    assert looked <= 6 * (1 + (time.monotonic() - began) / LOOK_SECONDS)  # a script has several commands, INFO is one


def test_an_account_without_a_rate_while_redis_is_away(new_server: Callable[..., Server]) -> None:
    """It grants all that is wanted; what it has read before goes on."""
    server = new_server()
    with connect(server.url) as client:
        resting, other = OpenPace(client, KEY), OpenPace(client, "pace:smtp:other")
        resting.back_off(60)
        assert resting.take(1)[0] == 0
        server.stop(kill=True)
        assert other.take(7) == (7, 0.0)
        wait_until(lambda: resting.take(1)[1] < 58, "it was looked at again", 30)
        assert resting.take(1)[0] == 0


@pytest.mark.parametrize("value", POISON, ids=lambda value: repr(value)[:20])
def test_a_key_that_is_no_backoff(value: object, client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as absent, and the log names it."""
    poison(client, value)
    assert OpenPace(client, KEY).take(7) == (7, 0.0)
    assert [record.getMessage() for record in caplog.records] == ["pace put aside: no worker can have written it"]
    assert not client.exists(KEY)
