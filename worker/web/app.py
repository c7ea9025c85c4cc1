"""The web application: probes, /metrics and the status page. ``create`` makes it, gunicorn runs it."""

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
from worker.web.overview import NEEDED, job_zones
from worker.web.status_page import StatusPage

log = logging.getLogger(__name__)

# the name in /health, or in the summary of /metrics -> the job
HEALTH_JOBS = {each.health_name: each.name for each in JOBS.values() if each.health_name}
SUMMARY_JOBS = {each.summary_name: each.name for each in JOBS.values() if each.summary_name}
# how /health names a server that is up, and one that is down
CONNECTED = ("connected", "disconnected")
HEALTHY = ("healthy", "unhealthy")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def create() -> falcon.App[Any, Any]:
    """Makes the application for gunicorn, and starts the thread that records the last hour. Raises SettingsError."""
    settings = program.settings_from_environment("web")
    dependencies = Dependencies(settings)
    dependencies.sampler().start()
    return application(settings, dependencies)


def application(settings: Settings, dependencies: Dependencies) -> falcon.App[Any, Any]:
    """The application alone: it starts no thread and asks no server."""
    app = falcon.App(middleware=[Guard(settings.metrics_token)])
    app.add_error_handler(Exception, _unexpected)
    started = time.monotonic()
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(dependencies))
    app.add_route("/health", Health(dependencies, started))
    app.add_route("/metrics", Metrics(dependencies, started))
    app.add_route("/", StatusPage(dependencies.snapshot, started, job_zones(settings)))
    return app


class Guard:
    """Adds headers to every answer, and asks for METRICS_TOKEN where a resource is guarded."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def process_resource(
        self, request: falcon.Request, response: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Raises HTTPUnauthorized unless the token is given, as a bearer token or as the basic password."""
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
            if response.get_header(name) is None:  # the status page has its own policy
                response.set_header(name, value)


class Livez:
    """Whether this process answers; no server is asked."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = {"status": "ok"}


class Readyz:
    """Whether Redis and PostgreSQL answer, so that the jobs can work."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        snapshot = self._dependencies.snapshot()
        unavailable = [name for name in NEEDED if not snapshot.services[name].up]
        response.media = {"status": "error" if unavailable else "ok", "away": unavailable}
        response.status = falcon.HTTP_503 if unavailable else falcon.HTTP_200


class Health:
    """The state of the servers and jobs, in the form that the CRM's monitoring reads. It contains no secret."""

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
                "redis": CONNECTED[not snapshot.services["redis"].up],
                "qdrant": HEALTHY[not snapshot.services["qdrant"].up],
                "database": CONNECTED[not snapshot.services["database"].up],
            },
            "jobs": {name: snapshot.is_running(job) for name, job in HEALTH_JOBS.items()},
        }
        response.status = falcon.HTTP_503 if status == "error" else falcon.HTTP_200


class Metrics:
    """Prometheus's text format; on request OpenMetrics, or a summary as JSON."""

    guarded = True

    def __init__(self, dependencies: Dependencies, started: float) -> None:
        self._dependencies = dependencies
        self._started = started
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(WorkerCollector(dependencies.snapshot))

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
    raise falcon.HTTPInternalServerError(title="Internal error", description="The log of `web` has the details.")
