"""Whether servers can be used: each way in which PostgreSQL and Redis take no writes, what is said, and recovery."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import falcon.testing
import psycopg2
import pytest
import redis

from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.servers import ServerMissing
from worker.runtime import settings
from worker.runtime.counters import Counters
from worker.runtime.redis_client import connect
from worker.web.app import application
from worker.web.dependencies import KEPT_SECONDS, RENEW_SECONDS, Dependencies, SystemSnapshot
from worker.web.overview import overview
from worker.web.service import Service

NOW = 1_800_000_000.0
PASSWORD = "limited"


class Probe:
    """The web application over real servers, with a clock of its own."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._seconds = 0.0
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "QDRANT_URL": "http://127.0.0.1:9",
            "ENCRYPTION_KEY": "0" * 64,
            "APP_URL": "https://app.crm.example.in",
        }
        loaded = settings.load(environment, "web")
        self.dependencies = Dependencies(loaded, lambda: self._seconds)
        self._client = falcon.testing.TestClient(application(loaded, self.dependencies))

    def later(self, seconds: float = KEPT_SECONDS + 0.1) -> SystemSnapshot:
        self._seconds += seconds
        return self.dependencies.snapshot()

    def readyz(self) -> tuple[int, object]:
        answer = self._client.simulate_get("/readyz")
        return answer.status_code, answer.json

    def health(self) -> tuple[int, object, object]:
        answer = self._client.simulate_get("/health")
        return answer.status_code, answer.json["status"], answer.json["services"]

    def metrics(self, accept: str = "text/plain") -> str:
        return self._client.simulate_get("/metrics", headers={"Accept": accept}).text


@pytest.fixture
def probe() -> Iterator[Callable[[str, str], Probe]]:
    with ExitStack() as stack:

        def make(database_url: str, redis_url: str) -> Probe:
            made = Probe(database_url, redis_url)
            stack.callback(made.dependencies.close)
            return made

        yield make


MakeProbe = Callable[[str, str], Probe]


def execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def assert_unwritable(probe: Probe, service: str, why: str) -> None:
    """Every endpoint says so, and what can be read is still shown."""
    snapshot = probe.later()
    found = snapshot.services[service]
    assert (found.up, found.read_only, found.reason) == (False, True, why)
    assert probe.readyz() == (
        503,
        {"status": "error", "away": [service], "reasons": {service: f"takes no writes: {why}"}},
    )
    code, status, services = probe.health()
    other = {"redis": "database", "database": "redis"}[service]
    assert (code, status) == (503, "error")
    assert services == {service: "disconnected", other: "connected", "qdrant": "unhealthy"}
    assert f'crm_worker_dependency_up{{service="{service}"}} 0.0' in probe.metrics()
    assert snapshot.readings is not None
    assert snapshot.work is not None
    shown = overview(snapshot, NOW, {})
    assert shown.state == "down"
    assert [each.state for each in shown.services if not each.up] == ["takes no writes", "does not answer"]
    assert any("takes no writes" in reason for reason in shown.reasons)


def assert_ready(probe: Probe) -> None:
    probe.later()
    assert probe.readyz() == (200, {"status": "ok", "away": []})


def test_a_database_whose_default_is_read_only(probe: MakeProbe, database_url: str, redis_url: str) -> None:
    """It is noticed at the next connection, and its end at once: a session keeps the default with which it began."""
    name = urlsplit(database_url).path[1:]
    web = probe(database_url, redis_url)
    assert_ready(web)
    execute(database_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    web.later(RENEW_SECONDS + 1)
    assert_unwritable(web, "database", "default_transaction_read_only is on")
    execute(database_url, f'BEGIN READ WRITE; ALTER DATABASE "{name}" RESET default_transaction_read_only; COMMIT')
    assert_ready(web)


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Postgres]:
    """A server in standby mode, which has no primary to follow."""
    server = Postgres(tmp_path / "standby", fsync=False, options={"wal_level": "replica"})
    try:
        server.start()
    except ServerMissing as error:
        pytest.skip(str(error))
    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        (folder,) = cursor.fetchone() or ("",)
    server.stop()
    (Path(folder) / "standby.signal").touch()
    server.start()
    yield server
    server.remove()


def test_a_standby_server(probe: MakeProbe, standby: Postgres, redis_url: str) -> None:
    """It is read-only until it is promoted."""
    server = standby
    web = probe(server.url, redis_url)
    snapshot = web.later()
    assert snapshot.services["database"] == Service(up=False, reason="it is a standby server", read_only=True)
    reasons = {"database": "takes no writes: it is a standby server"}
    assert web.readyz() == (503, {"status": "error", "away": ["database"], "reasons": reasons})
    execute(server.url, "SELECT pg_promote()")
    assert_ready(web)


@pytest.fixture
def limited_url(database_url: str) -> Iterator[str]:
    """The database as a user with one connection, who may only read."""
    execute(
        database_url,
        f"CREATE ROLE crm_limited LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1; "
        "GRANT pg_read_all_data TO crm_limited",
    )
    parts = urlsplit(database_url)
    yield urlunsplit(parts._replace(netloc=f"crm_limited:{PASSWORD}@{parts.hostname}:{parts.port}"))
    execute(
        database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'crm_limited'; DROP ROLE crm_limited",
    )


def test_no_connection_left(probe: MakeProbe, database_url: str, limited_url: str, redis_url: str) -> None:
    """The connection is made anew now and then, so `web` sees what a job that starts now would see."""
    web = probe(limited_url, redis_url)
    assert_ready(web)
    execute(database_url, "ALTER ROLE crm_limited CONNECTION LIMIT 0")
    web.later(RENEW_SECONDS + 1)
    reasons = {"database": "has no connection left"}
    assert web.readyz() == (503, {"status": "error", "away": ["database"], "reasons": reasons})
    execute(database_url, "ALTER ROLE crm_limited CONNECTION LIMIT 1")
    assert_ready(web)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('connection to server at "db", port 5432 failed: FATAL:  sorry, too many clients already', True),
        ('FATAL:  too many connections for role "crm"', True),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", True),
        ("FATAL: no more connections allowed (max_client_conn)", True),
        ("max number of clients reached", True),
        ("[Errno 24] Too many open files", True),
        ('connection to server at "db", port 5432 failed: FATAL:  password authentication failed for "crm"', False),
        ("Connection refused", False),
    ],
)
def test_what_readyz_says_of_a_server_without_an_answer(text: str, problem: bool) -> None:
    """Neither hosts nor users: everybody may ask /readyz."""
    assert Service(up=False, reason=text).problem == ("has no connection left" if problem else "")
    assert Service(up=True).problem == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"maxmemory": 1}, "command not allowed when used memory > 'maxmemory'."),
        ({"min-replicas-to-write": 1}, "NOREPLICAS Not enough good replicas to write."),
    ],
    ids=["full", "no replicas"],
)
def test_redis_that_refuses_writes(
    probe: MakeProbe, database_url: str, new_redis: Callable[..., Redis], options: dict[str, int], why: str
) -> None:
    """Full, or cut off from its replicas."""
    server = new_redis()
    web = probe(database_url, server.url)
    assert_ready(web)
    with closing(server.client()) as client:
        before = client.dbsize()
        for name, value in options.items():
            client.config_set(name, value)
        assert_unwritable(web, "redis", why)
        for name in options:
            client.config_set(name, 0)
        assert_ready(web)
        assert client.dbsize() == before, "asking writes nothing"


def test_redis_that_is_a_replica(probe: MakeProbe, database_url: str, new_redis: Callable[..., Redis]) -> None:
    server = new_redis()
    web = probe(database_url, server.url)
    with closing(server.client()) as client:
        client.replicaof("127.0.0.1", "9")  # type: ignore[arg-type]
        assert_unwritable(web, "redis", "You can't write against a read only replica.")
        client.replicaof("NO", "ONE")
        assert_ready(web)


def test_redis_that_cannot_save(
    probe: MakeProbe, database_url: str, new_redis: Callable[..., Redis], tmp_path: Path
) -> None:
    """MISCONF: after a snapshot that failed, Redis refuses writes (stop-writes-on-bgsave-error)."""
    server = new_redis()
    web = probe(database_url, server.url)
    with closing(server.client()) as client:
        blocked = server.data_dir / "dump.rdb"
        blocked.mkdir()
        (blocked / "x").touch()
        client.config_set("save", "3600 1")
        client.bgsave()
        while client.info("persistence")["rdb_bgsave_in_progress"]:
            pass
        assert client.info("persistence")["rdb_last_bgsave_status"] == "err"
        snapshot = web.later()
        assert snapshot.services["redis"].read_only
        assert snapshot.services["redis"].reason.startswith("MISCONF")
        client.config_set("stop-writes-on-bgsave-error", "no")
        assert_ready(web)


def test_a_user_of_redis_who_may_not_ask(
    probe: MakeProbe, database_url: str, new_redis: Callable[..., Redis]
) -> None:
    """Without the right to SETRANGE, or with another's key of that name, nothing is claimed about writes."""
    server = new_redis()
    with closing(server.client()) as client:
        client.acl_setuser(
            "jobs", enabled=True, passwords=["+jobs"], keys="*", categories=["+@all"], commands=["-setrange"]
        )
        client.rpush("worker:writable", "x")
    web = probe(database_url, f"redis://jobs:jobs@127.0.0.1:{server.port}/0")
    assert_ready(web)
    web = probe(database_url, server.url)
    assert_ready(web)
    with closing(server.client()) as client:
        assert client.lrange("worker:writable", 0, -1) == ["x"]


def test_changes_are_logged_once(
    probe: MakeProbe,
    database_url: str,
    new_redis: Callable[..., Redis],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the server and the reason."""
    server = new_redis()
    web = probe(database_url, server.url)
    web.later()
    with closing(server.client()) as client:
        client.config_set("min-replicas-to-write", 1)
        for _ in range(3):
            web.later()
        client.config_set("min-replicas-to-write", 0)
        for _ in range(3):
            web.later()
    said = [(each.getMessage(), each.args) for each in caplog.records if "redis" in str(each.args)]
    assert said == [
        ("a server takes no writes", {"server": "redis", "reason": "NOREPLICAS Not enough good replicas to write."}),
    ]


def test_poison_is_named_and_left_to_the_sampler(
    probe: MakeProbe, database_url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot changes nothing in Redis (bin/status takes one, too); a line for each key, not for each look."""
    with closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
        client.set("worker:gauges", "x")
        client.set("worker:history", "x")
        client.hset("worker:counters", "a b", "1")
        web = probe(database_url, redis_url)
        for _ in range(3):
            snapshot = web.later()
        assert sorted(client.keys("*")) == ["worker:counters", "worker:gauges", "worker:history"]
        assert client.get("worker:gauges") == "x"
        said = [each.args["key"] for each in caplog.records if isinstance(each.args, dict) and "key" in each.args]
        assert sorted(said) == ["worker:counters", "worker:gauges", "worker:history"]
        assert [each.own.name for each in snapshot.poisoned] == ["worker:counters", "worker:gauges", "worker:history"]
        assert snapshot.services["redis"].up
        sampler = web.dependencies.sampler()
        sampler.start()
        sampler.stop()
        snapshot = web.later()
        assert snapshot.poisoned == ()
        assert client.llen("worker:history") == 1
        assert [each for each in snapshot.warnings if "were poisoned" in each]
        assert client.get("worker:history:poisoned:1") == "x"


def test_metrics_are_those_of_the_current_snapshot(probe: MakeProbe, database_url: str, redis_url: str) -> None:
    """In each format: the same bytes for as long as a snapshot is kept, and the new values with the next one."""
    formats = ("text/plain", "text/plain;version=1.0.0", "application/openmetrics-text;version=1.0.0")
    with closing(connect(redis_url)) as client:
        counters = Counters(client, "campaign")
        web = probe(database_url, redis_url)
        for pending in (7, 8):
            counters.gauge("campaign_pending_recipients", pending)
            assert counters.flush()
            web.later()
            texts = {accept: web.metrics(accept) for accept in formats}
            assert all(f"\ncrm_worker_campaign_pending_recipients {pending}.0\n" in each for each in texts.values())
            assert len(set(texts.values())) == 2, "the forms of the text format differ in their content type only"
            counters.gauge("campaign_pending_recipients", 99)
            assert counters.flush()
            assert {accept: web.metrics(accept) for accept in formats} == texts
