"""Log lines: one line an event, ``message key=value``, or JSON with the same keys.

DEBUG and INFO go to stdout, warnings and errors to stderr, so that supervisord keeps them in
``<program>.log`` and ``<program>-error.log``. Pass the keys as one mapping:
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
    quiet = logging.StreamHandler(sys.stdout)
    quiet.addFilter(lambda record: record.levelno < logging.WARNING)
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [quiet, loud]
    for handler in root.handlers:
        handler.setFormatter(formatter)
    root.setLevel(level.upper())
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries and pools are our business
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def keys_of(record: logging.LogRecord) -> Mapping[str, Any]:
    return record.args if isinstance(record.args, Mapping) else {}


class TextFormatter(logging.Formatter):
    """``2026-01-31T09:30:00.123Z INFO campaign started campaign=... recipients=500``."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={_shown(value)}" for key, value in keys_of(record).items())
        line = f"{_stamp(record)} {record.levelname} {_on_one_line(record.getMessage())}{pairs}"
        if record.exc_info:
            line += "".join(f"\n  {_on_one_line(each)}" for each in self.formatException(record.exc_info).split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the event's keys, and error when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **keys_of(record),
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
    """Text from the database or a provider must not forge a log line."""
    return printable(text, "\N{REPLACEMENT CHARACTER}")
