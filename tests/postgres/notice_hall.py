"""The table of notices, and desks: processes with a provider and a Gmail of the test's own."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

from sandbox.crm import Crm
from worker.errors import SendError
from worker.messages import Accepted, Email
from worker.notifications.claims import LEASE_SECONDS, NotificationClaims
from worker.notifications.notification import Delivery, Notification, OutgoingMessage
from worker.runtime.db import Database
from worker.runtime.signals import Signals
from worker.sending.outcomes import OutcomeKind as Kind

NOW = datetime(2026, 3, 10, 12)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
SECOND = timedelta(seconds=1)


class Post:
    """A provider that keeps what it gets; what a test puts into ``answers`` for an address is raised, or called."""

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


class Mailbox:
    """A Gmail that can be asked: ``answer`` is what it says."""

    def __init__(self, answer: Accepted | SendError | None) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def find(self, message_id: str) -> Accepted | None:
        self.asked.append(message_id)
        if isinstance(self._answer, SendError):
            raise self._answer
        return self._answer


class Desk:
    """One process's notices, and a provider to send them through."""

    def __init__(self, url: str) -> None:
        self.db = Database(url, "desk")
        self.signals = Signals()
        self.post = Post()
        self.now = NOW
        self.notices = NotificationClaims(self.db, "reminders", self.signals, 0.3, lambda: self.now)
        self.more: dict[str, Any] = {}  # of every letter: pace, gmail, outbox

    def letter(self, notice: Notification) -> OutgoingMessage:
        message = Email("a@shop.example", notice.address, f"<{notice.id}@shop.example>", b"")
        return OutgoingMessage(message, self.post, **self.more)

    def claim(self, size: int = 100) -> list[Notification]:
        return self.notices.claim_waiting(self.now, size)

    def deliver(self, notices: list[Notification], may_go_on: Callable[[], bool] = lambda: True) -> list[Delivery]:
        """All of them, settled by nobody."""
        return [each for wave in self.notices.deliver(notices, self.letter, may_go_on) for each in wave]

    def close(self) -> None:
        self.db.close()
        self.notices.close()
        self.signals.close()


class Hall:
    """The table, and any number of desks."""

    def __init__(self, crm: Crm, url: str, stack: ExitStack) -> None:
        self.crm = crm
        self._url = url
        self._stack = stack

    def desk(self) -> Desk:
        made = Desk(self._url)
        self._stack.callback(made.close)
        return made

    def waiting(self, *addresses: str, tenant: str | None = "t", **columns: Any) -> list[str]:
        """Notices that wait for somebody."""
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
        """As if nobody had renewed anything for longer than a lease."""
        self.crm.execute(
            "UPDATE worker.notice SET renewed_at = renewed_at - make_interval(secs => %s)", (LEASE_SECONDS + 1,)
        )


def kinds(deliveries: list[Delivery]) -> dict[str, tuple[Kind, bool]]:
    """What became of each address, and whether it may have arrived."""
    return {each.notice.address: (each.outcome.kind, each.may_have_arrived) for each in deliveries}


def halls(crm: Crm, database_url: str) -> Iterator[Hall]:
    """For a fixture."""
    with ExitStack() as stack:
        yield Hall(crm, database_url, stack)
