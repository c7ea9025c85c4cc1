"""bin/healthcheck: whether the web process of this machine answers, for a container's HEALTHCHECK."""

import sys
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from worker.runtime import program

ANSWER_SECONDS = 3.0  # less than HEALTHCHECK's own time-out, so that the reason is said

DESCRIPTION = """\
Asks bin/web of this machine for /livez. PostgreSQL, Redis and Qdrant do not matter: a new container would not bring
them back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = program.parser("healthcheck", DESCRIPTION, "Exit status: 0 it answers, 1 it does not, 2 bad settings.")
    parser.parse_args(arguments)
    return program.run_main(check)


def check() -> int:
    """Returns 0 or 1; raises SettingsError."""
    port = program.settings_from_environment("healthcheck").port
    with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", "/livez")
            status = connection.getresponse().status
        except (OSError, HTTPException) as error:
            sys.stderr.write(f"no answer from 127.0.0.1:{port}: {error!r}\n")
            return 1
    if status != 200:
        sys.stderr.write(f"127.0.0.1:{port}/livez answers {status}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
