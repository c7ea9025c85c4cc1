"""The configuration of Prometheus and Grafana refers to metrics, pages and ports that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.runtime import settings
from worker.runtime.counter_readings import CounterReadings, JobState
from worker.web.dependencies import SystemSnapshot
from worker.web.metrics import PREFIX, WorkerCollector
from worker.web.service import Service

PROJECT = Path(__file__).resolve().parents[2]
PROMETHEUS = PROJECT / "conf" / "prometheus"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
# names in queries that are Prometheus's own: functions, keywords, and the metric of every scrape
WORDS = {"up", "time", "absent", "sum", "increase", "rate", "delta", "min_over_time", "histogram_quantile"}
WORDS |= {"label_replace", "scalar", "and", "or", "unless"}


def snapshot() -> SystemSnapshot:
    """With one job, so that every metric of a job is exported."""
    state = JobState("campaign", False, 60.0, 1.0, 1.0, 1.0, None, None, None, None, ((1.0, 1),), 1.0, 1)
    return SystemSnapshot({"redis": Service(True)}, CounterReadings([], [], {"campaign": state}))


def load(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in load("alerts.yml")["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads((PROJECT / "conf" / "grafana" / "dashboard.json").read_text("utf-8"))


def queries() -> list[str]:
    """All queries of the dashboard."""
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def shown() -> set[str]:
    """The name of every series that /metrics can have."""
    families = WorkerCollector(snapshot()).collect()
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def names(query: str) -> set[str]:
    """The identifiers of a query that are not labels."""
    query = re.sub(r'"[^"]*"', "", query)
    query = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on|offset) *(\([^)]*\)|\w+)", "", query)
    return set(re.findall(r"\b[a-zA-Z_]\w*", query))


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in rules())])
def test_every_metric_is_one_of_the_workers(query: str) -> None:
    """A name that /metrics never has would be a panel without a line, or an alert that never fires."""
    assert names(query) - WORDS <= shown()


def test_most_metrics_are_on_the_dashboard() -> None:
    """Every metric except those that only alerts need; a new one has to be added to the dashboard."""
    used = set().union(*(names(query) for query in queries()))
    families = {family.name for family in WorkerCollector(snapshot()).collect()}
    missing = {each for each in families if not any(name.startswith(each) for name in used)}
    assert missing <= {f"{PREFIX}job_last_run_timestamp_seconds"}


def anchors() -> set[str]:
    """The anchors of docs/operating.md, as its headings make them."""
    headings = re.findall(r"^#+ (.*)$", (PROJECT / "docs" / "operating.md").read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """A severity, a sentence, and a section of docs/operating.md that exists."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/operating.md"
    assert anchor in anchors()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_is_tested_both_ways(rule: dict[str, Any]) -> None:
    """promtool's tests have a case where it fires and one where it does not."""
    found = set()
    for path in PROMETHEUS.glob("*_test.yml"):
        for test in load(path.name)["tests"]:
            for moment in test["alert_rule_test"]:
                if moment["alertname"] == rule["alert"]:
                    found.add(bool(moment["exp_alerts"]))
    assert found == {True, False}


def test_every_alert_has_its_own_name() -> None:
    every = [rule["alert"] for rule in rules()]
    assert len(every) == len(set(every))


def test_prometheus_scrapes_the_web_process() -> None:
    """At its default port, under the job name that the alerts use, with the worker's own label "job" kept."""
    configuration = load("prometheus.yml")
    (scrape,) = configuration["scrape_configs"]
    (port,) = (each.default for each in settings.variables("web") if each.name == "PORT")
    assert scrape["static_configs"] == [{"targets": [f"localhost:{port}"]}]
    assert scrape["honor_labels"] is True
    assert any(f'up{{job="{scrape["job_name"]}"}}' in rule["expr"] for rule in rules())
    assert configuration["rule_files"] == ["alerts.yml"]


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    place = panel["gridPos"]
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_the_dashboard_can_be_provisioned() -> None:
    """It has a uid, no id of another Grafana, panels that do not overlap, and a variable for the data source."""
    made = dashboard()
    assert made["uid"] == "crm-worker"
    assert "id" not in made
    panels = made["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken = [cell for panel in panels for cell in cells(panel)]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    (variable,) = made["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    sources = {json.dumps(panel["datasource"]) for panel in panels if panel["type"] != "row"}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Health", "Jobs", "Messages", "Calls", "Reminders and trials", "Backlog", "Qdrant's knowledge"]
