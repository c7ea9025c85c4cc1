"""The table of notifications, and workers: processes with a provider and a Gmail of the test's own."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

from sandbox.crm import Crm
from worker.errors import SendError
from worker.messages import Accepted, Email
from worker.notifications.claims import NotificationClaims
from worker.notifications.delivery import Delivery
from worker.notifications.dispatcher import NotificationDispatcher
from worker.notifications.notification import Notification, OutgoingMessage
from worker.runtime.db import Database
from worker.runtime.lease import LEASE_SECONDS
from worker.runtime.signals import Signals
from worker.sending.outcomes import OutcomeKind

NOW = datetime(2026, 3, 10, 12)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
SECOND = timedelta(seconds=1)


class RecordingProvider:
    """Keeps the addresses it sends to; what a test puts into ``answers`` for an address is raised, or called."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.answers: dict[str, SendError | Callable[[], None]] = {}

    def send(self, message: Email) -> Accepted:
        answer = self.answers.get(message.to)
        if isinstance(answer, SendError):
            raise answer
        self.sent.append(message.to)
        if answer:
            answer()
        return Accepted(message.message_id)

    def close(self) -> None:
        """Nothing to close."""


class AskableGmail:
    """A Gmail that always gives the same answer when it is asked about a message."""

    def __init__(self, answer: Accepted | SendError | None) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def find(self, message_id: str) -> Accepted | None:
        self.asked.append(message_id)
        if isinstance(self._answer, SendError):
            raise self._answer
        return self._answer


class NotificationWorker:
    """One process's claims, and a provider to send them through."""

    def __init__(self, url: str) -> None:
        self.db = Database(url, "notification-worker")
        self.signals = Signals()
        self.provider = RecordingProvider()
        self.now = NOW
        self.claims = NotificationClaims(self.db, "reminders")
        self.dispatcher = NotificationDispatcher(self.claims, self.signals, 0.3, lambda: self.now)
        self.more: dict[str, Any] = {}  # of every outgoing message: pace, gmail, outbox

    def prepare(self, notification: Notification) -> OutgoingMessage:
        message = Email("a@shop.example", notification.address, f"<{notification.id}@shop.example>", b"")
        return OutgoingMessage(message, self.provider, **self.more)

    def claim(self, size: int = 100) -> list[Notification]:
        return self.claims.claim_waiting(self.now, size)

    def deliver(
        self, notifications: list[Notification], may_continue: Callable[[], bool] = lambda: True
    ) -> list[Delivery]:
        """The outcomes of all of them, not settled."""
        waves = self.dispatcher.deliver(notifications, self.prepare, may_continue)
        return [each for wave in waves for each in wave]

    def release_orphans(self) -> None:
        self.claims.release_orphans(self.now, self.dispatcher.in_hand)

    def close(self) -> None:
        self.db.close()
        self.dispatcher.close()
        self.signals.close()


class NotificationTable:
    """The rows of worker.notice, and any number of workers."""

    def __init__(self, crm: Crm, url: str, stack: ExitStack) -> None:
        self.crm = crm
        self._url = url
        self._stack = stack

    def worker(self) -> NotificationWorker:
        made = NotificationWorker(self._url)
        self._stack.callback(made.close)
        return made

    def add(self, *addresses: str, tenant: str | None = "t", **columns: Any) -> list[str]:
        """Notifications that wait to be claimed; returns their ids."""
        row = {"job": "reminders", "tenant_id": tenant, "channel": "email", "content": "{}", "created_at": NOW,
               "due_at": NOW, "renewed_at": "now"} | columns  # fmt: skip
        made = []
        for address in addresses:
            made.append(str(uuid.uuid4()))
            values = row | {"id": made[-1], "address": address}
            names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
            self.crm.execute(f"INSERT INTO worker.notice ({names}) VALUES ({marks})", list(values.values()))
        return made

    def rows(
        self, columns: str = "address, holder IS NOT NULL, handed_over, due_at, attempts"
    ) -> list[tuple[Any, ...]]:
        return self.crm.execute(f"SELECT {columns} FROM worker.notice ORDER BY address")

    def lapse(self) -> None:
        """As if no claim had been renewed for longer than a lease."""
        self.crm.execute(
            "UPDATE worker.notice SET renewed_at = renewed_at - make_interval(secs => %s)", (LEASE_SECONDS + 1,)
        )


def outcomes(deliveries: list[Delivery]) -> dict[str, tuple[OutcomeKind, bool]]:
    """What became of each address, and whether it may have arrived."""
    return {each.notification.address: (each.outcome.kind, each.may_have_arrived) for each in deliveries}


def opened_table(crm: Crm, database_url: str) -> Iterator[NotificationTable]:
    """For a fixture."""
    with ExitStack() as stack:
        yield NotificationTable(crm, database_url, stack)
