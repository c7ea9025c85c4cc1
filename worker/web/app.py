"""The web application: probes, /metrics and the status page, made by ``create`` and run by gunicorn."""

import base64
import binascii
import hmac
import logging
import time
from datetime import UTC, datetime
from typing import Any

import falcon
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from worker.registry import JOBS
from worker.runtime import program
from worker.runtime.counter_readings import CounterReadings
from worker.runtime.settings import Settings
from worker.web.dependencies import Dependencies, SystemSnapshot
from worker.web.metrics import WorkerCollector
from worker.web.overview import NEEDED, zones
from worker.web.page import Page

log = logging.getLogger(__name__)

# the names that /health and the summary have always had -> ours
HEALTH_JOBS = {each.health_name: each.name for each in JOBS.values() if each.health_name}
SUMMARY_JOBS = {each.summary_name: each.name for each in JOBS.values() if each.summary_name}
WORDS = {"redis": ("connected", "disconnected"), "database": ("connected", "disconnected")}
QDRANT_WORDS = ("healthy", "unhealthy")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def create() -> falcon.App[Any, Any]:
    """The application for gunicorn, and the thread that keeps the last hour. Raises SettingsError."""
    settings = program.settings_from_environment("web")
    dependencies = Dependencies(settings)
    dependencies.sampler().start()
    return application(settings, dependencies)


def application(settings: Settings, dependencies: Dependencies) -> falcon.App[Any, Any]:
    """The routes alone; nothing is started or asked."""
    app = falcon.App(middleware=[Guard(settings.metrics_token)])
    app.add_error_handler(Exception, _unexpected)
    started = time.monotonic()
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(dependencies))
    app.add_route("/health", Health(dependencies, started))
    app.add_route("/metrics", Metrics(dependencies, started))
    app.add_route("/", Page(dependencies, started, zones(settings)))
    return app


class Guard:
    """Headers for every answer, and METRICS_TOKEN for what is not for everybody."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def process_resource(
        self, request: falcon.Request, response: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Raises HTTPUnauthorized without the token, as a bearer or as the password of basic authentication."""
        if not (self._token and getattr(resource, "guarded", False)):
            return
        given = _credential(request.auth or "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
            raise falcon.HTTPUnauthorized(
                title="METRICS_TOKEN is needed",
                description="Send it as a bearer token, or as the password of basic authentication.",
                challenges=['Basic realm="crm-worker"', "Bearer"],
            )

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        for name, value in HEADERS.items():
            if response.get_header(name) is None:  # the page has a policy of its own
                response.set_header(name, value)


class Livez:
    """The process answers; it asks nobody."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = {"status": "ok"}


class Readyz:
    """Redis and PostgreSQL answer, so the jobs can work."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        snapshot = self._dependencies.snapshot()
        away = [name for name in NEEDED if not snapshot.services[name].up]
        response.media = {"status": "error" if away else "ok", "away": away}
        response.status = falcon.HTTP_503 if away else falcon.HTTP_200


class Health:
    """What the CRM's monitoring has always asked for; says nothing that is secret."""

    def __init__(self, dependencies: Dependencies, started: float) -> None:
        self._dependencies = dependencies
        self._started = started

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        snapshot = self._dependencies.snapshot()
        status = _status(snapshot)
        response.media = {
            "status": status,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "uptime": round(time.monotonic() - self._started, 3),
            "services": {
                "redis": _word(snapshot, "redis"),
                "qdrant": QDRANT_WORDS[not snapshot.services["qdrant"].up],
                "database": _word(snapshot, "database"),
            },
            "jobs": {name: snapshot.runs(job) for name, job in HEALTH_JOBS.items()},
        }
        response.status = falcon.HTTP_503 if status == "error" else falcon.HTTP_200


class Metrics:
    """Prometheus's text, OpenMetrics when asked, or a summary in JSON."""

    guarded = True

    def __init__(self, dependencies: Dependencies, started: float) -> None:
        self._dependencies = dependencies
        self._started = started
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(WorkerCollector(dependencies))

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        accept = request.get_header("Accept") or ""
        if accept.split(";")[0].split(",")[0].strip() == "application/json":
            response.media = self._summary()
            return
        encode, content_type = choose_encoder(accept)
        response.data = encode(self._registry)
        response.content_type = content_type

    def _summary(self) -> dict[str, Any]:
        readings = self._dependencies.snapshot().readings
        jobs = readings.jobs if readings else {}
        return {
            "jobsProcessed": {
                "campaigns": _total(readings, "messages_total"),
                "reminders": _total(readings, "reminders_total"),
                "calls": _total(readings, "calls_total"),
            },
            "lastRun": {
                name: _moment(jobs[job].last_run if job in jobs else None) for name, job in SUMMARY_JOBS.items()
            },
            "uptime": round(time.monotonic() - self._started, 3),
        }


def _status(snapshot: SystemSnapshot) -> str:
    if not all(snapshot.services[name].up for name in NEEDED):
        return "error"
    return "ok" if snapshot.services["qdrant"].up else "degraded"


def _word(snapshot: SystemSnapshot, name: str) -> str:
    return WORDS[name][not snapshot.services[name].up]


def _total(readings: CounterReadings | None, metric: str) -> int:
    samples = readings.counters if readings else []
    return int(sum(sample.value for sample in samples if sample.metric == metric))


def _moment(unix_seconds: float | None) -> str | None:
    if unix_seconds is None:
        return None
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _credential(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _unexpected(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    if isinstance(error, falcon.HTTPError | falcon.HTTPStatus):
        raise error
    log.error("a request failed: a bug, please report it", {"path": request.path}, exc_info=error)
    raise falcon.HTTPInternalServerError(title="Internal error", description="The log of `web` says more.")
