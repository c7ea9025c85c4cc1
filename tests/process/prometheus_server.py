"""Prometheus and promtool: from PATH, otherwise unpacked from Debian's package, which only root can download.

The package is unpacked into a folder under /var/cache and not installed, so no service is started and nothing else on
the machine changes.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from sandbox.apt_lock import CACHE, apt_lock
from sandbox.ports import free_port
from sandbox.servers import Child, ServerMissing

APT_SECONDS = 300
APT = ("apt-get", "--quiet", "--option", "DPkg::Lock::Timeout=120", "--option", "APT::Sandbox::User=root")
UNPACKED = CACHE / "prometheus"


def program(name: str) -> Path:
    """The path of ``prometheus`` or ``promtool``. Raises ServerMissing."""
    if path := _found(name):
        return path
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ServerMissing(f"there is no {name}, and only root on Debian gets it by itself: apt install prometheus")
    with apt_lock():
        if not _found(name):  # another process may have been quicker
            _unpack()
    return UNPACKED / "usr" / "bin" / name


def _found(name: str) -> Path | None:
    path = shutil.which(name) or shutil.which(name, path=str(UNPACKED / "usr" / "bin"))
    return Path(path) if path else None


def _unpack() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for command in (["update"], ["download", "prometheus"]):
            _run(*APT, *command, directory=folder)
        packages = list(Path(folder).glob("prometheus_*.deb"))
        if not packages:
            raise ServerMissing("apt-get download prometheus left no package")
        unpacked = Path(folder) / "unpacked"
        _run("dpkg-deb", "--extract", str(packages[0]), str(unpacked), directory=folder)
        unpacked.rename(UNPACKED)


def _run(*command: str, directory: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=APT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerMissing(f"{command[0]}: {error}") from error
    if done.returncode:
        raise ServerMissing(f"{' '.join(command)}: {done.stderr.strip()}")


class Prometheus:
    """A Prometheus on 127.0.0.1 that reads ``configuration``; its data are in the same folder."""

    def __init__(self, configuration: Path) -> None:
        """Starts it and waits until it answers. Raises ServerMissing, ServerFailed."""
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._child = Child(
            [
                program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={configuration.parent / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            configuration.parent / "prometheus.log",
            directory=configuration.parent,
        )
        self._child.wait_until(self._ready, "prometheus")

    def kill(self) -> None:
        self._child.end(signal.SIGKILL)

    def value(self, query: str) -> float | None:
        """The value of the first series of a query; None without series. Raises HTTPError for a bad query."""
        found = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")["result"]
        return float(found[0]["value"][1]) if found else None

    def alerts(self, name: str) -> dict[str, dict[str, Any]]:
        """The pending and firing alerts of this name, by their label ``job``."""
        every = self._get("/api/v1/alerts")["alerts"]
        return {each["labels"]["job"]: each for each in every if each["labels"]["alertname"] == name}

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=5) as answer:  # noqa: S310 - http only
            return json.load(answer)["data"]

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):  # noqa: S310 - http only
                return True
        except (urllib.error.URLError, OSError):
            return False
