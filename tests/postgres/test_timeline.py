"""Whether PostgreSQL is the server that it was: known over restarts, and to users with few rights."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandbox.crm import Crm
from worker.errors import SettingsError
from worker.runtime.db import Database
from worker.runtime.timeline import Timeline

NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
OTHER = ["1/00000009", None]


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "timeline")) as database:
        yield database


def test_the_first_look(db: Database, tmp_path: Path) -> None:
    """There is nothing to compare with, so nothing has changed; the next process has something."""
    path = tmp_path / "state" / "timeline.job"
    timeline = Timeline(db, path, Clock())
    assert not timeline.has_changed()
    assert timeline.name == db.timeline == "00000001"
    cluster = db.one("SELECT system_identifier::text AS id FROM pg_control_system()")
    assert cluster
    assert json.loads(path.read_text()) == [f"{cluster['id']}/00000001", None]
    assert not Timeline(db, path, Clock()).has_changed()
    assert not timeline.changed_within(1e9)


def test_a_change_is_known_until_it_is_accepted(db: Database, tmp_path: Path) -> None:
    """Over a restart, too; afterwards it is known when it was."""
    path, clock = tmp_path / "timeline.job", Clock()
    path.write_text(json.dumps(OTHER))
    assert Timeline(db, path, clock).has_changed()
    timeline = Timeline(db, path, clock)
    assert timeline.has_changed()
    timeline.accept()
    assert not timeline.has_changed()
    clock.now += timedelta(minutes=10)
    restarted = Timeline(db, path, clock)
    assert not restarted.has_changed()
    assert restarted.changed_at == NOON
    assert restarted.changed_within(601)
    assert not restarted.changed_within(599)
    assert [each.name for each in tmp_path.iterdir()] == ["timeline.job"]


def test_it_looks_after_each_connect(db: Database, tmp_path: Path) -> None:
    """And not at each tick: a server does not change behind a connection."""
    path = tmp_path / "timeline.job"
    timeline = Timeline(db, path, Clock())
    assert not timeline.has_changed()
    path.write_text(json.dumps(OTHER))
    assert not timeline.has_changed()
    db.close()
    assert timeline.has_changed()


def test_it_looks_each_time_behind_a_pooler(database_url: str, tmp_path: Path) -> None:
    """A pooler may connect to another server, and nobody tells the job."""
    path = tmp_path / "timeline.job"
    with closing(Database(f"{database_url}?pgbouncer=true", "timeline")) as db:
        timeline = Timeline(db, path, Clock())
        assert not timeline.has_changed()
        path.write_text(json.dumps(OTHER))
        assert timeline.has_changed()


def test_a_user_who_may_not_ask(
    crm: Crm, db: Database, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, with what to do, and nothing seems to have changed; jobs go on."""
    role = "few_rights"
    crm.execute(f"DROP ROLE IF EXISTS {role}")
    crm.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}").geturl()
    with closing(Database(url, "timeline")) as limited:
        assert not Timeline(limited, tmp_path / "a", Clock()).has_changed()
        assert limited.timeline == "00000001"  # no grant is needed
    crm.execute("REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM PUBLIC")
    try:
        with closing(Database(url, "timeline")) as limited, caplog.at_level(logging.WARNING):
            timeline = Timeline(limited, tmp_path / "b", Clock())
            assert not timeline.has_changed()
            limited.close()
            assert not timeline.has_changed()
            assert limited.timeline == ""
    finally:
        crm.execute("GRANT EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) TO PUBLIC")
    [said] = [each for each in caplog.records if "does not tell its timeline" in each.message]
    assert "pg_walfile_name" in str(said.args)
    crm.execute(f"DROP ROLE {role}")


def test_a_damaged_file(db: Database, tmp_path: Path) -> None:
    """The program does not start, and says which file and what to do."""
    (tmp_path / "timeline.job").write_text("?")
    with pytest.raises(SettingsError, match="delete the file if it is damaged"):
        Timeline(db, tmp_path / "timeline.job", Clock())


def test_a_directory_that_cannot_be_made(db: Database) -> None:
    with pytest.raises(SettingsError, match="STATE_DIR has to name a directory"):
        Timeline(db, Path("/proc/nowhere/timeline.job"), Clock())
