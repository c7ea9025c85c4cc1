"""A deadline for a whole exchange with a server, however short each of its reads is.

A socket's time-out is one for each read: a server that sends a byte every few seconds never exceeds it. So a thread
checks the sockets that are in use twice a second, and shuts down those whose exchange takes too long. The thread that
reads or writes there fails at once, with the error of a lost connection.

An exchange costs a few assignments under a lock. It works for TLS too, and inside a library that knows no deadlines.
"""

import signal
import socket
import ssl
import threading
import time

CHECK_SECONDS = 0.5  # how late a deadline may be noticed


class Deadline:
    """The deadline of one connection's exchanges, one after the other. One thread at a time uses it."""

    def __init__(self, watcher: "DeadlineWatcher") -> None:
        self._watcher = watcher
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._own: socket.socket | None = None  # a duplicate, to be closed at the end
        self._until: float | None = None  # time.monotonic()
        self._is_watched = False
        self._seconds = 0.0
        self.passed = False  # whether the latest exchange was ended by its deadline

    def begin(self, seconds: float, sock: socket.socket | None = None) -> None:
        """An exchange begins that may take so long in all. ``sock``: what it goes over, if that is known already."""
        with self._lock:
            self.passed = False
            self._seconds = seconds
            self._until = time.monotonic() + seconds
            self._use(sock)
            is_new, self._is_watched = not self._is_watched, True
        if is_new:
            self._watcher.watch(self)

    def attach(self, sock: socket.socket) -> None:
        """The exchange goes over this socket from now on. A deadline that has passed meanwhile ends it at once.

        What wraps a plain socket with TLS detaches it, already before the handshake: so a duplicate is kept, which
        stays connected to the same peer. Raises OSError when the machine has no file for it.
        """
        own = None if isinstance(sock, ssl.SSLSocket) else sock.dup()
        with self._lock:
            self._use(own or sock)
            self._own = own
            if self.passed:
                _shut_down(sock)

    def end(self) -> None:
        """The exchange is over. Raises nothing; see ``passed``."""
        with self._lock:
            self._until = None
            self._use(None)

    def _use(self, sock: socket.socket | None) -> None:
        if self._own is not None:
            self._own.close()  # or the connection would stay open when its owner closes it
            self._own = None
        self._socket = sock

    def explain(self, error: Exception | None) -> str:
        """The text of ``error`` ('' without one), or the reason behind it when the deadline has passed."""
        if self.passed:
            return f"the exchange took longer than {self._seconds:g} seconds in all"
        return str(error or "")

    def __enter__(self) -> "Deadline":
        """For ``with``: an exchange has begun."""
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def check(self, now: float) -> bool:
        """For the watcher: ends an exchange that takes too long. False: there is none, and nothing to watch."""
        with self._lock:
            if self._until is not None and now >= self._until:
                self._until = None
                self.passed = True
                if self._socket is not None:
                    _shut_down(self._socket)
            self._is_watched = self._until is not None
            return self._is_watched


class DeadlineWatcher:
    """The thread that checks deadlines. It begins with the first exchange and rests while there is none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: list[Deadline] = []
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline) -> None:
        with self._changed:
            if self._thread is None:
                # ends with the process: nobody has to wait for it
                thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                thread.start()
                self._thread = thread
            self._new.append(deadline)
            self._changed.notify()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        watched: list[Deadline] = []
        while True:
            with self._changed:
                while not watched and not self._new:
                    self._changed.wait()
                watched += self._new
                self._new = []
            now = time.monotonic()
            watched = [each for each in watched if each.check(now)]
            time.sleep(CHECK_SECONDS)


def _shut_down(sock: socket.socket) -> None:
    try:
        # Not SSLSocket.shutdown, which would make the other thread read the raw octets.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it had ended already


WATCHER = DeadlineWatcher()
_of_thread = threading.local()


def thread_deadline() -> Deadline:
    """The deadline of the calling thread's exchanges; a thread has one exchange at a time."""
    deadline: Deadline | None = getattr(_of_thread, "deadline", None)
    if deadline is None:
        deadline = _of_thread.deadline = Deadline(WATCHER)
    return deadline


def exchange(seconds: float, sock: socket.socket | None = None) -> Deadline:
    """An exchange of the calling thread that may take so long in all, and ends with its ``with`` block."""
    deadline = thread_deadline()
    deadline.begin(seconds, sock)
    return deadline
