"""bin/qdrant: starts Qdrant, the vector database of the CRM's AI, as conf/qdrant.yaml says.

It looks at what Qdrant needs, says what is wrong, and then becomes Qdrant: the process that supervisord sees, signals
and counts is the database itself.
"""

import logging
import os
import sys
from collections.abc import Sequence

from worker.runtime import program
from worker.vectors.server_program import command_of, environment_of, require_writable

log = logging.getLogger(__name__)

DESCRIPTION = """\
Starts Qdrant with conf/qdrant.yaml: the program that QDRANT_BIN names, or qdrant in PATH. Where there is none, and
the project's sandbox is installed, a server for development with the same REST API takes its place. Qdrant's own
variables (QDRANT__SERVICE__HTTP_PORT and so on) go before the file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, if it returns at all."""
    how_it_ends = "SIGTERM ends Qdrant in good order.\nExit status: 0 stopped, 2 bad settings, else Qdrant's own."
    program.parser("qdrant", DESCRIPTION, how_it_ends).parse_args(arguments)
    return program.run_main(start)


def start() -> int:
    """Becomes Qdrant. Returns 0 when Qdrant runs elsewhere; raises SettingsError."""
    settings = program.settings_from_environment("qdrant")
    if not settings.qdrant_embedded:
        return program.end_without_work("QDRANT_EMBEDDED is false", "qdrant")
    for path in (settings.qdrant_storage_path, settings.qdrant_snapshots_path):
        require_writable(path)
    command = command_of(settings)
    if settings.qdrant_api_key is None:
        log.warning(
            "Qdrant asks for no key: whoever reaches its ports reads and deletes the knowledge of all tenants; "
            "set QDRANT_API_KEY here and in the CRM"
        )
    log.info("starting Qdrant", {"command": " ".join(command), "storage": settings.qdrant_storage_path})
    os.chdir(settings.qdrant_storage_path)  # whatever it writes beside its configured paths
    program.replace_process(command, environment_of(settings))


if __name__ == "__main__":
    sys.exit(main())
