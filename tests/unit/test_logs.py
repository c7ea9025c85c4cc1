"""Log lines: one line for each event, whatever its values contain, on the right stream."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime import logs

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
log = logging.getLogger("worker.campaign")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Restores the root logger after the test."""
    root, pools = logging.getLogger(), logging.getLogger("urllib3")
    handlers, level, pools_level = root.handlers[:], root.level, pools.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    pools.setLevel(pools_level)


def record(message: str, keys: dict[str, object] | None = None, level: int = logging.INFO) -> logging.LogRecord:
    arguments = (keys,) if keys else None
    return logging.LogRecord("worker.campaign", level, "campaign.py", 1, message, arguments, None)


def text_line(message: str, keys: dict[str, object] | None = None) -> str:
    return logs.TextFormatter().format(record(message, keys))


def json_line(message: str, keys: dict[str, object] | None = None) -> str:
    return logs.JsonFormatter().format(record(message, keys))


def test_a_text_line() -> None:
    """A line has the time in UTC, the level, the message and its keys; a value with spaces is quoted."""
    line = text_line("campaign started", {"campaign": "c-1", "recipients": 500, "reason": "two words", "none": ""})
    wanted = rf'{STAMP} INFO campaign started campaign=c-1 recipients=500 reason="two words" none=""'
    assert re.fullmatch(wanted, line)


def test_the_time_is_utc() -> None:
    """The time of a line is that of the event, in UTC, in milliseconds."""
    event = record("x")
    event.created = 1_769_851_800.1239
    assert logs.TextFormatter().format(event).startswith("2026-01-31T09:30:00.123Z ")


def test_a_json_line() -> None:
    """A JSON line is one object with the same keys and the values' own types."""
    line = json.loads(json_line("campaign ended", {"campaign": "c-1", "sent": 3, "rate": 1.5, "name": "आशा"}))
    assert re.fullmatch(STAMP, line.pop("time"))
    assert line == {
        "level": "INFO",
        "logger": "worker.campaign",
        "message": "campaign ended",
        "campaign": "c-1",
        "sent": 3,
        "rate": 1.5,
        "name": "आशा",
    }


@given(st.text(), st.text())
def test_no_value_forges_a_text_line(message: str, value: str) -> None:
    """Neither a message nor a value can start a new line or write control characters to a terminal."""
    line = text_line(message.replace("%", "%%"), {"reason": value})
    assert len(line.splitlines()) == 1
    assert re.sub("[\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}]", "", line).isprintable()


@given(st.text())
def test_no_value_forges_a_json_line(value: str) -> None:
    """A JSON event is one line, and its values are read back unchanged."""
    line = json_line("tick failed", {"reason": value})
    assert "\n" not in line
    assert "\r" not in line
    assert json.loads(line)["reason"] == value


@pytest.mark.parametrize("value", ["a\x85b", "a\u2028b", "a\x9b31mb"])
def test_line_ends_beyond_ascii_in_json(value: str) -> None:
    """Line ends and terminal controls outside ASCII cannot split a JSON line either."""
    line = json_line("tick failed", {"reason": value})
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert json.loads(line)["reason"] == value


def failed(text: str) -> logging.LogRecord:
    """The record of an exception with this text."""
    event = record("tick failed", level=logging.ERROR)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int(text)
    event.exc_info = (caught.type, ValueError(text), caught.tb)
    return event


def test_errors_carry_their_traceback() -> None:
    """A logged exception has its traceback: after the line in text, in the same line in JSON."""
    shown = logs.TextFormatter().format(failed("no good"))
    assert shown.splitlines()[0].endswith("ERROR tick failed")
    assert "ValueError: no good" in shown
    line = logs.JsonFormatter().format(failed("no good"))
    assert "\n" not in line
    assert "ValueError: no good" in json.loads(line)["error"]


def test_an_exception_forges_no_line() -> None:
    """The text of an exception, which may come from the database, cannot look like a log line of its own."""
    shown = logs.TextFormatter().format(failed("x\n2026-01-31T09:30:00.123Z INFO campaign ended"))
    assert [line for line in shown.splitlines() if re.match(STAMP, line)] == shown.splitlines()[:1]


SPEAK = """
import logging, sys
from worker.runtime import logs
logs.configure(sys.argv[1], sys.argv[2])
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
    logging.getLogger("worker.x").log(level, "said", {"at": logging.getLevelName(level)})
logging.getLogger("urllib3.connectionpool").warning("noise")
logging.getLogger("other").info("100 % plain")
"""


def spoken(level: str, log_format: str) -> tuple[list[str], list[str]]:
    """What a program writes to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, level, log_format], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_streams() -> None:
    """Warnings and errors go to stderr only, the rest to stdout, from the configured level on."""
    out, err = spoken("info", "text")
    assert [line.split()[1] for line in out] == ["INFO", "INFO"]
    assert out[1].endswith("100 % plain")
    assert [line.split()[1] for line in err] == ["WARNING", "ERROR"]
    out, err = spoken("error", "json")
    assert out == []
    assert [json.loads(line)["at"] for line in err] == ["ERROR"]


def test_configured_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """Configuring the logs again replaces the first configuration: no line is written twice."""
    logs.configure("info", "text")
    logs.configure("debug", "json")
    log.debug("once", {"number": 1})
    log.error("twice")
    said = capsys.readouterr()
    assert [json.loads(line)["message"] for line in said.out.splitlines()] == ["once"]
    assert [json.loads(line)["message"] for line in said.err.splitlines()] == ["twice"]


def test_half_a_character_is_no_lost_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is written also when a value cannot be encoded (half a surrogate pair, which JSON may contain)."""
    for log_format in ("text", "json"):
        logs.configure("info", log_format)
        log.info("provider said", {"reason": "bad \ud800 reply"})
        said = capsys.readouterr()
        assert "provider said" in said.out
        assert said.err == ""
