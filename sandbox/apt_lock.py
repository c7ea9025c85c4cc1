"""Locks between processes that install Debian's packages or build images, so that only one does at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path("/var/cache/crm-worker-sandbox")


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def apt_lock() -> Iterator[None]:
    """Waits until no other process of the project uses apt: if two update at once, apt lets one fail."""
    with exclusive_lock(CACHE / "apt.lock"):
        yield
