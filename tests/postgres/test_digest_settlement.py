"""How digests are settled, outcome by outcome: what waits for a question keeps its place and its attempts."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from notification_workers import NOW, NotificationTable, NotificationWorker, opened_table

from sandbox.crm import Crm
from worker.messages import Accepted
from worker.notifications.delivery import Delivery
from worker.reminding.settlement import DigestSettlement
from worker.runtime.counters import Counters
from worker.runtime.settings import load
from worker.sending.outcomes import Outcome, OutcomeKind

CONTENT = '{"recipientName": "", "userId": null, "checkIntervalHours": 24, "gmail": null, "templateId": null, ' \
          '"leadsCount": 1, "leads": []}'  # fmt: skip
LATER = NOW + timedelta(minutes=5)


@pytest.fixture
def table(crm: Crm, database_url: str) -> Iterator[NotificationTable]:
    yield from opened_table(crm, database_url)


def settlement(worker: NotificationWorker, unconfirmed_sends: str = "fail") -> DigestSettlement:
    environ = {"DATABASE_URL": "postgresql://crm@127.0.0.1/crm", "REDIS_URL": "redis://127.0.0.1:6379",
               "UNCONFIRMED_SENDS": unconfirmed_sends}  # fmt: skip
    counters = Counters(redis.Redis(), "reminders")  # does not connect before it is flushed
    return DigestSettlement(worker.db, worker.claims, load(environ, "reminders"), counters, lambda: LATER)


def settled(
    table: NotificationTable, outcome: Outcome, *, attempts: int = 3, handed_over: bool = True, **settings: str
) -> list[str]:
    """Settles a digest of one lead with this outcome, and returns its result. One handed over may have arrived."""
    table.add("a", content=CONTENT, attempts=attempts, handed_over=handed_over)
    worker = table.worker()
    (notification,) = worker.claim()
    table.crm.execute(
        "INSERT INTO worker.lead_reminder (tenant_id, channel, address, lead_id, reminded_at, notice_id) "
        "VALUES ('t', 'email', 'a', 'lead', %s, %s)",
        (NOW, notification.id),
    )
    delivery = Delivery(notification, outcome, may_have_arrived=handed_over)
    return [str(each.result) for each in settlement(worker, **settings).settle([delivery])]


def remembered(table: NotificationTable) -> int:
    """How many leads count as reminded of."""
    return int(table.crm.value("SELECT count(*) FROM worker.lead_reminder"))


def test_a_question_that_was_not_asked(table: NotificationTable) -> None:
    """A stop before the question: it is due at once, and counts as no question."""
    assert settled(table, Outcome(OutcomeKind.NOT_SENT, NOW)) == []
    assert table.rows() == [("a", False, True, LATER, 3)]
    assert remembered(table) == 1


@pytest.mark.parametrize(
    ("attempts", "delay_seconds", "pause_seconds"),
    [(0, None, 30), (3, None, 240), (3, 7.0, 240), (3, 500.0, 500), (3, 9000.0, 3600), (11, None, 3600)],
)
def test_a_question_that_was_deferred(
    table: NotificationTable, attempts: int, delay_seconds: float | None, pause_seconds: int
) -> None:
    """It is asked again after a pause that doubles, or after the provider's longer one, at most an hour."""
    outcome = Outcome(OutcomeKind.DEFERRED, NOW, "busy", delay_seconds)
    assert settled(table, outcome, attempts=attempts) == []
    assert table.rows() == [("a", False, True, NOW + timedelta(seconds=pause_seconds), attempts + 1)]


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [(Outcome(OutcomeKind.DEFERRED, NOW, "busy"), 12), (Outcome(OutcomeKind.UNCONFIRMED, NOW, "unknown"), 0),
     (Outcome(OutcomeKind.REJECTED, NOW, "switched off"), 0)],
)  # fmt: skip
@pytest.mark.parametrize("unconfirmed_sends", ["fail", "resend"])
def test_nobody_can_tell_any_more(
    table: NotificationTable, outcome: Outcome, attempts: int, unconfirmed_sends: str
) -> None:
    """It is unconfirmed. Its leads stay remembered, or are due again with UNCONFIRMED_SENDS=resend."""
    found = settled(table, outcome, attempts=attempts, unconfirmed_sends=unconfirmed_sends)
    assert found == ["unconfirmed"]
    assert table.rows() == []
    assert remembered(table) == (unconfirmed_sends == "fail")


@pytest.mark.parametrize(
    ("outcome", "results", "kept"),
    [
        (Outcome(OutcomeKind.ACCEPTED, NOW, accepted=Accepted("<1@x>")), ["sent"], 1),
        (Outcome(OutcomeKind.OPTED_OUT, NOW, "STOP"), ["failed"], 1),
        (Outcome(OutcomeKind.REFUSED, NOW, "550"), ["failed"], 0),
        (Outcome(OutcomeKind.REJECTED, NOW, "535"), ["failed"], 0),
        (Outcome(OutcomeKind.DEFERRED, NOW, "busy"), ["failed"], 0),
        (Outcome(OutcomeKind.RECIPIENT_DEFERRED, NOW, "greylisted"), ["failed"], 0),
        (Outcome(OutcomeKind.NOT_SENT, NOW), [], 0),
    ],
)
def test_a_first_attempt(table: NotificationTable, outcome: Outcome, results: list[str], kept: int) -> None:
    """It ends at once; the leads of what was surely not sent are due again; what was not tried counts as nothing."""
    assert settled(table, outcome, handed_over=False) == results
    assert table.rows() == []
    assert remembered(table) == kept


@pytest.mark.parametrize(
    ("channel", "address"), [("whatsapp", "919812345678"), ("whatsapp", "6591234567"), ("email", "a@x.example")]
)
def test_opted_out(table: NotificationTable, channel: str, address: str) -> None:
    """The address is stored as the claim looks for it, also a foreign number of ten digits."""
    table.add(address, channel=channel, content=CONTENT)
    worker = table.worker()
    deliveries = [Delivery(each, Outcome(OutcomeKind.OPTED_OUT, NOW, "STOP")) for each in worker.claim()]
    assert len(settlement(worker).settle(deliveries)) == 1
    stored = table.crm.execute("SELECT tenant_id, channel, address, reason FROM worker.suppression")
    assert stored == [("t", channel, address, "STOP")]
