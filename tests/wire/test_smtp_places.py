"""A message that waits for one of the connections that SMTP_CONNECTIONS allows."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from smtp_scripts import MAIL

from worker.errors import TooLate
from worker.providers.places import Connections
from worker.providers.smtp import SmtpProvider

DEADLINE_SECONDS = 20.0


class NoPlaces:
    """Other processes have all of them."""

    number = 0

    def __init__(self) -> None:
        self.wanted = threading.Event()

    def may_open(self, connections: int) -> bool:
        return False

    def want(self, number: int) -> None:
        self.wanted.set()

    def serve(self, connections: Connections) -> None:
        """Nothing is ever granted."""

    def close(self) -> None:
        """There is nothing to give back."""


def test_a_stop_ends_the_wait() -> None:
    """The message has not left, so it is not unconfirmed."""
    places, stopping = NoPlaces(), threading.Event()
    provider = SmtpProvider("smtp://127.0.0.1:1", places=places, is_stopping=stopping.is_set)
    with closing(provider), ThreadPoolExecutor(1) as threads:
        sent = threads.submit(provider.send, MAIL)
        assert places.wanted.wait(DEADLINE_SECONDS)
        assert not sent.done()
        stopping.set()
        with pytest.raises(TooLate):
            sent.result(DEADLINE_SECONDS)
