"""Who calls the public address, and how often anybody may."""

from ipaddress import ip_network

import pytest

from worker.web.callers import BURST, CALLERS_KEPT, REQUESTS_PER_SECOND, RateLimit, caller_of

PROXIES = [ip_network("127.0.0.0/8"), ip_network("::1"), ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "caller"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # a stranger's word counts nothing
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the last one is the proxy's
        ("127.0.0.1", "198.51.100.1,203.0.113.7 , 10.1.2.3", "203.0.113.7"),
        ("127.0.0.1", "10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7, nonsense", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7:51234", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, [2001:db8:1:2::9]:51234", "2001:db8:1:2::/64"),
        ("127.0.0.1", "," * 5000, "127.0.0.1"),
        ("::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "198.51.100.1", "2001:db8:1:2::/64"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
    ],
)
def test_the_caller(peer: str, forwarded_for: str, caller: str) -> None:
    assert caller_of(peer, forwarded_for, PROXIES) == caller


def test_the_limit() -> None:
    """A burst, then so many a second, for each caller alone."""
    now = [1000.0]
    limit = RateLimit(lambda: now[0])
    assert [limit.allows("a") for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False]
    assert limit.allows("b")
    now[0] += 1.5 / REQUESTS_PER_SECOND
    assert [limit.allows("a"), limit.allows("a")] == [True, False]
    now[0] += 3600
    assert [limit.allows("a") for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False], "no more than a burst"


def test_only_so_many_callers_are_kept() -> None:
    """A flood of addresses makes others be forgotten, but not one that goes on calling."""
    limit = RateLimit(lambda: 1000.0)
    for _ in range(int(BURST)):
        limit.allows("loud")
    for number in range(CALLERS_KEPT * 2):
        limit.allows(str(number))
        if number % 100 == 0:
            assert not limit.allows("loud")
    assert limit.allows("0"), "forgotten, so it begins anew"
