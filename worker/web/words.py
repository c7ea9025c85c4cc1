"""How the page and bin/status say times, numbers and errors: short, in UTC, in plain words."""

import re
from datetime import UTC, datetime

from worker.content.one_line import one_line as content_line
from worker.web.work import CAP

HEADLINES = {"ok": "Healthy", "degraded": "Degraded", "down": "Down"}
# by shape and word, so that nobody needs to see their colours
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

_LONGEST = 500
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# what the client libraries write when a server is away -> who
_AWAY = (
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

_PYTHONS = re.compile(r"HTTPS?Connection\(host='([^']*)', port=(\d+)\)")  # how urllib3 writes a host and a port


def span(seconds: float) -> str:
    """A length of time in its two largest units: ``3 h 20 min``, ``42 s``, ``0.3 s``."""
    if seconds < 0.9995:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return _whole(round(seconds))


def ago(at: float, now: float) -> str:
    """``5 min ago``, ``in 5 min`` or ``now``; times are Unix seconds."""
    if abs(now - at) < 1.0:
        return "now"
    length = _whole(round(abs(now - at)))
    return f"{length} ago" if now > at else f"in {length}"


def moment(at: float) -> str:
    """``2026-01-31 09:30:00 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at: float, now: float) -> str:
    """``09:30:00``, with the date where it is another day than ``now``."""
    when, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC).date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%d %b %H:%M")


def count(number: float) -> str:
    """``12,345``."""
    return f"{number:,.0f}"


def capped(number: int) -> str:
    """A count that went no further than ``CAP``."""
    return f"more than {CAP:,}" if number > CAP else count(number)


def rate(per_second: float) -> str:
    """``25 a second``, ``12 a minute``."""
    if per_second >= 1.0:
        return f"{per_second:.0f} a second" if per_second >= 9.95 else f"{per_second:.1f} a second"
    return f"{per_second * 60:.0f} a minute" if per_second * 60 >= 0.5 else f"{per_second * 3600:.0f} an hour"


def plain(error: str) -> str:
    """An error as an operator should read it: which server is away, else its first line."""
    text = reason(error)
    for pattern, server in _AWAY:
        if pattern.search(text):
            return f"{server} could not be reached: {text}"
    return text or "no reason was given"


def reason(error: str) -> str:
    """The first line of a client library's error, '' when there is none."""
    return _PYTHONS.sub(r"\1:\2", one_line(next(iter(error.strip().splitlines()), "")))


def one_line(text: str) -> str:
    """Without control characters, which would change a terminal or the direction of what follows; not too long."""
    return content_line(text, _LONGEST)


def _whole(seconds: int) -> str:
    left, parts = seconds, list[str]()
    for size, unit in _UNITS:
        if left >= size or parts:
            parts.append(f"{left // size} {unit}" if left >= size else "")
            left %= size
    return " ".join(filter(None, parts[:2]))
