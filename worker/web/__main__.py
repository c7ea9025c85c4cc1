"""bin/web: checks the settings and becomes gunicorn."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.runtime import program

DESCRIPTION = """\
Serves the status page, /livez, /readyz, /health and Prometheus's /metrics at PORT. Redis, PostgreSQL and Qdrant may
be away, and it says so. All that it writes is a short history of what the jobs counted, into Redis."""

CONFIGURATION = Path(__file__).resolve().parents[2] / "conf" / "gunicorn.conf.py"


def main(arguments: Sequence[str] | None = None) -> int:
    program.parser("web", DESCRIPTION, "SIGTERM and SIGINT end it in good order.").parse_args(arguments)
    return program.run_main(_become_gunicorn)


def _become_gunicorn() -> int:
    from worker.web.app import application  # --help needs none of it
    from worker.web.dependencies import Dependencies

    settings = program.settings_from_environment("web")
    application(settings, Dependencies(settings))
    argv = [sys.executable, "-m", "gunicorn", "--config", str(CONFIGURATION)]
    os.execv(sys.executable, argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    sys.exit(main())
