"""Whose turn it is: notifications in line, with an equal share of the threads for each tenant and channel."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from worker.notifications.notification import Notification


class TenantChannel(NamedTuple):
    """What has a share of its own: a provider that is slow for one tenant delays no other tenant."""

    tenant_id: str | None
    channel: str

    @classmethod
    def of(cls, notification: Notification) -> "TenantChannel":
        return cls(notification.tenant_id, notification.channel)


class FairQueue:
    """Notifications in line, a line for each tenant and channel."""

    def __init__(self, notifications: Iterable[Notification]) -> None:
        self._lines: dict[TenantChannel, deque[Notification]] = {}  # the one that waits longest is the first
        for notification in notifications:
            self._lines.setdefault(TenantChannel.of(notification), deque()).append(notification)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def heads(self, busy: Counter[TenantChannel], threads: int) -> Iterator[Notification]:
        """The next notification of each line, then a second one of each, and so on.

        ``busy`` counts the threads that each line has: lines that have fewer come first.
        """
        for share in range(1, threads + 1):
            for key in [each for each in self._lines if busy[each] < share]:
                yield self._lines[key][0]

    def take(self, head: Notification) -> None:
        """Removes a head; its line goes behind the others."""
        key = TenantChannel.of(head)
        line = self._lines.pop(key)
        line.popleft()
        if line:
            self._lines[key] = line

    def take_all(self) -> list[Notification]:
        lines, self._lines = self._lines, {}
        return [notification for line in lines.values() for notification in line]
