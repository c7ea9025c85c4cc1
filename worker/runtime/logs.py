"""Log lines: one line for each event, ``message key=value``, or JSON with the same keys.

DEBUG and INFO go to stdout, WARNING and ERROR to stderr, so that supervisord writes them to ``<program>.log`` and
``<program>-error.log``. Pass the keys as one mapping:
``log.info("campaign started", {"campaign": id})``.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from worker.content.one_line import printable


def configure(level: str, log_format: str) -> None:
    """Sets up the root logger of a program."""
    formatter: logging.Formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    to_stdout = logging.StreamHandler(sys.stdout)
    to_stdout.addFilter(lambda record: record.levelno < logging.WARNING)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [to_stdout, to_stderr]
    for handler in root.handlers:
        handler.setFormatter(formatter)
    root.setLevel(level.upper())
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of lost connections, which web reports itself
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes a line for each request


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _event_keys(record: logging.LogRecord) -> Mapping[str, Any]:
    return record.args if isinstance(record.args, Mapping) else {}


class TextFormatter(logging.Formatter):
    """``2026-01-31T09:30:00.123Z INFO campaign started campaign=... recipients=500``."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={_shown(value)}" for key, value in _event_keys(record).items())
        line = f"{_timestamp(record)} {record.levelname} {_on_one_line(record.getMessage())}{pairs}"
        if record.exc_info:
            line += "".join(f"\n  {_on_one_line(each)}" for each in self.formatException(record.exc_info).split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time, level, logger, message, the event's keys, and error for an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_event_keys(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _shown(value: object) -> str:
    shown = _on_one_line(str(value))
    if shown and not any(char in shown for char in ' "='):
        return shown
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _on_one_line(text: str) -> str:
    """Text from the database or a provider must not look like a log line of its own."""
    return printable(text, "\N{REPLACEMENT CHARACTER}")
