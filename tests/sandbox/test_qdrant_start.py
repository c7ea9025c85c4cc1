"""How the development Qdrant starts, and its errors if it cannot."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from qdrant_server import Curl, qdrant_in

from sandbox.ports import free_port, is_free
from sandbox.qdrant import Qdrant
from sandbox.qdrant.settings import BadSettings, read
from sandbox.servers import ServerMissing

PROJECT = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs the program to its end, with the YAML in a file and the keywords in its environment."""

    def run(*arguments: str, yaml: str = "", **environ: str) -> "subprocess.CompletedProcess[str]":
        config = tmp_path / "qdrant.yaml"
        config.write_text(yaml)
        return subprocess.run(
            [sys.executable, "-m", "sandbox.qdrant.server", "--config-path", str(config), *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)} | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_help_names_the_settings(start: Start) -> None:
    shown = start("--help")
    assert shown.returncode == 0
    assert "storage.snapshots_path" in shown.stdout
    assert "QDRANT__SERVICE__API_KEY" in shown.stdout


def test_the_environment_takes_precedence_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "q.yaml"
    config.write_text(
        "log_level: INFO\nservice: {host: 127.0.0.2, http_port: 7000, grpc_port: 7001, api_key: from-file}\n"
        "storage: {storage_path: /somewhere}\n"
    )
    plain = read(config, {})
    assert (plain.host, plain.http_port, plain.api_key) == ("127.0.0.2", 7000, "from-file")
    assert (plain.storage, plain.snapshots) == (Path("/somewhere"), Path("snapshots").absolute())
    assert plain.max_request_bytes == 32 * 1024 * 1024
    overridden = read(
        config,
        {
            "QDRANT__SERVICE__HOST": "::1",
            "QDRANT__SERVICE__HTTP_PORT": "7010",
            "QDRANT__SERVICE__API_KEY": "",
            "QDRANT__STORAGE__STORAGE_PATH": "/a",
            "QDRANT__STORAGE__SNAPSHOTS_PATH": "/b",
        },
    )
    assert (overridden.host, overridden.http_port, overridden.api_key) == ("::1", 7010, "")
    assert (overridden.storage, overridden.snapshots) == (Path("/a"), Path("/b"))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("service: {http_port: 99999}", "service.http_port must be a number from 1 to 65535"),
        ("service: {http_port: ''}", "service.http_port"),
        ("service: {enable_tls: true}", "TLS"),
        ("service: 5", "service must be a mapping"),
        ("service: {host: [a]}", "service.host must be one value"),
        ("- a", "mapping of sections"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, yaml: str, words: str) -> None:
    config = tmp_path / "q.yaml"
    config.write_text(yaml)
    with pytest.raises(BadSettings) as error:
        read(config, {})
    assert words in str(error.value)


def test_a_bad_configuration_ends_with_status_2(start: Start) -> None:
    done = start(yaml="service: {http_port: many}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "qdrant: service.http_port must be a number from 1 to 65535, not 'many'\n"


def test_a_port_or_a_folder_that_cannot_be_used(start: Start, tmp_path: Path) -> None:
    with qdrant_in(tmp_path / "first") as first:
        ours = {"QDRANT__SERVICE__HOST": "127.0.0.1", "QDRANT__STORAGE__STORAGE_PATH": str(tmp_path / "second")}
        taken = start(QDRANT__SERVICE__HTTP_PORT=str(first.port), **ours)
        assert taken.returncode == 1
        assert taken.stderr == f"qdrant: cannot listen at 127.0.0.1:{first.port}: Address already in use\n"
        ours["QDRANT__SERVICE__HTTP_PORT"] = str(free_port())
        busy = start(**ours | {"QDRANT__STORAGE__STORAGE_PATH": str(first.storage)})
        assert busy.returncode == 1
        assert busy.stderr == f"qdrant: another server uses {first.storage}\n"
        assert Curl(first.url).ask("GET", "/readyz")[0] == 200
    file = tmp_path / "file"
    file.touch()
    unwritable = start(**ours | {"QDRANT__STORAGE__STORAGE_PATH": str(file / "storage")})
    assert unwritable.returncode == 1
    assert unwritable.stderr == f"qdrant: cannot write into {file}/storage/collections: Not a directory\n"


def test_the_files_of_another_server_are_left_alone(start: Start, tmp_path: Path) -> None:
    theirs = tmp_path / "storage" / "collections" / "kb"
    theirs.mkdir(parents=True)
    (theirs / "config.json").write_text("{}")
    done = start(QDRANT__SERVICE__HTTP_PORT=str(free_port()))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot open {theirs}: it was not made by the development server" in done.stderr
    assert (theirs / "config.json").exists()


def test_it_warns_that_it_is_for_development_and_stops_cleanly(tmp_path: Path) -> None:
    with qdrant_in(tmp_path / "q", api_key="s3cret") as server:
        assert server.running
        assert server.answers()
    assert not server.running
    assert is_free(server.port)
    lines = [line.split(" ", 1)[1] for line in (server.data_dir / "qdrant.log").read_text().splitlines()]
    assert lines[0].startswith("WARNING this Qdrant is for development only")
    assert lines[1].startswith(f"INFO started listen=127.0.0.1:{server.port} storage=")
    assert lines[2:] == ["INFO stopped"]


def test_its_command_runs_under_another_parent(tmp_path: Path) -> None:
    """Like supervisord: with the command, the environment, and SIGTERM."""
    server = Qdrant(tmp_path / "q")
    server.prepare()
    environment = {"PATH": os.environ["PATH"]} | server.environment()
    with subprocess.Popen(server.command(), env=environment, cwd="/", stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "started" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_without_the_engine_there_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.servers.find_spec", lambda _package: None)
    with pytest.raises(ServerMissing, match="qdrant_edge"):
        Qdrant(tmp_path / "q").start()
