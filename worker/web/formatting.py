"""Times, numbers, rates and errors as short text, for the status page and bin/status. Times are in UTC."""

import re
from datetime import UTC, datetime

from worker.content.one_line import one_line
from worker.web.work_in_progress import CAP

HEADLINES = {"ok": "Healthy", "degraded": "Degraded", "down": "Down"}
# a shape for each state, because not everybody sees its colour
MARKS = {
    "ok": "●",
    "degraded": "▲",
    "down": "■",
    "running": "●",
    "waiting": "○",
    "failed": "▲",
    "late": "■",
    "never": "–",
}

TEXT_LIMIT = 500  # characters of any text from elsewhere: names, errors, reasons

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# what the client libraries write when a server is unavailable -> which server
_UNAVAILABLE = (
    (
        re.compile(
            r"connection to server|server closed the connection|could not translate host name|"
            r"terminating connection|the database system is|connection already closed",
            re.IGNORECASE,
        ),
        "PostgreSQL",
    ),
    (re.compile(r"Error -?\d+ connecting to|Timeout (connecting|reading)|Connection closed by server"), "Redis"),
)

_URLLIB3_HOST = re.compile(r"HTTPS?Connection\(host='([^']*)', port=(\d+)\)")


def span(seconds: float) -> str:
    """A duration in its two largest units: ``3 h 20 min``, ``42 s``, ``300 ms``."""
    if seconds < 0.9995:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return _whole(round(seconds))


def ago(at: float, now: float) -> str:
    """``5 min ago``, ``in 5 min`` or ``now``. Times are Unix seconds."""
    if abs(now - at) < 1.0:
        return "now"
    length = _whole(round(abs(now - at)))
    return f"{length} ago" if now > at else f"in {length}"


def moment(at: float) -> str:
    """``2026-01-31 09:30:00 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at: float, now: float) -> str:
    """``09:30:00``, or ``01 Feb 09:30`` when it is not on the same day as ``now``; to the nearest second."""
    when, today = datetime.fromtimestamp(round(at), UTC), datetime.fromtimestamp(now, UTC).date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%d %b %H:%M")


def count(number: float) -> str:
    """``12,345``."""
    return f"{number:,.0f}"


def capped(number: int) -> str:
    """A count that stopped at ``CAP`` + 1: ``12``, or ``more than 10,000``."""
    return f"more than {CAP:,}" if number > CAP else count(number)


def rate(per_second: float) -> str:
    """``25 a second``, ``12 a minute`` or ``4 an hour``."""
    if per_second >= 1.0:
        return f"{per_second:.0f} a second" if per_second >= 9.95 else f"{per_second:.1f} a second"
    return f"{per_second * 60:.0f} a minute" if per_second * 60 >= 0.5 else f"{per_second * 3600:.0f} an hour"


def plain(error: str) -> str:
    """An error as an operator reads it: which server could not be reached, then the first line of the error."""
    text = reason(error)
    for pattern, server in _UNAVAILABLE:
        if pattern.search(text):
            return f"{server} could not be reached: {text}"
    return text or "no reason was given"


def reason(error: str) -> str:
    """The first line of a client library's error; '' when there is none."""
    return _URLLIB3_HOST.sub(r"\1:\2", one_line(next(iter(error.strip().splitlines()), ""), TEXT_LIMIT))


def _whole(seconds: int) -> str:
    left, parts = seconds, list[str]()
    for size, unit in _UNITS:
        if left >= size or parts:
            parts.append(f"{left // size} {unit}" if left >= size else "")
            left %= size
    return " ".join(filter(None, parts[:2]))
