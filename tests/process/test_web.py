"""bin/web: what probes and Prometheus get, with every server up and with each of them unavailable."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from workers import ATTEMPTS, WAIT_SECONDS, Start, Worker, wait_for

from sandbox.crm import Crm
from sandbox.ports import free_port
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from worker.runtime.clock import utc_now
from worker.runtime.counters import Counters
from worker.runtime.redis_client import connect
from worker.web.metrics import COUNTERS, GAUGES

LONGEST_SECONDS = 3.0
KEPT_SECONDS = 2.0
TOKEN = "sesame-open"


@dataclass
class Answer:
    status: int
    headers: Message
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Web:
    """A running bin/web."""

    worker: Worker
    port: int

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:  # noqa: S310 - http only
                return Answer(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read().decode())

    def answers(self) -> bool:
        with suppress(OSError):
            return self.get("/livez").status == 200
        return False

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every series of /metrics."""
        families = prometheus(self.get("/metrics").text)
        return {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in families
            for each in family.samples
        }

    def dependencies(self) -> dict[str, float]:
        name = "crm_worker_dependency_up"
        return {labels[0][1]: value for (metric, labels), value in self.samples().items() if metric == name}


OpenWeb = Callable[..., Web]


@pytest.fixture
def open_web(start: Start) -> Iterator[OpenWeb]:
    def make(**settings: str) -> Web:
        port = free_port()
        web = Web(start(program="web", PORT=str(port), **settings), port)
        wait_for(web.answers, "bin/web answers")
        return web

    return make


@pytest.fixture
def qdrant() -> Iterator[str]:
    """The URL of a server that answers every request with 200."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(5)
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join()


def test_everything_is_up(open_web: OpenWeb, qdrant: str) -> None:
    """200 everywhere, in the form that the CRM's monitoring reads."""
    web = open_web(QDRANT_URL=qdrant)
    assert web.get("/livez").json == {"status": "ok"}
    assert web.get("/readyz").json == {"status": "ok", "away": []}
    health = web.get("/health")
    assert health.status == 200
    timestamp, uptime = health.json["timestamp"], health.json["uptime"]
    assert health.json == {
        "status": "ok",
        "timestamp": timestamp,
        "uptime": uptime,
        "services": {"redis": "connected", "qdrant": "healthy", "database": "connected"},
        "jobs": dict.fromkeys(("campaign", "leadReminder", "callScheduler", "callCleanup", "trialExpiration"), False),
    }
    assert abs((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()) < 60
    assert uptime >= 0
    assert web.dependencies() == {"redis": 1, "database": 1, "qdrant": 1}


def test_what_jobs_reported_is_what_prometheus_reads(open_web: OpenWeb, redis_url: str) -> None:
    """Counters, gauges and a job's state, in both formats; nothing else from Redis."""
    counters = Counters(connect(redis_url), "campaign")
    counters.add("messages_total", 3, channel="email", outcome="sent")
    counters.add("tenant_secrets_total", 1, tenant="t-1")
    counters.add("calls_total", 1, tenant="t-1")  # with a label that this metric does not have
    counters.gauge("campaign_pending_recipients", 7)
    counters.job_started(utc_now(), 60.0)
    counters.job_ended(utc_now(), "success", 0.25, None)
    counters.flush()
    web = open_web()
    samples = web.samples()
    assert samples["crm_worker_messages_total", (("channel", "email"), ("outcome", "sent"))] == 3
    assert samples["crm_worker_campaign_pending_recipients", ()] == 7
    job = ("job", "campaign")
    assert samples["crm_worker_job_runs_total", (job, ("outcome", "success"))] == 1
    assert samples["crm_worker_job_interval_seconds", (job,)] == 60
    assert samples["crm_worker_job_running", (job,)] == 0
    assert samples["crm_worker_job_duration_seconds_sum", (job,)] == 0.25
    assert samples["crm_worker_job_duration_seconds_bucket", (job, ("le", "0.1"))] == 0
    assert samples["crm_worker_job_duration_seconds_bucket", (job, ("le", "0.5"))] == 1
    assert samples["crm_worker_job_duration_seconds_bucket", (job, ("le", "+Inf"))] == 1
    assert samples["crm_worker_job_last_success_timestamp_seconds", (job,)] > 1.7e9
    assert samples["crm_worker_lock_held", (("lock", "campaign-scheduler"),)] == 0
    assert not [series for series in samples if "secrets" in series[0] or ("tenant", "t-1") in series[1]]
    answer = web.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    shown = {family.name for family in openmetrics(answer.text)}
    assert {f"crm_worker_{name.removesuffix('_total')}" for name in (*COUNTERS, *GAUGES)} <= shown
    summary = web.get("/metrics", Accept="application/json").json
    assert summary["jobsProcessed"] == {"campaigns": 3, "reminders": 0, "calls": 1}
    assert summary["lastRun"]["campaign"].endswith("Z")
    assert (summary["lastRun"]["reminder"], summary["lastRun"]["call"]) == (None, None)


def test_a_job_runs_while_its_lock_is_held(open_web: OpenWeb, redis_url: str, redis_client: redis.Redis) -> None:
    """A killed job stays 'running' in Redis; it counts as running only until its lock expires."""
    counters = Counters(connect(redis_url), "calls")
    counters.job_started(utc_now(), 30.0)
    redis_client.set("lock:call-scheduler", "host:1:x")
    web = open_web()
    assert web.get("/health").json["jobs"]["callScheduler"] is True
    redis_client.delete("lock:call-scheduler")
    wait_for(lambda: web.get("/health").json["jobs"]["callScheduler"] is False, "the job no longer counts as running")


def test_without_redis(open_web: OpenWeb, new_redis: Callable[..., Redis], qdrant: str) -> None:
    """503 and its name; /metrics still has what the process itself knows; it recovers when Redis is back."""
    server = new_redis()
    web = open_web(REDIS_URL=server.url, QDRANT_URL=qdrant)
    assert web.get("/health").json["status"] == "ok"
    server.kill()
    wait_for(lambda: web.get("/health").status == 503, "Redis is reported as unavailable")
    assert web.get("/health").json["services"]["redis"] == "disconnected"
    assert web.get("/readyz").json == {"status": "error", "away": ["redis"]}
    assert web.dependencies() == {"redis": 0, "database": 1, "qdrant": 1}
    assert web.get("/livez").status == 200
    server.start()
    wait_for(lambda: web.get("/health").status == 200, "Redis is reported as available")
    assert web.worker.said("a server does not answer server=redis") == 1
    assert web.worker.said("a server answers again server=redis") == 1


def test_without_postgresql_from_the_start(
    open_web: OpenWeb, new_postgres: Callable[[], Postgres], qdrant: str
) -> None:
    """It starts and serves while the database is unavailable, and notices when it is up."""
    server = new_postgres()
    server.stop()
    web = open_web(DATABASE_URL=server.url, QDRANT_URL=qdrant)
    assert web.get("/health").json["services"]["database"] == "disconnected"
    assert web.get("/health").status == 503
    server.start()
    wait_for(lambda: web.get("/health").json["status"] == "ok", "PostgreSQL is reported as available")


def test_without_qdrant(open_web: OpenWeb) -> None:
    """Degraded, and 200: the jobs work without it."""
    web = open_web(QDRANT_URL=f"http://127.0.0.1:{free_port()}")
    health = web.get("/health")
    assert (health.status, health.json["status"], health.json["services"]["qdrant"]) == (200, "degraded", "unhealthy")
    assert web.get("/readyz").status == 200


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def test_servers_that_hang_delay_no_answer(open_web: OpenWeb, silent: int) -> None:
    """While all three hang, every answer comes within three seconds, and names them."""

    def in_time(web: Web) -> bool:
        took = []
        for path, status in (("/health", 503), ("/metrics", 200), ("/readyz", 503)):
            began = time.monotonic()
            assert web.get(path).status == status
            took.append(time.monotonic() - began)
        services = web.get("/health").json["services"]
        assert services == {"redis": "disconnected", "qdrant": "unhealthy", "database": "disconnected"}
        return max(took) < LONGEST_SECONDS

    hanging = {
        "DATABASE_URL": f"postgresql://crm@127.0.0.1:{silent}/crm",
        "REDIS_URL": f"redis://127.0.0.1:{silent}",
        "QDRANT_URL": f"http://127.0.0.1:{silent}",
    }
    assert any(in_time(open_web(**hanging)) for _ in range(ATTEMPTS))


def test_a_flood_of_probes_costs_the_database_nothing(open_web: OpenWeb, crm: Crm, redis_client: redis.Redis) -> None:
    """Answers are kept for two seconds: hundreds of probes cause few questions."""
    web = open_web()
    web.get("/health")
    before = redis_client.info("stats")["total_commands_processed"]
    began = datetime.now(UTC)
    for _ in range(300):
        web.get("/health")
    rounds = (datetime.now(UTC) - began).total_seconds() / KEPT_SECONDS + 1
    asked = redis_client.info("stats")["total_commands_processed"] - before
    assert asked <= 12 * rounds + 10


def basic(user_and_password: str) -> str:
    return f"Basic {b64encode(user_and_password.encode()).decode()}"


def test_the_token_guards_the_metrics(open_web: OpenWeb, tmp_path: Path) -> None:
    """METRICS_TOKEN is required for /metrics, but not for probes, which show no secret."""
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    web = open_web(METRICS_TOKEN_FILE=str(path))
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(f"anybody:{TOKEN}")):
        assert web.get("/metrics", Authorization=header).status == 200, header
    for header in ("Bearer sesame-ope", "Bearer", basic(f"{TOKEN}:"), "Basic !!!", "Basic 4pi4", "Digest x", "x"):
        answer = web.get("/metrics", Authorization=header)
        assert answer.status == 401, header
        assert "Basic" in answer.headers["WWW-Authenticate"]
        assert TOKEN not in answer.text
    assert web.get("/metrics").status == 401
    assert web.get("/health").status == web.get("/livez").status == web.get("/readyz").status == 200
    assert TOKEN not in web.worker.log


def test_errors_are_json_and_every_answer_has_its_headers(open_web: OpenWeb) -> None:
    """404 and 405 as JSON, without a stack trace; no answer may be framed, sniffed or cached."""
    web = open_web()
    for answer, status in (
        (web.get("/nope"), 404),
        (web.get("/health", method="POST"), 405),
        (web.get("/livez"), 200),
    ):
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/json"
        assert isinstance(answer.json, dict)
        assert "Traceback" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"


def test_it_ends_on_a_signal_and_logs_little(open_web: OpenWeb) -> None:
    """SIGTERM: status 0; requests are not logged, and there is no traceback."""
    web = open_web()
    web.get("/livez")
    assert web.worker.stop() == 0
    assert "GET" not in web.worker.log
    assert "Traceback" not in web.worker.log


def test_bad_settings_end_it_at_once(start: Start) -> None:
    """One line that names the variable, and status 2."""
    worker = start(program="web", PORT="http")
    assert worker.wait() == 2
    assert worker.log.count("PORT is 'http', allowed is a whole number from 1 to 65535") == 1


def test_it_shows_warnings(open_web: OpenWeb, new_redis: Callable[..., Redis], crm: Crm) -> None:
    """A Redis that may evict locks and a missing index: logged once, on the page, and counted for Prometheus."""
    server = new_redis()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    crm.execute("DROP INDEX worker_campaign_due")
    web = open_web(REDIS_URL=server.url)
    assert web.samples()["crm_worker_warnings", ()] == 2
    page = web.get("/").text
    assert "allkeys-lru" in page
    assert "worker_campaign_due" in page
    assert web.worker.said("a check found a problem") == 2
    assert web.get("/health").json.keys() == {"status", "timestamp", "uptime", "services", "jobs"}
