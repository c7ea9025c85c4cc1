"""The development server of Qdrant's REST API on 127.0.0.1, from the wheel qdrant-edge-py.

    server = Qdrant(folder)
    server.start()
    client = QdrantClient(url=server.url)

``command()`` runs it in the foreground with ``environment()``, for supervisord.
"""

import os
import sys
from pathlib import Path

import urllib3

from sandbox.ports import free_port
from sandbox.servers import Child, ManagedServer, wheel_folder

_PROJECT = Path(__file__).resolve().parent.parent.parent


class Qdrant(ManagedServer):
    """One server and its files in ``data_dir``."""

    def __init__(self, data_dir: Path, port: int | None = None, *, api_key: str | None = None) -> None:
        """``port`` None: a free one. ``api_key`` None: no key is needed. Nothing is created before ``start``."""
        super().__init__()
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self.api_key = api_key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> Path:
        return self.data_dir / "storage"

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots, ``<collection>/<name>``."""
        return self.data_dir / "snapshots"

    def answers(self) -> bool:
        try:
            return urllib3.request("GET", f"{self.url}/readyz", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def prepare(self) -> None:
        """Writes the configuration. Raises ServerMissing if the engine is not installed."""
        wheel_folder("qdrant_edge")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text("service:\n  host: 127.0.0.1\n", "utf-8")

    def command(self) -> list[str]:
        """Runs this server in the foreground; SIGTERM ends it cleanly. Call ``prepare`` first."""
        return [sys.executable, "-m", "sandbox.qdrant.server", "--config-path", str(self._configuration)]

    def environment(self) -> dict[str, str]:
        """What ``command`` needs in its environment besides the usual variables."""
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_PROJECT), os.environ.get("PYTHONPATH")))),
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__API_KEY": self.api_key or "",
            "QDRANT__STORAGE__STORAGE_PATH": str(self.storage),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.snapshots),
        }

    def start(self) -> None:
        self.prepare()
        environment = os.environ | self.environment()
        self._child = Child(
            self.command(), self.data_dir / "qdrant.log", directory=self.data_dir, environment=environment
        )
        self._child.wait_until(self.answers, "the development Qdrant")

    @property
    def _configuration(self) -> Path:
        return self.data_dir / "qdrant.yaml"
