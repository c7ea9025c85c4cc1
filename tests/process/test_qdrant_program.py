"""bin/qdrant: what it checks and reports, and what Qdrant is started with."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
import yaml
from workers import PROJECT, Start, wait_for

from sandbox.ports import free_port
from worker.errors import SettingsError
from worker.runtime.settings import load
from worker.vectors.server_program import server_command

# writes down what it was started with, and ends like Qdrant when it is stopped
STAND_IN = """\
import json, os, signal, sys
started = dict(arguments=sys.argv[1:], environment=dict(os.environ), pid=os.getpid(), folder=os.getcwd())
path = os.environ["STARTED"]
with open(path + ".part", "w") as file:
    json.dump(started, file)
os.replace(path + ".part", path)
signal.pause()
"""
NO_QDRANT = f"{PROJECT / 'bin'}:/usr/bin:/bin"  # PATH with bin/qdrant only, which does not count
SECRETS = {"DATABASE_URL", "REDIS_URL", "SMTP_URL", "ENCRYPTION_KEY", "METRICS_TOKEN", "QDRANT_API_KEY"}

Settings = dict[str, str]


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A program called qdrant."""
    path = tmp_path / "programs" / "qdrant"
    path.parent.mkdir()
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN, "utf-8")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def settings(tmp_path: Path, environment: Settings) -> Settings:
    """What differs from the tests' usual settings: Qdrant in folders of this test."""
    return {
        "QDRANT_EMBEDDED": "true",
        "QDRANT__STORAGE__STORAGE_PATH": str(tmp_path / "qdrant" / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(tmp_path / "qdrant" / "snapshots"),
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(free_port()),
        "STARTED": str(tmp_path / "started"),
    }


@pytest.fixture
def refused(start: Start, settings: Settings) -> Callable[..., str]:
    """Starts it with settings that it cannot run with: it ends with status 2; returns its one error line."""

    def run(**changed: str) -> str:
        worker = start(program="qdrant", **(settings | changed))
        assert worker.wait() == 2
        (line,) = [each for each in worker.log.splitlines() if "ERROR" in each]
        return line

    return run


def ask(url: str, key: str = "") -> int:
    """The HTTP status of the answer, 0 while there is none."""
    try:
        return urllib3.request("GET", url, headers={"api-key": key} if key else {}, retries=False, timeout=5).status
    except urllib3.exceptions.HTTPError:
        return 0


def test_it_becomes_qdrant(start: Start, settings: Settings, stand_in: Path, tmp_path: Path) -> None:
    """The program of QDRANT_BIN, with conf/qdrant.yaml, its folders and its key, in the same process."""
    key = tmp_path / "key"
    key.write_text("s3cret\n", "utf-8")
    worker = start(
        program="qdrant",
        **settings,
        QDRANT_BIN=str(stand_in),
        QDRANT_API_KEY_FILE=str(key),
        METRICS_TOKEN="t0ken",
        LOG_LEVEL="warning",
    )
    wait_for((tmp_path / "started").exists, "Qdrant is started")
    started = json.loads((tmp_path / "started").read_text("utf-8"))
    assert started["pid"] == worker.pid
    assert started["arguments"] == ["--config-path", str(PROJECT / "conf" / "qdrant.yaml")]
    storage = tmp_path / "qdrant" / "storage"
    assert started["folder"] == str(storage)
    environment = started["environment"]
    assert environment["QDRANT__SERVICE__API_KEY"] == "s3cret"
    assert environment["QDRANT__STORAGE__STORAGE_PATH"] == str(storage)
    assert environment["QDRANT__STORAGE__SNAPSHOTS_PATH"] == str(tmp_path / "qdrant" / "snapshots")
    assert environment["QDRANT_INIT_FILE_PATH"] == str(storage / ".qdrant-initialized")
    assert environment["QDRANT__LOG_LEVEL"] == "WARN"
    assert environment["QDRANT__SERVICE__HTTP_PORT"] == settings["QDRANT__SERVICE__HTTP_PORT"]
    assert not SECRETS & environment.keys(), "it gets no secret of the worker"
    assert "s3cret" not in worker.log
    assert stat.S_IMODE(storage.stat().st_mode) == 0o700


def test_qdrant_in_the_path(start: Start, settings: Settings, stand_in: Path, tmp_path: Path) -> None:
    """``qdrant`` in PATH, but not bin/qdrant itself, which may be in PATH, too."""
    path = f"{PROJECT / 'bin'}:{stand_in.parent}:{os.environ['PATH']}"
    worker = start(program="qdrant", **settings, PATH=path)
    wait_for((tmp_path / "started").exists, "Qdrant is started")
    assert worker.said("set QDRANT_API_KEY") == 1, "without a key it warns: Qdrant is open to everyone"


def test_the_server_for_development(start: Start, settings: Settings) -> None:
    """With QDRANT_DEVELOPMENT=true and without Qdrant's program: it warns, and answers at Qdrant's port."""
    worker = start(program="qdrant", **settings, QDRANT_API_KEY="k", PATH=NO_QDRANT, QDRANT_DEVELOPMENT="true")
    url = f"http://127.0.0.1:{settings['QDRANT__SERVICE__HTTP_PORT']}"
    wait_for(lambda: ask(f"{url}/readyz") == 200, "it is ready")
    assert (ask(f"{url}/collections"), ask(f"{url}/collections", key="k")) == (401, 200)
    assert worker.said("Qdrant is not installed: a server for development starts") == 1
    assert worker.stop() == 0


def test_no_qdrant_program(refused: Callable[..., str], settings: Settings) -> None:
    """Status 2, and where to get the program; the development server does not start unless it is asked for."""
    line = refused(PATH=NO_QDRANT)
    assert "Qdrant is not installed: download its program from https://github.com/qdrant/qdrant/releases" in line
    for way in ("QDRANT_BIN", "QDRANT_EMBEDDED=false", "QDRANT_DEVELOPMENT=true"):
        assert way in line
    assert "QDRANT_DEVELOPMENT is 'maybe'" in refused(PATH=NO_QDRANT, QDRANT_DEVELOPMENT="maybe")
    assert ask(f"http://127.0.0.1:{settings['QDRANT__SERVICE__HTTP_PORT']}/readyz") == 0


def test_development_without_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a production installation: it names the command that installs the development server."""
    monkeypatch.setenv("PATH", NO_QDRANT)
    monkeypatch.setattr("worker.vectors.server_program.DEVELOPMENT_SERVER", "no_sandbox_here.qdrant.server")
    with pytest.raises(SettingsError, match="run bin/install sandbox"):
        server_command(load({"QDRANT_DEVELOPMENT": "true"}, "qdrant"))


def test_qdrants_program_takes_precedence(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QDRANT_DEVELOPMENT=true does not replace a Qdrant that is installed."""
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{NO_QDRANT}")
    command = server_command(load({"QDRANT_DEVELOPMENT": "true"}, "qdrant"))
    assert (command.arguments[0], command.for_development) == (str(stand_in), False)


def test_qdrant_elsewhere(start: Start, settings: Settings) -> None:
    """QDRANT_EMBEDDED=false: nothing is touched, status 0."""
    worker = start(program="qdrant", **(settings | {"QDRANT_EMBEDDED": "false"}))
    assert worker.wait() == 0
    assert "QDRANT_EMBEDDED is false" in worker.log
    assert not Path(settings["QDRANT__STORAGE__STORAGE_PATH"]).exists()


def test_a_folder_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path, stand_in: Path) -> None:
    """The line names the folder, the reason, the user, and how to correct it."""
    (tmp_path / "file").touch()
    line = refused(QDRANT__STORAGE__SNAPSHOTS_PATH=str(tmp_path / "file" / "x"), QDRANT_BIN=str(stand_in))
    assert f"Qdrant cannot write to {tmp_path}/file/x: Not a directory" in line
    assert f"chown -R {os.getuid()}:{os.getgid()}" in line
    line = refused(QDRANT__STORAGE__STORAGE_PATH="/proc/qdrant", QDRANT_BIN=str(stand_in))
    assert "Qdrant cannot write to /proc/qdrant" in line


def test_qdrant_bin_is_not_a_program(refused: Callable[..., str], tmp_path: Path) -> None:
    """QDRANT_BIN is missing, a folder, or bin/qdrant itself: status 2, and no endless loop."""
    for path in (tmp_path / "none", tmp_path, PROJECT / "bin" / "qdrant"):
        assert f"QDRANT_BIN is {path}, which is not Qdrant's program" in refused(QDRANT_BIN=str(path))


def test_the_configuration_agrees_with_the_settings() -> None:
    """The folders of conf/qdrant.yaml are the defaults of the variables, the ports those of the documentation."""
    conf = yaml.safe_load((PROJECT / "conf" / "qdrant.yaml").read_text("utf-8"))
    done = subprocess.run(
        [PROJECT / "bin" / "qdrant", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    for path in (conf["storage"]["storage_path"], conf["storage"]["snapshots_path"]):
        assert f"(default {path})" in done.stdout
    assert (conf["service"]["http_port"], conf["service"]["grpc_port"]) == (6333, 6334)
    assert conf["telemetry_disabled"] is True
    assert "api_key" not in conf["service"], "no secret in a file of the project"
