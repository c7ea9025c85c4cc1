"""The list of suppressed addresses: its functions for the CRM, and how its changes are noticed."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from desk import number
from suppressions import suppress, unsuppress

from sandbox.crm import Crm, utc_now
from worker.runtime.db import Database, queries
from worker.sending.suppression import SuppressionList, SuppressionWatch

DEADLINE_SECONDS = 60.0


@pytest.mark.parametrize("again", ["09876543210", "+91-98765-43210", "00919876543210", "919876543210", "9876543210"])
def test_one_number_has_one_entry(crm: Crm, again: str) -> None:
    """However it is written; and so it is taken off the list."""
    assert suppress(crm, "t", "call", "+91 98765 43210")
    assert not suppress(crm, "t", "call", again)
    assert crm.execute("SELECT address FROM worker.suppression") == [("919876543210",)]
    assert unsuppress(crm, "t", "call", again)
    assert not unsuppress(crm, "t", "call", again)
    assert crm.value("SELECT count(*) FROM worker.suppression") == 0


def test_numbers_of_other_countries_need_no_plus_sign(crm: Crm) -> None:
    """WhatsApp's webhooks name numbers by their digits."""
    assert suppress(crm, "t", "whatsapp", "447700900123")
    assert crm.execute("SELECT address FROM worker.suppression") == [("447700900123",)]
    assert not suppress(crm, "t", "whatsapp", "+44 7700 900123")


def test_sources_stay_apart(crm: Crm) -> None:
    """Who takes back an unsubscription is still known to have no mailbox; without a source all of them go."""
    for source in ("unsubscribe", "bounce", "complaint"):
        assert suppress(crm, "t", "email", "Asha@Shop.example", source)
    assert unsuppress(crm, "t", "email", "asha@shop.example", "unsubscribe")
    assert crm.execute("SELECT source FROM worker.suppression ORDER BY 1") == [("bounce",), ("complaint",)]
    assert unsuppress(crm, "t", "email", "asha@shop.example")
    assert crm.value("SELECT count(*) FROM worker.suppression") == 0


def test_what_ends_later_stays(crm: Crm) -> None:
    """A shorter time does not shorten, a longer one and "for ever" prolong, and what has ended begins anew."""
    now = utc_now()

    def until(days: float | None) -> Any:
        return days and now + timedelta(days=days)

    steps = [(30, True), (10, False), (60, True), (None, True), (90, False)]
    assert [suppress(crm, "t", "email", "a@x.example", until=until(days)) for days, _ in steps] == [
        changed for _, changed in steps
    ]
    assert crm.execute("SELECT until FROM worker.suppression") == [(None,)]
    assert suppress(crm, "t", "email", "b@x.example", until=until(-1))
    assert suppress(crm, "t", "email", "b@x.example", until=until(1))
    assert crm.value("SELECT until FROM worker.suppression WHERE address = 'b@x.example'") == until(1)


@pytest.mark.parametrize(
    ("channel", "address", "source"),
    [
        ("email", "asha at shop.example", "operator"), ("email", "", "operator"),
        ("email", "x" * 400 + "@a.example", "operator"),
        ("call", "12", "operator"), ("call", "no number 5", "operator"), ("whatsapp", "9" * 20, "operator"),
        ("sms", "9876543210", "operator"), ("email", "a@x.example", "nobody"),
    ],
)  # fmt: skip
def test_what_cannot_be_on_the_list_is_refused(crm: Crm, channel: str, address: str, source: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue):
        suppress(crm, "t", channel, address, source)
    assert crm.value("SELECT count(*) FROM worker.suppression") == 0


def test_a_reason_is_never_empty(crm: Crm) -> None:
    """Whoever reads the list tells by the reason that an address is on it."""
    suppress(crm, "t", "email", "a@x.example", "unsubscribe", reason="")
    assert crm.execute("SELECT reason FROM worker.suppression") == [("unsubscribe",)]


class Watch:
    """A watch that looks whenever it is asked."""

    def __init__(self, url: str) -> None:
        self.db = Database(url, "test")
        self._seconds = 0.0
        self._watch = SuppressionWatch(self.db, self._later)

    def _later(self) -> float:
        self._seconds += 10.0
        return self._seconds

    def changed(self, *lists: SuppressionList) -> set[SuppressionList]:
        return self._watch.changed(lists)


@pytest.fixture
def watch(database_url: str) -> Iterator[Watch]:
    made = Watch(database_url)
    yield made
    made.db.close()


MAIL, CALLS, OTHER = SuppressionList("t", "email"), SuppressionList("t", "call"), SuppressionList("u", "email")


def test_the_watch_sees_the_list_that_changed(crm: Crm, watch: Watch) -> None:
    """And no list of another channel or tenant; what it has seen it does not report again."""
    assert watch.changed(MAIL, CALLS, OTHER) == set()
    suppress(crm, "t", "email", "a@x.example")
    assert watch.changed(CALLS, MAIL, OTHER) == {MAIL}
    wait_until_nothing_is_new(watch, MAIL, CALLS, OTHER)
    suppress(crm, "u", "email", "a@x.example")
    suppress(crm, "t", "call", "9876543210")
    assert watch.changed(OTHER, MAIL, CALLS) == {CALLS, OTHER}


def wait_until_nothing_is_new(watch: Watch, *lists: SuppressionList) -> None:
    """While any transaction of the server is older than an entry, autovacuum's for example, it is looked at again."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while watch.changed(*lists):
        assert time.monotonic() < deadline, "the same entries are new again and again"
        time.sleep(0.05)


def test_an_entry_that_begins_anew_is_a_change(crm: Crm, watch: Watch) -> None:
    suppress(crm, "t", "email", "a@x.example", until=utc_now() - timedelta(days=1))
    wait_until_nothing_is_new(watch, MAIL)
    suppress(crm, "t", "email", "a@x.example")
    assert watch.changed(MAIL) == {MAIL}


def test_a_transaction_that_takes_long_is_seen_when_it_ends(crm: Crm, watch: Watch, database_url: str) -> None:
    """However many others began after it and ended before it."""
    watch.changed(MAIL)
    with closing(psycopg2.connect(database_url)) as slow, slow.cursor() as cursor:
        cursor.execute("SELECT worker.suppress('t', 'email', 'slow@x.example', 'STOP', 'operator')")
        for place in range(3):
            suppress(crm, "t", "call", number(place))
            assert watch.changed(MAIL, CALLS) == {CALLS}
        slow.commit()
    assert watch.changed(MAIL, CALLS) >= {MAIL}
    wait_until_nothing_is_new(watch, MAIL, CALLS)


def test_another_server_behind_the_address(crm: Crm, watch: Watch) -> None:
    """Its transactions have lower numbers, or a restored table has higher ones than the server ever gave."""
    suppress(crm, "t", "email", "a@x.example")
    crm.execute("UPDATE worker.suppression SET changed_by = '18446744073709551000'")
    wait_until_nothing_is_new(watch, MAIL)
    row = watch.db.one(queries("sending")["suppressions_since"], tenant_ids=["t"], channels=["email"], seen="9" * 18)
    assert row is not None
    assert row["changed"] == [1]
