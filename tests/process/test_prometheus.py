"""The alerts and the dashboard, checked with promtool and with a real Prometheus that scrapes a real worker."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2.extensions
import pytest
import redis
import yaml
from prometheus_server import Prometheus, program
from workers import PROJECT, Start, Worker, wait_for

from sandbox.ports import free_port
from sandbox.servers import ServerMissing
from worker.runtime.counters import read_all

FOLDER = PROJECT / "conf" / "prometheus"
TOKEN = "sesame-open"
LATE = "CrmWorkerJobNotSucceeding"
INTERVAL = "4s"  # of the job; /metrics keeps its answers for two seconds, which is much less than two intervals

Scraping = Callable[[int], Prometheus]


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Skips the test where it is missing and cannot be installed."""
    try:
        program("prometheus")
        return program("promtool")
    except ServerMissing as error:
        if os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0:
            pytest.fail(str(error))
        pytest.skip(str(error))


def run(promtool: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120, check=False)


def with_token(text: str) -> str:
    """prometheus.yml with the lines for METRICS_TOKEN uncommented."""
    return re.sub(r"^( +)# (basic_auth:|  username:|  password_file:)", r"\1\2", text, flags=re.MULTILINE)


def test_the_configuration_is_valid(promtool: Path, tmp_path: Path) -> None:
    """As it is, and with the lines for METRICS_TOKEN."""
    done = run(promtool, "check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "prometheus.yml").write_text(with_token((FOLDER / "prometheus.yml").read_text("utf-8")), "utf-8")
    (tmp_path / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text("utf-8"), "utf-8")
    (tmp_path / "crm-worker-token").write_text(TOKEN, "utf-8")
    done = run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(promtool: Path) -> None:
    """promtool runs the rules' tests, which say for each alert when it fires and when it does not."""
    done = run(promtool, "test", "rules", *sorted(FOLDER.glob("*_test.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def scraping(promtool: Path, tmp_path: Path) -> Iterator[Scraping]:
    """Starts a Prometheus with the project's configuration and short intervals, for a bin/web at this port."""
    started: list[Prometheus] = []

    def start_one(port: int) -> Prometheus:
        folder = tmp_path / "prometheus"
        folder.mkdir()
        configuration = yaml.safe_load(with_token((FOLDER / "prometheus.yml").read_text("utf-8")))
        configuration["global"] = {
            "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms",
        }  # fmt: skip
        scrape = configuration["scrape_configs"][0]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        rules = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = "1s"
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules), "utf-8")
        (folder / scrape["basic_auth"]["password_file"]).write_text(TOKEN + "\n", "utf-8")
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(configuration), "utf-8")
        started.append(Prometheus(path))
        return started[-1]

    yield start_one
    for each in started:
        each.kill()


def start_web(start: Start) -> int:
    """Starts bin/web; returns its port."""
    port = free_port()
    start(program="web", PORT=str(port), METRICS_TOKEN=TOKEN)
    return port


def test_an_alert_fires_while_a_job_is_stopped(start: Start, scraping: Scraping) -> None:
    """A stopped job causes an alert; when the job runs again, the alert ends."""

    def start_trial() -> Worker:
        return start(program="trial", TRIAL_CHECK_INTERVAL=INTERVAL)

    prometheus = scraping(start_web(start))
    job = start_trial()

    def age() -> float:
        found = prometheus.value('time() - crm_worker_job_last_success_timestamp_seconds{job="trial"}')
        return float("inf") if found is None else found

    wait_for(lambda: prometheus.value('up{job="crm-worker"}') == 1, "Prometheus knows the web process")
    wait_for(lambda: age() < 5, "Prometheus knows that the job succeeded")
    assert prometheus.value('crm_worker_job_runs_total{job="trial", outcome="failure"}') == 0
    assert prometheus.alerts(LATE) == {}
    assert job.stop() == 0
    wait_for(lambda: prometheus.alerts(LATE).get("trial", {}).get("state") == "firing", "the alert fires")
    alert = prometheus.alerts(LATE)["trial"]
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"].startswith("The job trial last succeeded ")
    start_trial()
    wait_for(lambda: prometheus.alerts(LATE) == {}, "the alert has ended")


def test_prometheus_understands_the_queries_of_the_dashboard(start: Start, scraping: Scraping) -> None:
    """Every query of every panel; those about the jobs have a result."""
    prometheus = scraping(start_web(start))
    assert start("--once", program="trial").wait() == 0
    runs = 'increase(crm_worker_job_runs_total{job="trial"}[1m])'
    wait_for(lambda: prometheus.value(runs) is not None, "Prometheus has read the job's counters twice")
    dashboard = json.loads((PROJECT / "conf" / "grafana" / "dashboard.json").read_text("utf-8"))
    without: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
            if prometheus.value(query) is None:
                without.add(panel["title"])
    assert not without & {
        "Servers",
        "Version",
        "Time since the last success, in intervals",
        "Ticks by outcome",
        "Locks",
    }


def test_a_lock_that_is_lost_during_a_tick_is_counted(
    start: Start, redis_client: redis.Redis, second_connection: psycopg2.extensions.connection
) -> None:
    """A tick that finds its lock gone counts in lock_lost_total; a tick that keeps it does not."""
    with second_connection.cursor() as cursor:
        cursor.execute('LOCK TABLE "Tenant" IN ACCESS EXCLUSIVE MODE')
        job = start(program="trial", LOCK_TTL_MS="1000")
        wait_for(lambda: redis_client.exists("lock:trial-expiration"), "the job has its lock")
        redis_client.delete("lock:trial-expiration")
        wait_for(lambda: job.said("lock lost"), "the job noticed")
        second_connection.rollback()

    def lost() -> dict[str, float]:
        counters = read_all(redis_client).counters
        return {each.labels["lock"]: each.value for each in counters if each.metric == "lock_lost_total"}

    wait_for(lambda: lost() == {"trial-expiration": 1}, "it is counted")
    assert job.stop() == 0
    assert start("--once", program="trial").wait() == 0
    assert lost() == {"trial-expiration": 1}
