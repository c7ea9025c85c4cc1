"""Signals that a job program handles: the handlers only set flags."""

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Signals:
    """SIGTERM and SIGINT set ``stopping``, SIGUSR1 sets ``tick_now``; a signal also ends ``wait``."""

    def __init__(self) -> None:
        self.stopping = False
        self.tick_now = False
        self._installed = False
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def install(self) -> None:
        """Installs the handlers, which then see what came while the job rested. For the main thread only."""
        self._installed = True
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._tick)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    @property
    def received(self) -> Iterator[signal.Signals]:
        """The signals that were received and not handled yet."""
        if self.stopping:
            yield signal.SIGTERM
        if self.tick_now:
            yield signal.SIGUSR1

    def close(self) -> None:
        """Closes the sockets; signals do not wake anything afterwards."""
        if self._installed:
            signal.set_wakeup_fd(-1)
        self._woken.close()
        self._waker.close()

    def request_tick(self) -> None:
        """As if SIGUSR1 had come: the job runs a tick now. Any thread may call it."""
        self.tick_now = True
        with suppress(OSError):  # enough is written there already, or the program ends
            self._waker.send(b"\0")

    def wait(self, seconds: float) -> None:
        """Sleeps until a signal arrives, but not longer than this."""
        ready, _, _ = select.select([self._woken], [], [], max(0.0, seconds))
        if ready:
            self._woken.recv(4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _tick(self, number: int, frame: FrameType | None) -> None:
        self.tick_now = True
