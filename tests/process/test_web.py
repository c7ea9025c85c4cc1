"""bin/web: what probes and Prometheus get, with every server up and with each of them unavailable."""

import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from web_process import OpenWeb, Web
from workers import ATTEMPTS, Start, wait_for

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
    calls = Counters(connect(redis_url), "calls")
    for outcome in ("success", "failure", "skipped", "success"):
        calls.job_ended(utc_now(), outcome, 0.25, None)
    calls.flush()
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
    assert summary["jobsProcessed"] == {"campaigns": 1, "reminders": 0, "calls": 3}, "runs; a skipped one did not run"
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


def test_head_is_get_without_a_body(open_web: OpenWeb) -> None:
    """With the status and headers of GET; only the date, and the length of a body with times in it, may differ."""
    web = open_web()
    for path in ("/livez", "/readyz", "/health", "/metrics", "/", "/nope"):
        got, head = web.get(path), web.get(path, method="HEAD")
        assert (head.status, head.text) == (got.status, ""), path
        fixed = [
            {name: value for name, value in answer.headers.items() if name.lower() not in ("date", "content-length")}
            for answer in (got, head)
        ]
        assert fixed[0] == fixed[1], path
        assert int(head.headers["Content-Length"]) > 0, path


def test_methods(open_web: OpenWeb) -> None:
    """OPTIONS names what is allowed; all others are refused and name it, too, also methods that are unknown."""
    web = open_web(METRICS_TOKEN=TOKEN)
    allowed = "GET, HEAD, OPTIONS"
    for path in ("/livez", "/readyz", "/health", "/metrics", "/"):
        options = web.get(path, method="OPTIONS")
        assert (options.status, options.headers["Allow"], options.text) == (200, allowed, "")
        for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "BREW"):
            refused = web.get(path, method=method)
            assert (refused.status, refused.headers["Allow"]) == (405, allowed)
            assert refused.json["title"] == "405 Method Not Allowed"
    assert web.get("/metrics", method="HEAD").status == 401
    assert web.get("/nope", method="OPTIONS").status == web.get("/nope", method="BREW").status == 404


def test_options_of_the_whole_server(open_web: OpenWeb) -> None:
    """``OPTIONS *`` (RFC 9110, section 9.3.7)."""
    web = open_web()
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as client:
        client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = client.makefile("rb").read().decode().lower()
    assert head.startswith("http/1.1 200 ")
    assert "allow: get, head, options\r\n" in head


def test_metrics_answer_any_accept_header(open_web: OpenWeb) -> None:
    """What cannot be read falls back to Prometheus's text format."""
    web = open_web()
    for accept, content_type in (
        ('application/openmetrics-text; version="1.0.0"', "application/openmetrics-text"),
        ('text/plain; version="1.0.0"', "text/plain; version=1.0.0"),
        ("application/openmetrics-text; version=1.0.0-rc.1", "text/plain; version=0.0.4"),
        ("\xff\xfe", "text/plain; version=0.0.4"),
        ("x" * 60_000, "text/plain; version=0.0.4"),
        ("text/html, application/json; charset=utf-8; q=0.9", "application/json"),
    ):
        answer = web.get("/metrics", Accept=accept)
        assert answer.status == 200, accept
        assert answer.headers["Content-Type"].startswith(content_type), accept
    assert "Traceback" not in web.worker.log


def test_errors_are_json_whatever_is_accepted(open_web: OpenWeb) -> None:
    """A browser or a monitor can read why, whatever it asks for."""
    web = open_web()
    for accept in ("text/html", "application/xml", 'x/y;q="', ";;;"):
        for answer in (web.get("/nope", Accept=accept), web.get("/livez", method="POST", Accept=accept)):
            assert answer.headers["Content-Type"] == "application/json", accept
            assert answer.json["title"].startswith(str(answer.status)), accept


def test_odd_paths_do_not_exist(open_web: OpenWeb) -> None:
    """404, not 500; a query is not looked at."""
    web = open_web()
    for path in ("/%ff", "/livez/", "/livez%00", "/..%2f..%2fetc", "/a" * 2000):
        assert web.get(path).status == 404, path
    assert web.get("/livez?%ff&a=b&a").status == 200


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


def test_poisoned_keys_in_redis(open_web: OpenWeb, redis_client: redis.Redis, redis_url: str) -> None:
    """Each is named once and put aside; every answer has all the rest, and counting goes on."""
    counters = Counters(connect(redis_url), "campaign")
    counters.add("messages_total", 3, channel="email", outcome="sent")
    counters.job_started(utc_now(), 60.0)
    counters.flush()
    redis_client.set("worker:gauges", "x" * 10_000_000)
    redis_client.delete("worker:jobs")
    redis_client.rpush("worker:jobs", "x")
    redis_client.sadd("worker:job:calls", "x")
    redis_client.zadd("worker:history", {"x": 1})
    redis_client.hset("worker:counters", mapping={"a-b": "1", "calls_total": "nan", "trials_suspended_total": "inf"})
    redis_client.hset("worker:job:campaign", mapping={"heartbeat": "1e300", "interval": "1e-9", "pid": "-1"})
    web = open_web()
    sent = "crm_worker_messages_total", (("channel", "email"), ("outcome", "sent"))
    assert web.samples()[sent] == 3
    assert web.dependencies()["redis"] == 1
    assert web.get("/readyz").json == {"status": "ok", "away": []}
    assert web.get("/health").status == web.get("/").status == 200
    assert web.get("/metrics", Accept="application/json").json["lastRun"]["campaign"].endswith("Z")
    assert web.get("/metrics", Accept="application/openmetrics-text").status == 200
    poisoned = {
        "worker:gauges",
        "worker:jobs",
        "worker:job:calls",
        "worker:history",
        "worker:counters",
        "worker:job:campaign",
    }
    wait_for(
        lambda: {key.partition(":poisoned")[0] for key in redis_client.keys("*:poisoned*")} == poisoned,
        "all are put aside",
    )
    wait_for(lambda: redis_client.type("worker:history") == "list", "the history is made anew")
    wait_for(lambda: "were poisoned" in web.get("/").text, "the page warns")
    assert redis_client.smembers("worker:jobs") == {"campaign"}
    assert redis_client.strlen("worker:gauges:poisoned:1") == 10_000_000
    counters.gauge("campaign_pending_recipients", 7)
    counters.job_started(utc_now(), 60.0)
    wait_for(lambda: ("crm_worker_campaign_pending_recipients", ()) in web.samples(), "the gauge is back")
    for key in poisoned:
        assert web.worker.said(f"a key in Redis is poisoned, it is left out key={key} ") == 1
    assert "Traceback" not in web.worker.log


def test_a_database_whose_disk_is_full(open_web: OpenWeb, redis_url: str) -> None:
    """It answers, and only a job that writes finds out: 503 until that job succeeds."""
    campaign = Counters(connect(redis_url), "campaign")
    campaign.job_ended(utc_now(), "failure", 0.1, "could not extend file", refused_by="PostgreSQL")
    campaign.flush()
    web = open_web()
    reason = "takes no writes: the job campaign cannot write; see its last error"
    assert web.get("/readyz").json == {"status": "error", "away": ["database"], "reasons": {"database": reason}}
    assert "PostgreSQL takes no writes: nothing can be sent" in web.get("/").text
    campaign.job_ended(utc_now(), "success", 0.1, None)
    campaign.flush()
    wait_for(lambda: web.get("/readyz").status == 200, "its end is noticed")


def test_messages_that_a_job_waits_for(open_web: OpenWeb, redis_url: str, redis_client: redis.Redis) -> None:
    """Their number is on the page and in the metrics while the job's tick runs."""
    campaign = Counters(connect(redis_url), "campaign")
    campaign.job_started(utc_now(), 60.0)
    campaign.heartbeat(utc_now(), 8)
    redis_client.set("lock:campaign-scheduler", "crm-1:7:0", ex=60)
    web = open_web()
    assert web.samples()["crm_worker_job_stuck_requests", (("job", "campaign"),)] == 8
    assert "8 without an answer" in web.get("/").text
    redis_client.delete("lock:campaign-scheduler")  # its process died
    wait_for(lambda: "without an answer" not in web.get("/").text, "it waits for nothing any more")
    assert web.samples()["crm_worker_job_stuck_requests", (("job", "campaign"),)] == 0


def test_a_database_that_becomes_read_only(open_web: OpenWeb, database_url: str, crm: Crm) -> None:
    """503 with the reason, as long as it lasts; the page still shows what it can read."""
    web = open_web()
    name = urlsplit(database_url).path[1:]
    crm.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    wait_for(lambda: web.get("/readyz").status == 503, "it is noticed")
    reason = "takes no writes: default_transaction_read_only is on"
    assert web.get("/readyz").json == {"status": "error", "away": ["database"], "reasons": {"database": reason}}
    assert web.get("/health").json["status"] == "error"
    page = web.get("/").text
    assert "PostgreSQL takes no writes: nothing can be sent" in page
    assert "No campaign is running" in page
    crm.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    wait_for(lambda: web.get("/readyz").status == 200, "its end is noticed")
    assert web.worker.said("a server takes no writes server=database") == 1
