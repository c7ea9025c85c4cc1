"""Debian's packages for what runs as root, asked for by one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path("/var/cache/crm-worker-sandbox")


@contextmanager
def to_oneself(path: Path) -> Iterator[None]:
    """Waits until no other process has the lock file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def apt_to_oneself() -> Iterator[None]:
    """Waits until no other process of ours uses apt: of two that update at once, apt lets one fail."""
    with to_oneself(CACHE / "apt.lock"):
        yield
