"""bin/healthcheck: whether the web process of this machine answers, for a container's HEALTHCHECK."""

import sys
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from worker.runtime import program

TIMEOUT_SECONDS = 3.0  # shorter than HEALTHCHECK's own, so that the reason is written

DESCRIPTION = """\
Requests /livez from bin/web on this machine. PostgreSQL, Redis and Qdrant are not checked: a new container would not
make them available again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = program.parser("healthcheck", DESCRIPTION, "Exit status: 0 it answers, 1 it does not, 2 bad settings.")
    parser.parse_args(arguments)
    return program.run_main(check)


def check() -> int:
    """Returns 0 or 1; raises SettingsError."""
    port = program.settings_from_environment("healthcheck").port
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as connection:
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
