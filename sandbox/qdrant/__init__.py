"""A Qdrant for development on 127.0.0.1, from the wheel qdrant-edge-py.

    server = Qdrant(folder)
    server.start()
    client = QdrantClient(url=server.url)

``command()`` and ``environment()`` are what runs it in the foreground, for supervisord.
"""

import os
import signal
import sys
from pathlib import Path

import urllib3

from sandbox.ports import free_port
from sandbox.servers import Child, wheel_folder

_PROJECT = Path(__file__).resolve().parent.parent.parent


class Qdrant:
    """One server and its files in ``data_dir``."""

    def __init__(self, data_dir: Path, port: int | None = None, *, api_key: str | None = None) -> None:
        """``port`` None: a free one. ``api_key`` None: everybody may call it. Nothing is touched before ``start``."""
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self.api_key = api_key
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> Path:
        return self.data_dir / "storage"

    @property
    def snapshots(self) -> Path:
        """Where a snapshot lies as ``<collection>/<name>``."""
        return self.data_dir / "snapshots"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def answers(self) -> bool:
        """Whether a server answers at the port, whoever started it."""
        try:
            return urllib3.request("GET", f"{self.url}/readyz", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def prepare(self) -> None:
        """Writes the configuration. Raises ServerMissing when there is no engine to run."""
        wheel_folder("qdrant_edge")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text("service:\n  host: 127.0.0.1\n", "utf-8")

    def command(self) -> list[str]:
        """What runs this server in the foreground; SIGTERM ends it in order. Call ``prepare`` before."""
        return [sys.executable, "-m", "sandbox.qdrant.server", "--config-path", str(self._configuration)]

    def environment(self) -> dict[str, str]:
        """What ``command`` needs in its environment besides the usual."""
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_PROJECT), os.environ.get("PYTHONPATH")))),
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__API_KEY": self.api_key or "",
            "QDRANT__STORAGE__STORAGE_PATH": str(self.storage),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.snapshots),
        }

    def start(self) -> None:
        """Starts the server and waits until it answers. It ends with the thread that calls this."""
        self.prepare()
        environment = os.environ | self.environment()
        self._child = Child(
            self.command(), self.data_dir / "qdrant.log", directory=self.data_dir, environment=environment
        )
        self._child.wait_until(self.answers, "the development Qdrant")

    def stop(self) -> None:
        """Ends the server in order and waits for it."""
        if self._child is not None:
            self._child.end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server as a power cut would, except that the system goes on."""
        if self._child is not None:
            self._child.end(signal.SIGKILL)

    @property
    def _configuration(self) -> Path:
        return self.data_dir / "qdrant.yaml"
