"""Leases: when claims are renewed, and whose claims are orphaned."""

import subprocess
import sys

import pytest

from worker.runtime.clock import boot_seconds
from worker.runtime.lease import LEASE_SECONDS, Lease
from worker.runtime.process_token import new_token


def dead_process() -> str:
    """The token of a process of this machine that has ended."""
    command = "from worker.runtime.process_token import new_token; print(new_token())"
    return subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout.strip()


def test_each_lease_has_a_holder_of_its_own() -> None:
    """Two leases of one process never settle each other's claims."""
    assert Lease().holder != Lease().holder


def test_expiry() -> None:
    """A claim expires after the lease's time on a clock that counts on while the machine sleeps."""
    before = boot_seconds()
    expires_at = Lease().expires_at()
    assert before + LEASE_SECONDS <= expires_at <= boot_seconds() + LEASE_SECONDS


def test_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new lease is not renewed yet; once it is time, one call says so."""
    lease = Lease()
    assert not lease.take_renewal()
    with monkeypatch.context() as later:
        later.setattr("worker.runtime.lease.RENEW_SECONDS", 0.0)
        assert lease.take_renewal()
    assert not lease.take_renewal()


@pytest.mark.parametrize("lapsed", [False, True])
@pytest.mark.parametrize("in_hand", [False, True])
def test_its_own_claims(lapsed: bool, in_hand: bool) -> None:
    """This process's claims are orphaned only when it no longer works on them, however old they are."""
    lease = Lease()
    assert lease.is_orphaned(lease.holder, lapsed=lapsed, in_hand=in_hand) is not in_hand


@pytest.mark.parametrize("in_hand", [False, True])
def test_claims_of_others(in_hand: bool) -> None:
    """Another process's claims are orphaned when it is dead, or when they lapsed."""
    lease, elsewhere = Lease(), "another.machine:1:x.y"
    for living in (new_token(), elsewhere):
        assert not lease.is_orphaned(living, lapsed=False, in_hand=in_hand)
        assert lease.is_orphaned(living, lapsed=True, in_hand=in_hand)
    assert lease.is_orphaned(dead_process(), lapsed=False, in_hand=in_hand)
