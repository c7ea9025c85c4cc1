"""bin/migrate: creates and updates the worker's own tables and its indexes on the CRM's tables."""

import logging
import sys
from collections.abc import Sequence

import psycopg2

from worker.runtime import migrations, program
from worker.runtime.db import Database

log = logging.getLogger(__name__)


DESCRIPTION = """\
Creates and updates the worker's own tables (schema worker) and its indexes (worker_*) in the database at
DATABASE_URL; with CAMPAIGN_ENGINE=procrastinate also the schema engine. It changes nothing else.
It is safe to run it twice, and while all programs run."""

HOW_IT_ENDS = "Exit status: 0 done, or nothing to do; 1 the migration failed; 2 bad settings."


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    program.parser("migrate", DESCRIPTION, HOW_IT_ENDS).parse_args(arguments)
    return program.run_main(migrate_database)


def migrate_database() -> int:
    """Returns 0 or 1; raises SettingsError."""
    settings = program.settings_from_environment("migrate")
    try:
        database = Database(settings.database_url, "crm-worker migrate")
        done = migrations.migrate_database(database, engine=settings.is_spread)
    except psycopg2.Error as error:
        log.error("migration failed", {"reason": str(error).strip()})
        return 1
    print("\n".join(f"done: {name}" for name in done) or "nothing to do: the database is up to date")  # noqa: T201 - a person reads it
    return 0


if __name__ == "__main__":
    sys.exit(main())
