"""Named SQL statements and DATABASE_URL, without a database."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.runtime.database_url import parse_database_url
from worker.runtime.db import Database, queries
from worker.runtime.setting_parsers import url

FOLDER = Path(__file__).parents[2] / "worker" / "sql"
INCLUDE = re.compile(r"^ *-- include: (\w+)$", re.MULTILINE)
INCLUDED = {name for path in FOLDER.glob("*.sql") for name in INCLUDE.findall(path.read_text("utf-8"))}
JOBS = sorted(path.stem for path in FOLDER.glob("*.sql") if path.stem not in INCLUDED)


@pytest.mark.parametrize("job", JOBS)
def test_every_statement_has_its_name(job: str) -> None:
    """A file is cut at its names; nothing is lost, and no name is there twice."""
    names = re.findall(r"^-- name: (\w+)", (FOLDER / f"{job}.sql").read_text("utf-8"), re.MULTILINE)
    assert names
    assert list(queries(job)) == names
    assert len(set(names)) == len(names)
    assert all(statement and "-- name:" not in statement for statement in queries(job).values())


def test_an_include_stands_for_the_text_of_its_file() -> None:
    """Where a statement includes a file, it has the file's text and nothing of the include itself."""
    assert "email_log" in INCLUDED
    for job in JOBS:
        includes = INCLUDE.findall((FOLDER / f"{job}.sql").read_text("utf-8"))
        statements = "\n".join(queries(job).values())
        assert "-- include:" not in statements
        for name in INCLUDED:
            text = (FOLDER / f"{name}.sql").read_text("utf-8").rstrip()
            assert statements.count(text) == includes.count(name)


@pytest.mark.parametrize(
    ("given", "for_libpq", "schema"),
    [
        ("postgresql://u:p@h:5432/crm", "postgresql://u:p@h:5432/crm", None),
        ("postgresql://h/crm?schema=crm&connection_limit=5", "postgresql://h/crm", "crm"),
        ("postgresql://h/crm?schema=a%20b&sslmode=require", "postgresql://h/crm?sslmode=require", "a b"),
        ("postgresql://h/crm?options=-c%20a%3Db+c&pgbouncer=true", "postgresql://h/crm?options=-c%20a%3Db+c", None),
    ],
)
def test_a_url_of_the_nodejs_client(given: str, for_libpq: str, schema: str | None) -> None:
    """Parameters that only the Node.js client knows are taken out; the others stay as they are, letter by letter."""
    parsed = parse_database_url(given)
    assert (parsed.libpq, parsed.schema) == (for_libpq, schema)


OF_THE_SESSION = re.compile(
    r"pg_(try_)?advisory_lock|set_config\([^()]*, false\)|\bWITH HOLD\b|^(SET(?! LOCAL)|LISTEN|PREPARE|LOAD)\b|"
    r"^CREATE TEMP\w* TABLE(?!.*ON COMMIT DROP)",
    re.DOTALL,
)


@pytest.mark.parametrize("job", JOBS)
def test_no_statement_leaves_anything_in_its_session(job: str) -> None:
    """The session may be another client's afterwards: settings, locks and tables belong to transactions."""
    found = {name for name, statement in queries(job).items() if OF_THE_SESSION.search(statement)}
    assert found == set()
    assert OF_THE_SESSION.search("SELECT set_config('statement_timeout', '3s', false)")


SEVERAL = [
    "postgresql://u:p@db1:5432,db2:5433/crm?target_session_attrs=read-write",
    "postgres://u:p@db1,db2:5433,10.0.0.3/crm?connect_timeout=2",
    "postgresql://u:p@[::1]:5432,[::2]:5433/crm",
    "postgresql://u:p@db1,[::2]:5433/crm",
]


@pytest.mark.parametrize("address", SEVERAL)
@pytest.mark.parametrize(("parameter", "pooled"), [("", None), ("pgbouncer=true", True), ("pgbouncer=false", False)])
def test_a_url_with_several_hosts(address: str, parameter: str, pooled: bool | None) -> None:
    """It is libpq's, letter by letter; what it says about a pooler is not lost."""
    mark = "&" if "?" in address else "?"
    given = f"{address}{mark}{parameter}" if parameter else address
    assert url("postgresql", "postgres")(given) == given
    parsed = parse_database_url(given)
    assert (parsed.libpq, parsed.pooled) == (address, pooled)
    assert address not in repr(parsed)


@pytest.mark.parametrize("parameter", ["pgbouncer=yes", "pgbouncer=", "pgbouncer=1&pgbouncer=true"])
def test_what_a_url_says_about_a_pooler_is_not_dropped(parameter: str) -> None:
    """What is neither true nor false is refused at start."""
    with pytest.raises(SettingsError, match="pgbouncer is true for a pooler in transaction mode"):
        Database(f"postgresql://u:hunter2@h/crm?{parameter}", "test")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:hunter2@db1:5432,db2:99999/crm",
        "postgresql://u:hunter2@h:99999/crm",
        "postgresql://u:pre/hunter2@h/crm",
        "postgresql://u:p@h/crm?hunter2=1",
    ],
)
def test_a_url_that_libpq_does_not_take(address: str) -> None:
    """It is refused at start, and nothing of it is repeated."""
    with pytest.raises(SettingsError, match="DATABASE_URL cannot be read") as caught:
        Database(address, "test")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


IMPORT = """
from psycopg2.extensions import adapters, encodings, string_types
tables = adapters, encodings, string_types
before = [dict(table) for table in tables]
import worker.runtime.db
for table, old in zip(tables, before):
    assert table.keys() == old.keys()
    assert all(table[key] is old[key] for key in old)  # two types of one kind are equal, but not the same
"""


def test_the_import_changes_nothing_for_others() -> None:
    """psycopg2's global type conversions are the same before and after the module is imported."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
