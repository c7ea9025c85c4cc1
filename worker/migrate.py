"""bin/migrate: makes and updates the worker's own tables and its indexes on the CRM's tables."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import closing

import psycopg2

from worker.runtime import program
from worker.runtime.db import Database
from worker.runtime.migrations import migrate

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bin/migrate",
        description="Makes and updates the worker's own tables (schema worker) and its indexes (worker_*) in the "
        "database at DATABASE_URL. Changes nothing else. Safe to run twice and while everything runs.",
    )
    parser.parse_args(arguments)
    return program.run_main(_migrate_configured)


def _migrate_configured() -> int:
    settings = program.settings_from_environment("migrate")
    try:
        with closing(Database(settings.database_url, "crm-worker migrate").connect()) as connection:
            done = migrate(connection)
    except psycopg2.Error as error:
        log.error("not migrated", {"reason": str(error).strip()})
        return 1
    print("\n".join(f"done: {name}" for name in done) or "nothing to do: the database is up to date")  # noqa: T201 - a person reads it
    return 0


if __name__ == "__main__":
    sys.exit(main())
