"""Leases and clocks: when claims are renewed, which claims are orphaned, and time that also passes during sleep."""

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from worker.runtime.clock import boot_seconds, utc_now
from worker.runtime.lease import LEASE_SECONDS, RENEW_SECONDS, Lease
from worker.runtime.process_token import new_token

ELSEWHERE = "another-host:1:abc"


def dead_process() -> str:
    """The token of a process of this host that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    return f"{socket.gethostname()}:{ended.pid}:abc"


def test_every_lease_has_a_holder_of_its_own() -> None:
    """The holder names this host and process, and no other lease has the same."""
    first, second = Lease(), Lease()
    assert first.holder.split(":")[:2] == [socket.gethostname(), str(os.getpid())]
    assert first.holder != second.holder


def test_claims_are_renewed_in_time() -> None:
    """A renewal is due once in RENEW_SECONDS, which is several times before a claim expires."""
    now = [1000.0]
    lease = Lease(clock=lambda: now[0])
    due = []
    for _ in range(10 * int(RENEW_SECONDS)):
        now[0] += 1.0
        if lease.take_renewal():
            due.append(now[0] - 1000.0)
    assert due == [RENEW_SECONDS * number for number in range(1, 11)]
    assert RENEW_SECONDS * 3 < LEASE_SECONDS


def test_a_missed_renewal_is_due_once() -> None:
    """After a long pause one renewal is due, and the next one RENEW_SECONDS later."""
    now = [1000.0]
    lease = Lease(clock=lambda: now[0])
    now[0] += 10 * RENEW_SECONDS
    assert lease.take_renewal()
    now[0] += RENEW_SECONDS - 1.0
    assert not lease.take_renewal()
    now[0] += 1.0
    assert lease.take_renewal()


def test_a_claim_expires_after_the_lease() -> None:
    """A claim that is made now expires LEASE_SECONDS later, on the clock that also counts sleep."""
    before = boot_seconds()
    expires = Lease().expires_at()
    assert before + LEASE_SECONDS <= expires <= boot_seconds() + LEASE_SECONDS


@pytest.mark.parametrize(
    ("lapsed", "in_hand", "orphaned"), [(False, True, False), (True, True, False), (False, False, True)]
)
def test_a_claim_of_this_process(lapsed: bool, in_hand: bool, orphaned: bool) -> None:
    """What this process works on is never orphaned; what it holds and does not work on is, at once."""
    lease = Lease()
    assert lease.is_orphaned(lease.holder, lapsed=lapsed, in_hand=in_hand) is orphaned


@pytest.mark.parametrize("holder", [ELSEWHERE, new_token()], ids=["another host", "a process that runs"])
def test_a_claim_of_a_living_process(holder: str) -> None:
    """It is orphaned when it was not renewed for the time of a lease, and not before."""
    assert not Lease().is_orphaned(holder, lapsed=False, in_hand=False)
    assert Lease().is_orphaned(holder, lapsed=True, in_hand=False)


def test_a_claim_of_a_dead_process() -> None:
    """A process of this host that has ended settles nothing any more: its claims are orphaned at once."""
    assert Lease().is_orphaned(dead_process(), lapsed=False, in_hand=False)


def test_the_wall_clock() -> None:
    """Now in UTC, without a zone, as the CRM's columns have it."""
    before = datetime.now(UTC)
    now = utc_now()
    assert now.tzinfo is None
    assert timedelta(0) <= now.replace(tzinfo=UTC) - before < timedelta(seconds=60)


def test_seconds_since_boot() -> None:
    """The clock never goes back, and has counted at least what the clock has that stands still during sleep."""
    readings = [boot_seconds() for _ in range(1000)]
    assert readings == sorted(readings)
    assert boot_seconds() >= time.monotonic() - 1.0
