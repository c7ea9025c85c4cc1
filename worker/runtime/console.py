"""What a command writes to the operator who runs it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

PROGRESS_SECONDS = 5.0


def write(text: str, stream: TextIO | None = None) -> None:
    """To standard output; ``stream``: elsewhere."""
    print(text, file=stream, flush=True)


@contextmanager
def progress(text: Callable[[], str] = str, stream: TextIO | None = None) -> Iterator[None]:
    """Writes every few seconds how long it takes so far, and ``text()``."""
    done, began = threading.Event(), time.monotonic()

    def write_progress() -> None:
        while not done.wait(PROGRESS_SECONDS):
            write(f"... {time.monotonic() - began:.0f} s {text()}".rstrip(), stream)

    threading.Thread(target=write_progress, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def to_stderr(text: str) -> None:
    """For commands whose standard output is data."""
    write(text, sys.stderr)
