"""The engine of CAMPAIGN_ENGINE=procrastinate: whether it can be used, and its tables in the schema ``engine``.

The library is imported only where the engine is used (worker/runtime/unit_queue.py).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import psycopg2.extensions

from worker.errors import SchemaError, SettingsError
from worker.runtime.db import Database, queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from worker.runtime.settings import Settings
    from worker.runtime.unit_queue import UnitQueue


def open_queue(settings: Settings, on_unit: Callable[[], None] | None = None) -> UnitQueue:
    """The queue, not connected yet. Raises SettingsError when the library is not installed."""
    made: UnitQueue = _library().UnitQueue(settings.database_url, settings.campaign_sender_timeout_seconds, on_unit)
    return made


def require_engine(db: Database) -> None:
    """Raises SchemaError when the tables are missing or older than the library, SettingsError behind a pooler."""
    if db.pooled:
        raise SettingsError(
            "CAMPAIGN_ENGINE=procrastinate needs sessions of its own: give this program a DATABASE_URL that leads to "
            "PostgreSQL itself, or to a pooler in session mode with pgbouncer=false"
        )
    newest, present = max(_library().schema_scripts()[1]), _newest(db)
    if present is None or present < newest:
        state = "missing" if present is None else f"older than the library: {present}, it needs {newest}"
        raise SchemaError(
            f"the tables of the schema engine are {state}: run bin/migrate with CAMPAIGN_ENGINE=procrastinate"
        )


def migrate_engine(cursor: psycopg2.extensions.cursor) -> list[str]:
    """Makes the tables, or brings them up to date, in one transaction; returns what was done."""
    schema_scripts = _library().schema_scripts
    tables, updates = schema_scripts()
    sql = queries("engine")
    cursor.execute(sql["exists"])
    if (cursor.fetchone() or (False,))[0]:
        cursor.execute(sql["newest"])
        newest = str((cursor.fetchone() or ("",))[0])
        todo = {name: script for name, script in updates.items() if name > newest}
        scripts = list(todo.values())
    else:
        todo = {"tables": tables}
        scripts = [sql["make_schema"], tables, sql["make_tables"]]
    if not todo:
        return []
    cursor.execute("BEGIN")
    try:
        for script in scripts:
            cursor.execute("SET LOCAL search_path TO engine")
            cursor.execute(script)
        cursor.execute(sql["record"], {"name": max(updates)})
    except psycopg2.Error:
        cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")
    return [f"engine: {name}" for name in todo]


def _library() -> ModuleType:
    """worker/runtime/unit_queue.py, which costs memory. Raises SettingsError when its libraries are not installed."""
    try:
        return import_module("worker.runtime.unit_queue")
    except ImportError as error:
        raise SettingsError(
            f"CAMPAIGN_ENGINE=procrastinate needs libraries that are not installed: {error}. Install the worker with "
            "the extra scale (docs/scaling.md)"
        ) from error


def _newest(db: Database) -> str | None:
    """The newest script that the tables have seen; None: there are no tables."""
    sql = queries("engine")
    found = db.one(sql["exists"])
    if not (found and found["present"]):
        return None
    row = db.one(sql["newest"])
    return str(row["newest"]) if row else None
