"""bin/status: the status of the worker in a terminal. It asks the servers itself, so bin/web need not run."""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from worker.runtime import program
from worker.web.dependencies import Dependencies
from worker.web.overview import Overview, job_zones, overview
from worker.web.status_text import status_lines
from worker.web.terminal import Terminal

STATUS_OF = {"ok": 0, "degraded": 1, "down": 2}
WATCH_SECONDS = 2.0  # more often makes no sense: answers are kept for so long
DESCRIPTION = """\
Shows the status of the worker: its servers, jobs, running campaigns, backlog, the last hour and the last errors. It
asks the servers itself and changes nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    # it asks the same servers as bin/web, so it reads the same variables
    parser = program.parser("web", DESCRIPTION, "Exit status: 0 healthy, 1 degraded, 2 down, or bad settings.")
    parser.prog = "bin/status"
    parser.add_argument("--json", action="store_true", help="one JSON object, times as Unix seconds")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"repeat until Ctrl-C, every SECONDS seconds (default {WATCH_SECONDS:g})",
    )
    return program.run_main(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    loaded = program.settings_from_environment("web")
    dependencies = Dependencies(loaded)
    logging.disable(logging.CRITICAL)  # the screen shows what the probes would log
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    status = STATUS_OF["ok"]
    try:
        while True:
            shown = overview(dependencies.snapshot(), time.time(), job_zones(loaded))
            status = STATUS_OF[shown.state]
            _show(shown, as_json=options.json, again=options.watch is not None)
            if options.watch is None:
                break
            time.sleep(options.watch)
    except KeyboardInterrupt:
        pass  # the usual end of --watch
    except BrokenPipeError:  # the reader, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not dependencies.close():
        os._exit(status)  # without waiting for a server that hangs
    return status


def _show(shown: Overview, *, as_json: bool, again: bool) -> None:
    if as_json:
        text = json.dumps(asdict(shown))
    elif again and sys.stdout.isatty():
        # line by line over the previous status, which flickers less than clearing the screen
        lines = "".join(f"{line}\x1b[K\n" for line in status_lines(shown, _terminal()))
        text = f"\x1b[H{lines}\x1b[J"
    else:
        text = "\n".join(status_lines(shown, _terminal())) + ("\n" if again else "")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _terminal() -> Terminal:
    """The terminal's width; elsewhere COLUMNS, or as wide as it takes."""
    if sys.stdout.isatty():
        colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return Terminal(shutil.get_terminal_size().columns, colours)
    columns = os.environ.get("COLUMNS", "")
    return Terminal(int(columns) if columns.isdecimal() and int(columns) > 0 else None, colours=False)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("seconds, from 0.1 to 86400")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
