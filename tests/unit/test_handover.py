"""A message leaves only as long as it belongs to the process: the last look is at the last octet."""

import threading

import pytest

from worker.errors import RetryLater, TooLate
from worker.providers.handover import check_handover, handed_over_while


def test_without_a_condition_everything_may_leave() -> None:
    """A question, or a message that no claim protects."""
    check_handover()


def test_a_condition_counts_until_its_end() -> None:
    """It is looked at each time; afterwards it is forgotten, also when the message failed."""
    looks = [False, True]

    def send() -> None:
        with handed_over_while(looks.pop):
            check_handover()
            check_handover()

    with pytest.raises(TooLate):
        send()
    assert looks == []
    check_handover()


def test_a_condition_is_of_its_thread() -> None:
    """Other threads send other messages."""
    ended = threading.Event()

    def other() -> None:
        check_handover()
        ended.set()

    with handed_over_while(lambda: False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert ended.is_set()


def test_what_was_not_handed_over_was_not_sent() -> None:
    """Whoever does not know the kind treats it as such."""
    assert issubclass(TooLate, RetryLater)
