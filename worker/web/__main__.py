"""bin/web: checks the settings, then replaces itself with gunicorn."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.runtime import program

DESCRIPTION = """\
Serves the status page, /livez, /readyz, /health and Prometheus's /metrics at PORT. It also runs while Redis,
PostgreSQL or Qdrant is unavailable, and reports that. It writes only to Redis: a short history of counters, and what
it puts aside because it is not the worker's."""

CONFIGURATION = Path(__file__).resolve().parents[2] / "conf" / "gunicorn.conf.py"


def main(arguments: Sequence[str] | None = None) -> int:
    program.parser("web", DESCRIPTION, "SIGTERM and SIGINT stop it gracefully.").parse_args(arguments)
    return program.run_main(_become_gunicorn)


def _become_gunicorn() -> int:
    from worker.web.app import application  # slow to import, and --help does not need it
    from worker.web.dependencies import Dependencies

    settings = program.settings_from_environment("web")
    application(settings, Dependencies(settings))
    argv = [sys.executable, "-m", "gunicorn", "--config", str(CONFIGURATION)]
    os.execv(sys.executable, argv)  # noqa: S606 - without a shell


if __name__ == "__main__":
    sys.exit(main())
