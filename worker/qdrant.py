"""bin/qdrant: starts Qdrant, the vector database of the CRM's AI, with conf/qdrant.yaml.

It checks what Qdrant needs and then becomes Qdrant (execve): the process that supervisord sees, signals and counts is
the database itself.
"""

import logging
import os
import sys
from collections.abc import Sequence

from worker.runtime import program
from worker.vectors.server_program import require_writable, server_command, server_environment

log = logging.getLogger(__name__)

DESCRIPTION = """\
Starts Qdrant with conf/qdrant.yaml: the program that QDRANT_BIN names, or qdrant in PATH. If there is none it ends
with status 2, unless QDRANT_DEVELOPMENT is true: then it starts a server for development with the same REST API, from
the project's sandbox. Qdrant's own variables (QDRANT__SERVICE__HTTP_PORT and so on) take precedence over the file."""

HOW_IT_ENDS = "SIGTERM ends Qdrant cleanly.\nExit status: 0 stopped, 2 bad settings or no program, else Qdrant's own."


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, unless the process becomes Qdrant."""
    program.parser("qdrant", DESCRIPTION, HOW_IT_ENDS).parse_args(arguments)
    return program.run_main(start)


def start() -> int:
    """Becomes Qdrant. Returns 0 when Qdrant runs elsewhere; raises SettingsError."""
    settings = program.settings_from_environment("qdrant")
    if not settings.qdrant_embedded:
        return program.end_without_work("QDRANT_EMBEDDED is false", "qdrant")
    for path in (settings.qdrant_storage_path, settings.qdrant_snapshots_path):
        require_writable(path)
    command = server_command(settings)
    if command.for_development:
        log.warning("Qdrant is not installed: a server for development starts, which is not meant for real data")
    if settings.qdrant_api_key is None:
        log.warning(
            "Qdrant has no API key: anyone who reaches its ports can read and delete the knowledge of all tenants; "
            "set QDRANT_API_KEY here and in the CRM"
        )
    log.info("starting Qdrant", {"command": " ".join(command.arguments), "storage": settings.qdrant_storage_path})
    os.chdir(settings.qdrant_storage_path)  # for files that Qdrant writes outside its configured paths
    program.replace_process(command.arguments, server_environment(settings))


if __name__ == "__main__":
    sys.exit(main())
