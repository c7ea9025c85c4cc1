"""What is known of a server: whether it can be used, and what may be said in public when not."""

import re
from dataclasses import dataclass

_NO_CONNECTION_LEFT = re.compile(
    r"too many (clients|connections|open files)|connection slots are reserved|no more connections allowed|"
    r"max number of clients",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Service:
    """Whether a server can be used, and if not, why."""

    up: bool
    reason: str = ""
    read_only: bool = False  # it answers, but takes no writes; then it is not ``up``

    @property
    def answers(self) -> bool:
        return self.up or self.read_only

    @property
    def problem(self) -> str:
        """Why not, without the names of hosts and users that ``reason`` may hold; '': it simply does not answer."""
        if self.read_only:
            return f"takes no writes: {self.reason}"
        return "has no connection left" if _NO_CONNECTION_LEFT.search(self.reason) else ""
