"""The image of Dockerfile.worker: built, inspected, and run as a container with real servers."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from contextlib import ExitStack
from pathlib import Path

import pytest
import urllib3
from books import Books
from workers import ANSWERED, PROJECT, THREADS, wait_for

from sandbox.buildah import Buildah
from sandbox.crm import Crm
from sandbox.image import Image, build
from sandbox.image_container import Container
from sandbox.ports import free_port
from sandbox.qdrant import Qdrant
from sandbox.servers import ServerMissing
from sandbox.world import World
from worker.registry import JOBS
from worker.runtime.settings import variables

STOP_SECONDS = 10.0  # after which `docker stop` kills
USER = 10001
SLOW_SECONDS = 90.0  # for what takes a few seconds on an idle machine

IMPORT_ALL = """
import importlib, pkgutil, worker
for module in pkgutil.walk_packages(worker.__path__, "worker."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
NOT_SHIPPED = ("gcc", "cc", "make", "pip", "pip3", "git", "curl", "npm")

Run = Callable[..., Container]


@pytest.fixture(scope="session")
def image() -> Image:
    try:
        return build(Buildah())
    except ServerMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def database_url(crm_only_url: str) -> str:
    """A database that bin/migrate has not seen yet."""
    return crm_only_url


@pytest.fixture
def run(image: Image, environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Starts a container with these settings: ``run(MIGRATE="true")``; it ends with the test."""
    known = {each.name for each in variables()} - {"STATE_DIR", "QDRANT_EMBEDDED"}
    usual = {name: value for name, value in environment.items() if name in known}
    qdrant = free_port()
    usual |= {"PORT": str(free_port()), "QDRANT__SERVICE__HTTP_PORT": str(qdrant)}
    usual["QDRANT_URL"] = f"http://127.0.0.1:{qdrant}"
    with ExitStack() as started:

        def run_one(
            prepare: Callable[[Container], object] | None = None, *, read_only: bool = False, **settings: str
        ) -> Container:
            folder = tmp_path / f"container-{time.monotonic_ns()}"
            folder.mkdir()
            environment = {name: value for name, value in (usual | settings).items() if value}
            container = started.enter_context(Container(image, folder, environment, read_only=read_only))
            started.callback(lambda: print(f"--- container\n{container.log}"))  # noqa: T201 - shown when the test fails
            if prepare:
                prepare(container)
            container.start()
            return container

        yield run_one


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[Qdrant]:
    server = Qdrant(tmp_path / "qdrant")
    server.start()
    yield server
    server.stop()


class Users:
    """Observes the users of a container's processes, again and again."""

    def __init__(self, container: Container) -> None:
        self.ids: set[int] = set()
        self.names: set[str] = set()
        self._container = container
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._observe)

    def __enter__(self) -> "Users":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _observe(self) -> None:
        while not self._ended.wait(0.02):
            for process in self._container.processes():
                # processes that enter from outside first drop root's rights
                if process.name not in ("nsenter", "chroot", "setpriv"):
                    self.ids |= process.user_ids
                    self.names.add(process.name)


def programs() -> set[str]:
    """The programs of the production configuration."""
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(PROJECT / "conf" / "supervisord.worker.conf")
    return {name.partition(":")[2] for name in conf.sections() if name.startswith(("program:", "eventlistener:"))}


def states(container: Container, *names: str) -> Mapping[str, str]:
    """What `docker exec crm-worker supervisorctl status` says."""
    lines = container.execute("supervisorctl", "status", *names).stdout.splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def healthy(container: Container, image: Image) -> bool:
    """The result of the image's own health check."""
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return container.execute(*command).returncode == 0


def log_of(container: Container, name: str) -> str:
    return (container.volumes["/var/log/supervisor"] / name).read_text("utf-8")


def listing(root: Path) -> dict[str, tuple[float, ...]]:
    """Every file of the image below ``root``, without the volumes, with what a write would change."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[path] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def everything_runs(container: Container, image: Image) -> None:
    expected = dict.fromkeys(programs() - {"campaign-sender"}, "RUNNING")
    expected |= {"bounces": "EXITED", "campaign-sender:campaign-sender_00": "STOPPED"}  # no mailbox; not asked for
    wait_for(lambda: states(container) == expected, "all programs run", SLOW_SECONDS)
    wait_for(lambda: healthy(container, image), "it is healthy", SLOW_SECONDS)


def test_a_campaign_is_sent_and_only_volumes_are_written(run: Run, image: Image, crm: Crm, world: World) -> None:
    """It migrates, a program is restarted, `docker stop` comes with messages in flight, no process runs as root."""
    before: dict[str, tuple[float, ...]] = {}
    container = run(
        lambda made: before.update(listing(made.root)),
        MIGRATE="true",
        SHUTDOWN_GRACE_SECONDS="3",
        CAMPAIGN_BATCH_SIZE="20",
    )
    books = Books(crm, world, container.volumes["/qdrant"] / "crm-worker")
    with Users(container) as users:
        everything_runs(container, image)
        campaign = crm.add_campaign("email", recipients=200)
        world.wait_for("smtp", 40, SLOW_SECONDS)
        assert "campaign: started" in container.execute("supervisorctl", "restart", "campaign").stdout
        assert states(container, "worker").keys() == JOBS.keys()
        wait_for(lambda: books.ended(campaign), "the campaign ends", SLOW_SECONDS)
        assert books.balance(campaign) == 0
        wait_for(lambda: "campaign ended" in log_of(container, "campaign.log"), "the end is logged")
        log = container.execute("tail", "-n", "100", "/var/log/supervisor/campaign.log").stdout
        assert log.count("INFO started") == 2
        assert container.execute("bin/status", "--json").stdout.startswith("{")

        world.script("smtp", action="hang", seconds=60, after=ANSWERED)
        before_it = world.total("smtp")
        crm.add_campaign("email", recipients=50)
        hanging = before_it + ANSWERED + THREADS
        wait_for(lambda: world.total("smtp") == hanging, "messages hang on the wire", SLOW_SECONDS)
        assert container.stop(STOP_SECONDS) == 0
    assert users.ids == {USER}
    assert {"python", "gunicorn"} & users.names
    assert listing(container.root) == before
    assert "killing" not in log_of(container, "supervisord.log")


def test_it_works_with_a_read_only_root_and_secrets_in_files(
    run: Run, image: Image, crm: Crm, world: World, database_url: str, redis_url: str, qdrant: Qdrant
) -> None:
    """As the compose file starts it; and bin/knowledge creates its collection in a Qdrant elsewhere."""

    def give_secrets(container: Container) -> None:
        folder = container.volumes["/run"] / "secrets"
        folder.mkdir()
        for name, value in (("database_url", database_url), ("redis_url", redis_url)):
            (folder / name).write_text(f"{value}\n", "utf-8")

    secrets = {"DATABASE_URL_FILE": "/run/secrets/database_url", "REDIS_URL_FILE": "/run/secrets/redis_url"}
    container = run(
        give_secrets, read_only=True, MIGRATE="true", DATABASE_URL="", REDIS_URL="", QDRANT_URL=qdrant.url, **secrets
    )
    everything_runs(container, image)
    campaign = crm.add_campaign("email", recipients=20)
    books = Books(crm, world, container.volumes["/qdrant"] / "crm-worker")
    wait_for(lambda: books.ended(campaign), "the campaign ends", SLOW_SECONDS)
    assert books.balance(campaign) == 0
    collection = f"{qdrant.url}/collections/bharat_crm_knowledge"
    wait_for(lambda: urllib3.request("GET", collection).status == 200, "the collection is created", SLOW_SECONDS)
    assert container.execute("touch", "/opt/crm-worker/x", "/var/x").stderr.count("Read-only file system") == 2
    assert container.stop(STOP_SECONDS) == 0


def test_qdrant_and_its_client_understand_each_other() -> None:
    """The server's minor version differs by at most one from the client's that setup.cfg allows."""
    dockerfile = (PROJECT / "Dockerfile.worker").read_text("utf-8")
    server = re.search(r"^ARG QDRANT_VERSION=v1\.(\d+)\.\d+$", dockerfile, flags=re.MULTILINE)
    client = re.search(r"^ +qdrant-client >= 1\.(\d+), < 1\.(\d+)$", (PROJECT / "setup.cfg").read_text("utf-8"), re.M)
    assert server
    assert client
    oldest, newest = int(client[1]), int(client[2]) - 1
    assert newest - 1 <= int(server[1]) <= oldest + 1


def test_it_reports_why_it_cannot_start(run: Run) -> None:
    """A mounted folder belongs to root, or bin/migrate never ran: status 2, and what to do."""
    container = run(lambda made: os.chown(made.volumes["/var/log/supervisor"], 0, 0))
    assert container.wait(SLOW_SECONDS) == 2
    assert "/var/log/supervisor cannot be written by user 10001:10001" in container.log
    assert "chown -R 10001:10001" in container.log
    container = run()
    assert container.wait(SLOW_SECONDS) == 2
    assert "run bin/migrate, or start the container with MIGRATE=true" in container.log


def test_its_content(image: Image, tmp_path: Path) -> None:
    """No compiler, no pip, no tests; every module can be imported; only volumes belong to its user."""
    config = image.config
    assert config["User"] == f"{USER}:{USER}"
    assert set(config["Volumes"]) == {"/qdrant", "/var/log/supervisor", "/run"}
    labels = {
        f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "revision", "created")
    }
    assert labels <= config["Labels"].keys()
    with Container(image, tmp_path, {}) as container:
        project = container.root / "opt" / "crm-worker"
        assert {path.name for path in project.iterdir()} == {"bin", "conf", "worker", ".venv"}
        assert {path.name for path in (project / "bin").iterdir()} == {
            *programs(),
            "entrypoint",
            "healthcheck",
            "migrate",
            "python",
            "status",
            "suppress",
            "supervisorctl",
        }
        container.start("sleep", "600")
        found = container.execute("sh", "-c", f"for name in {' '.join(NOT_SHIPPED)}; do command -v $name; done")
        assert found.stdout == ""
        assert container.execute("bin/python", "-m", "pip").returncode == 1
        imported = container.execute("bin/python", "-c", IMPORT_ALL, seconds=SLOW_SECONDS)
        assert imported.stderr == ""
        of_user = container.execute(
            "find", "/", "-xdev", "-user", str(USER), "-o", "-xdev", "-perm", "-o=w", "-type", "f"
        )
        places = {*config["Volumes"], "/qdrant/storage", "/qdrant/snapshots", "/qdrant/crm-worker"} - {"/run"}
        assert set(of_user.stdout.split()) <= places
    print(f"{sum(layer.size for layer in image.layers) / 1e6:.0f} MB")  # noqa: T201 - shown in the log
