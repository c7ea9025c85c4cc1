"""bin/status: the status page as text in a terminal, without bin/web, and an exit status."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from workers import ATTEMPTS, PROJECT, WAIT_SECONDS, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.ports import free_port
from sandbox.redis import Redis
from worker.content.calls import WAITING_FOR_HOURS
from worker.runtime.counters import Counters
from worker.runtime.db import queries
from worker.runtime.redis_client import connect
from worker.web.campaign_failures import LATEST, REPLIES
from worker.web.terminal import width
from worker.web.work_in_progress import CAMPAIGN_LIMIT, CAP, SCHEDULED_LIMIT

HEALTHY, DEGRADED, DOWN = 0, 1, 2
TAKES_SECONDS = 3.0
START_SECONDS = 2.0  # of Python itself, on a machine that does other things
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
NASTY = "Diwali \x1b]0;hacked\x07\x1b[2J\r\nforged line"

Result = subprocess.CompletedProcess[str]
Status = Callable[..., Result]


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def qdrant() -> Iterator[str]:
    """The URL of a server that answers every request with 200."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ready) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(environment: dict[str, str], qdrant: str) -> dict[str, str]:
    return environment | {"QDRANT_URL": qdrant}


@pytest.fixture
def status(settings: dict[str, str]) -> Status:
    """Runs bin/status until it ends: ``status("--json", QDRANT_URL=...)``."""

    def run(*arguments: str, **changed: str) -> Result:
        argv = [PROJECT / "bin" / "status", *arguments]
        environment = settings | changed
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


def running(crm: Crm, **columns: Any) -> str:
    """A campaign that the worker started a minute ago, half done."""
    half_done = {"totalRecipients": 200, "sentCount": 90, "failedCount": 10}
    campaign_id = crm.add_campaign(status="running", **(half_done | columns))
    crm.execute(
        "INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at) "
        "VALUES (%s, %s, %s, true, %s)",
        (campaign_id, crm.tenant_id, utc_now() - timedelta(seconds=60), utc_now()),
    )
    return campaign_id


def test_healthy(status: Status, crm: Crm, redis_url: str) -> None:
    """Status 0; a line for each server, job and campaign; no colours, since it is not a terminal."""
    running(crm, name=NASTY)
    counters = Counters(connect(redis_url), "campaign")
    counters.job_started(utc_now(), 60.0)
    counters.job_ended(utc_now(), "success", 0.25, None)
    counters.flush()
    done = status()
    assert (done.returncode, done.stderr) == (HEALTHY, "")
    assert done.stdout.startswith("● Healthy  20")
    for said in ("● PostgreSQL answers", "● Redis answers", "● Qdrant answers", "○ waiting", "100 ", "a second"):
        assert said in done.stdout, said
    assert "\x1b" not in done.stdout, "neither the worker's nor a tenant's"
    assert "\nforged line" not in done.stdout


def test_degraded(status: Status, redis_client: redis.Redis) -> None:
    """Status 1 and the reason: Qdrant is unavailable, or a job is late by two intervals plus its usual duration."""
    done = status(QDRANT_URL=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == DEGRADED
    assert "Qdrant does not answer: the CRM's AI has no knowledge base" in done.stdout
    redis_client.sadd("worker:jobs", "trial")
    late = time.time() - 7300
    redis_client.hset("worker:job:trial", mapping={"last_run": late, "last_success": late, "interval": 3600})
    done = status()
    assert (done.returncode, "trial is late: its last success was 2 h 1 min ago" in done.stdout) == (DEGRADED, True)
    redis_client.hset("worker:job:trial", mapping={"duration_sum": 1200, "duration_count": 2})
    assert status().returncode == HEALTHY, "it usually takes ten minutes"


def test_without_the_workers_tables(status: Status, crm_only_url: str) -> None:
    """The database answers, but the work in progress cannot be read: degraded, and what to do."""
    done = status(DATABASE_URL=crm_only_url)
    assert done.returncode == DEGRADED
    assert "has bin/migrate run?" in done.stdout
    assert "● PostgreSQL answers" in done.stdout


def test_down(status: Status, new_redis: Callable[..., Redis]) -> None:
    """Status 2; what is known is shown."""
    server = new_redis()
    server.kill()
    done = status(REDIS_URL=server.url)
    assert done.returncode == DOWN
    assert "Redis does not answer: jobs wait for it" in done.stdout
    assert "Jobs: unknown" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_redis_that_takes_no_writes(status: Status, new_redis: Callable[..., Redis]) -> None:
    """Down, with what is known, and the reason."""
    server = new_redis(options={"min-replicas-to-write": "1"})
    done = status(REDIS_URL=server.url)
    assert done.returncode == DOWN
    assert "Redis takes no writes: NOREPLICAS" in done.stdout
    assert "Jobs: unknown" not in done.stdout


def test_poisoned_keys(status: Status, redis_client: redis.Redis) -> None:
    """They are named; bin/status changes nothing."""
    redis_client.set("worker:gauges", "x")
    done = status()
    assert 'Warning: The key "worker:gauges" in Redis is a string, not a hash.' in done.stdout
    assert redis_client.keys("*") == ["worker:gauges"]


def test_servers_that_hang(status: Status, silent: int) -> None:
    """It answers in less than three seconds, and ends without waiting for them."""

    def in_time() -> bool:
        began = time.monotonic()
        done = status(
            DATABASE_URL=f"postgresql://crm@127.0.0.1:{silent}/crm",
            REDIS_URL=f"redis://127.0.0.1:{silent}",
            QDRANT_URL=f"http://127.0.0.1:{silent}",
        )
        assert done.returncode == DOWN
        for name in ("PostgreSQL", "Redis", "Qdrant"):
            assert f"{name} does not answer" in done.stdout
        return time.monotonic() - began < TAKES_SECONDS + START_SECONDS

    assert any(in_time() for _ in range(ATTEMPTS))


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def test_json(status: Status, crm: Crm) -> None:
    """One object with everything in it, times as Unix seconds."""
    campaign_id = running(crm)
    crm.add_campaign(status="running", name="of the app servers")
    crm.add_campaign(scheduled_at=utc_now() + timedelta(hours=1))
    crm.add_call()
    crm.add_call(scheduledFor=utc_now() + timedelta(minutes=5))
    shown = json.loads(status("--json").stdout)
    assert (shown["state"], shown["reasons"], shown["warnings"]) == ("ok", [], [])
    (campaign,) = shown["campaigns"]
    assert (campaign["id"], campaign["sent"], campaign["failed"], campaign["total"]) == (campaign_id, 90, 10, 200)
    assert campaign["per_second"] == pytest.approx(100 / 60, rel=0.2)
    assert campaign["ends_at"] == pytest.approx(shown["at"] + 60, abs=12)
    assert shown["campaigns_of_others"] == 1
    assert shown["waiting"]["next_campaign_at"] == pytest.approx(time.time() + 3600, abs=30)
    assert (shown["waiting"]["calls_queued"], shown["waiting"]["calls_unconfirmed"]) == (2, 0)
    assert shown["waiting"]["next_call_at"] == pytest.approx(time.time() + 300, abs=30)
    assert [each["name"] for each in shown["services"]] == ["PostgreSQL", "Redis", "Qdrant"]


def test_a_campaign_that_was_taken_over_has_no_rate_yet(status: Status, crm: Crm) -> None:
    """What the app servers sent before would make it look faster than it is."""
    campaign_id = running(crm)
    crm.execute(
        """INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
           SELECT 'log-1', tenant_id, campaign_id, 'resumed', '', started_at FROM worker.campaign_run"""
    )
    (campaign,) = json.loads(status("--json").stdout)["campaigns"]
    assert (campaign["id"], campaign["per_second"], campaign["ends_at"]) == (campaign_id, None, None)


class Screen:
    """A terminal of ``columns`` columns in which bin/status runs."""

    def __init__(self, environment: dict[str, str], columns: int, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, columns))
        argv = [PROJECT / "bin" / "status", *arguments]
        self.process = subprocess.Popen(argv, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self._pieces: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def text(self) -> str:
        return b"".join(self._pieces).decode("utf-8", "replace")

    def end(self) -> int:
        """Waits for the end of the program and for all of its output; returns its status."""
        status = self.process.wait(WAIT_SECONDS)
        self._thread.join()
        os.close(self._ours)
        return status

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self._ours, 65536):
                self._pieces.append(piece)


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_in_a_terminal(settings: dict[str, str], crm: Crm, columns: int) -> None:
    """No wider than the terminal; in colours unless NO_COLOR is set."""
    running(crm, name="A very long name of a campaign " * 5)
    screen = Screen(settings | {"TERM": "xterm"}, columns)
    assert screen.end() == HEALTHY
    assert ESCAPES.search(screen.text)
    assert max(width(line) for line in ESCAPES.sub("", screen.text).split("\r\n")) <= columns
    plain = Screen(settings | {"TERM": "xterm", "NO_COLOR": "1"}, columns)
    assert plain.end() == HEALTHY
    assert not ESCAPES.search(plain.text)


def test_watch(settings: dict[str, str], status: Status) -> None:
    """It draws over the previous status until Ctrl-C, which is not an error."""
    screen = Screen(settings | {"TERM": "xterm"}, 80, "--watch", "0.1")
    wait_for(lambda: screen.text.count("Healthy") >= 3, "it was drawn three times")
    assert screen.text.count("\x1b[H") >= 3
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == HEALTHY
    assert "Traceback" not in screen.text
    for wrong in ("0", "x", "-1", "nan"):
        done = status(f"--watch={wrong}")
        assert (done.returncode, "seconds, from 0.1" in done.stderr) == (2, True)


def test_watch_as_lines(settings: dict[str, str]) -> None:
    """One JSON object per line, for another program; it ends without an error when that program ends."""
    argv = [PROJECT / "bin" / "status", "--json", "--watch", "0.1"]
    with subprocess.Popen(argv, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [json.loads(process.stdout.readline())["state"] for _ in range(2)] == ["ok", "ok"]
        process.stdout.close()
        assert process.wait(WAIT_SECONDS) == HEALTHY
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("name", "value"), [("DATABASE_URL", ""), ("REDIS_URL", "redis://:p#w@host"), ("QDRANT_URL", "qdrant:6333")]
)
def test_bad_settings(status: Status, name: str, value: str) -> None:
    """One line that names the variable, and status 2."""
    done = status(**{name: value})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert "p#w" not in done.stderr + done.stdout


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def test_the_work_in_progress_is_read_by_index(crm: Crm) -> None:
    """However many calls, campaigns and log lines there are: no sequential scan of a table of the CRM."""
    running(crm)
    many = 20_000
    crm.execute(
        """INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", status, "triggerType", "createdById", "updatedAt")
           SELECT 'q' || n, %s, '98', CASE WHEN n %% 2 = 0 THEN 'pending' ELSE 'completed' END, 'manual', %s, now()
           FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, crm.user_id, many),
    )
    crm.execute(
        """INSERT INTO "Campaign" (id, name, channel, status, "textContent", "targetType", "tenantId", "userId",
               "updatedAt")
           SELECT 'c' || n, 'old', 'email', 'completed', '', 'all', %s, %s, now() FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, crm.user_id, many),
    )
    crm.execute(
        """INSERT INTO "Campaign" (id, name, channel, status, "textContent", "targetType", "tenantId", "userId",
               "updatedAt", "scheduledAt")
           SELECT 's' || n, 'later', 'email', 'scheduled', '', 'all', %s, %s, now(), now() + n * interval '1 hour'
           FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, crm.user_id, many),
    )
    crm.execute(
        """INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message)
           SELECT 'l' || n, %s, 'c' || n, 'resumed', '' FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, many),
    )
    crm.execute(
        """INSERT INTO worker.failure (recipient_id, campaign_id, tenant_id, kind, pattern, failed_at)
           SELECT 'f' || n, 'c' || n %% 100, %s, 'refused', '550', now() FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, many),
    )
    crm.execute(
        """INSERT INTO "CampaignRecipient" (id, "tenantId", "campaignId", "recipientType", "recipientId",
               "recipientName", status, "updatedAt")
           SELECT 'f' || n, %s, 'c' || n %% 100 + 1, 'lead', n, '', 'failed', now()
           FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, many),
    )
    crm.execute("ANALYZE")
    statement = "EXPLAIN (ANALYZE, FORMAT JSON) " + queries("web")["work_in_progress"]
    limits = {"cap": CAP, "campaigns": CAMPAIGN_LIMIT, "scheduled": SCHEDULED_LIMIT, "failures": LATEST}
    ((explained,),) = crm.execute(statement, limits | {"replies": REPLIES, "waiting": WAITING_FOR_HOURS})
    tables = {"CallQueue", "Campaign", "CampaignLog", "CampaignRecipient"}
    reads = [each for each in nodes(explained[0]["Plan"]) if each.get("Relation Name") in tables]
    assert {each["Relation Name"] for each in reads} == tables
    recipients = [each for each in reads if each["Relation Name"] == "CampaignRecipient"]
    assert {each["Index Name"] for each in recipients} == {"CampaignRecipient_pkey"}
    failures = [each for each in nodes(explained[0]["Plan"]) if each.get("Relation Name") == "failure"]
    assert failures
    assert [each["Node Type"] for each in failures if each["Node Type"] == "Seq Scan"] == []
    assert [each["Node Type"] for each in reads if each["Node Type"] == "Seq Scan"] == []
    assert max(each["Actual Rows"] for each in reads) <= CAP + 1
