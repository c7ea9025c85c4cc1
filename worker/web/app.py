"""The web application: probes, /metrics and the status page. ``create`` makes it, gunicorn runs it."""

import base64
import binascii
import hmac
import time
from datetime import UTC, datetime
from typing import Any

import falcon

from worker.registry import JOBS
from worker.runtime import program
from worker.runtime.settings import Settings
from worker.web.answer_headers import HEADERS
from worker.web.dependencies import Dependencies, SystemSnapshot
from worker.web.error_handler import unexpected
from worker.web.job_views import completed_runs
from worker.web.metrics import MetricsText
from worker.web.metrics_format import JSON, choose_format, prometheus_accept
from worker.web.overview import NEEDED, job_zones
from worker.web.status_page import StatusPage

# the name in /health, or in the summary of /metrics -> the job
HEALTH_JOBS = {each.health_name: each.name for each in JOBS.values() if each.health_name}
SUMMARY_JOBS = {each.summary_name: each.name for each in JOBS.values() if each.summary_name}
# the name in the summary of /metrics -> the job whose runs it counts
PROCESSED_JOBS = {"campaigns": "campaign", "reminders": "reminders", "calls": "calls"}
# how /health names a server that can be used, and one that cannot
CONNECTED = ("connected", "disconnected")
HEALTHY = ("healthy", "unhealthy")

METHODS = ("GET", "HEAD", "OPTIONS")


def create() -> falcon.App[Any, Any]:
    """Makes the application for gunicorn, and starts the thread that records the last hour. Raises SettingsError."""
    settings = program.settings_from_environment("web")
    dependencies = Dependencies(settings)
    dependencies.sampler().start()
    return application(settings, dependencies)


def application(settings: Settings, dependencies: Dependencies) -> falcon.App[Any, Any]:
    """The application alone: it starts no thread and asks no server."""
    app = falcon.App(middleware=[Guard(settings.metrics_token)])
    app.add_error_handler(Exception, unexpected)
    app.set_error_serializer(_error_as_json)
    started = time.monotonic()
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(dependencies))
    app.add_route("/health", Health(dependencies, started))
    app.add_route("/metrics", Metrics(dependencies, started))
    app.add_route("/", StatusPage(dependencies.snapshot, started, job_zones(settings)))
    return app


class Guard:
    """Adds headers to every answer, and refuses what is not allowed: other methods, and a wrong METRICS_TOKEN."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answers ``OPTIONS *``, which asks about the whole server (RFC 9110, section 9.3.7)."""
        if request.path == "*":
            _answer_options(response)

    def process_resource(
        self, request: falcon.Request, response: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Raises HTTPMethodNotAllowed, and HTTPUnauthorized unless the token is given.

        It is given as a bearer token, or as the password of basic authentication.
        """
        if request.method not in METHODS:
            raise falcon.HTTPMethodNotAllowed(METHODS)
        if request.method == "OPTIONS":
            _answer_options(response)
            return
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

    on_head = on_get


class Readyz:
    """Whether Redis and PostgreSQL answer and take writes, so that the jobs can work."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        services = self._dependencies.snapshot().services
        unavailable = [name for name in NEEDED if not services[name].up]
        problems = {name: services[name].problem for name in unavailable if services[name].problem}
        response.media = {"status": "error" if unavailable else "ok", "away": unavailable}
        if problems:
            response.media["reasons"] = problems
        response.status = falcon.HTTP_503 if unavailable else falcon.HTTP_200

    on_head = on_get


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

    on_head = on_get


class Metrics:
    """Prometheus's text format; on request OpenMetrics, or a summary as JSON."""

    guarded = True

    def __init__(self, dependencies: Dependencies, started: float) -> None:
        self._dependencies = dependencies
        self._started = started
        self._text = MetricsText(dependencies.snapshot)

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        chosen = choose_format(request.get_header("Accept") or "")
        if chosen.name == JSON:
            response.media = self._summary()
            return
        response.data, response.content_type = self._text.answer(prometheus_accept(chosen))

    on_head = on_get

    def _summary(self) -> dict[str, Any]:
        snapshot = self._dependencies.snapshot()
        jobs = snapshot.readings.jobs if snapshot.readings else {}
        return {
            "jobsProcessed": {name: completed_runs(snapshot, job) for name, job in PROCESSED_JOBS.items()},
            "lastRun": {
                name: _moment(jobs[job].last_run if job in jobs else None) for name, job in SUMMARY_JOBS.items()
            },
            "uptime": round(time.monotonic() - self._started, 3),
        }


def _status(snapshot: SystemSnapshot) -> str:
    if not all(snapshot.services[name].up for name in NEEDED):
        return "error"
    return "ok" if snapshot.services["qdrant"].up else "degraded"


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


def _answer_options(response: falcon.Response) -> None:
    response.set_header("Allow", ", ".join(METHODS))
    response.complete = True


def _error_as_json(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    """Whatever the request accepts."""
    response.media = error.to_dict()
