"""The last look before a message is handed over: does it still belong to this process?

A process may be frozen for longer than its claims are valid, at any instant: also after it has checked that, while it
connects or logs in. Thawed, it would send what another worker has sent meanwhile. So the condition is looked at once
more before each part of the message goes to the kernel; as long as a part is missing, no server acts on it.
"""

import threading
from collections.abc import Callable

from worker.errors import TooLate

_of_thread = threading.local()


class handed_over_while:
    """What the calling thread sends in here is handed over only while ``is_allowed``; else TooLate is raised."""

    __slots__ = ("_is_allowed",)

    def __init__(self, is_allowed: Callable[[], bool]) -> None:
        self._is_allowed = is_allowed

    def __enter__(self) -> None:
        _of_thread.is_allowed = self._is_allowed

    def __exit__(self, *_: object) -> None:
        _of_thread.is_allowed = None


def check_handover() -> None:
    """For the providers, before each part of a message. Raises TooLate."""
    is_allowed: Callable[[], bool] | None = getattr(_of_thread, "is_allowed", None)
    if is_allowed is not None and not is_allowed():
        raise TooLate("not handed over: this process was frozen, and the message may be another worker's by now")
