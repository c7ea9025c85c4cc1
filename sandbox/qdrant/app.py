"""The paths of Qdrant's REST API that the development server answers."""

from __future__ import annotations

from falcon import App, Request, Response

from sandbox.qdrant import reads, resources, snapshot_resources, writes
from sandbox.qdrant.errors import Refusal
from sandbox.qdrant.http import RequestChecks, refused, serialize, unexpected
from sandbox.qdrant.metrics import Metrics
from sandbox.qdrant.settings import Settings
from sandbox.qdrant.storage import Storage

_PROBES = {
    "/healthz": "healthz check passed",
    "/livez": "healthz check passed",
    "/readyz": "all shards are ready",
}
_READS = {
    "query": reads.query,
    "query/batch": reads.batch_of(reads.query),
    "search": reads.search,
    "search/batch": reads.batch_of(reads.search),
    "scroll": reads.scroll,
    "count": reads.count,
}
_WRITES = {
    "delete": writes.delete,
    "payload/delete": writes.delete_payload,
    "payload/clear": writes.clear_payload,
}


def app_of(storage: Storage, settings: Settings) -> App[Request, Response]:
    """The WSGI application."""
    metrics = Metrics(storage, resources.VERSION)
    app = App(middleware=[RequestChecks(settings.api_key, settings.max_request_bytes, metrics)])
    app.req_options.strip_url_path_trailing_slash = True
    app.set_error_serializer(serialize)
    app.add_error_handler(Exception, unexpected)
    app.add_error_handler(Refusal, refused)
    app.add_route("/", resources.Root())
    app.add_route("/metrics", metrics)
    for path, text in _PROBES.items():
        app.add_route(path, resources.Probe(text))
    _add_collections(app, storage)
    app.add_sink(resources.nothing_here)
    return app


def _add_collections(app: App[Request, Response], storage: Storage) -> None:
    one = "/collections/{name}"
    app.add_route("/collections", resources.CollectionList(storage))
    app.add_route(one, resources.OneCollection(storage))
    app.add_route(f"{one}/exists", resources.Existence(storage))
    app.add_route(f"{one}/index", resources.Index(storage))
    app.add_route(f"{one}/index/{{field}}", resources.IndexOf(storage))
    app.add_route(f"{one}/points", resources.Points(storage))
    app.add_route(f"{one}/points/{{point}}", resources.OnePoint(storage))
    app.add_route(f"{one}/points/payload", resources.Payload(storage))
    for path, read in _READS.items():
        app.add_route(f"{one}/points/{path}", resources.Reading(storage, read))
    for path, write in _WRITES.items():
        app.add_route(f"{one}/points/{path}", resources.Writing(storage, write))
    app.add_route(f"{one}/snapshots", snapshot_resources.SnapshotList(storage))
    app.add_route(f"{one}/snapshots/recover", snapshot_resources.Recovery(storage))
    app.add_route(f"{one}/snapshots/upload", snapshot_resources.Upload(storage))
    app.add_route(f"{one}/snapshots/{{snapshot}}", snapshot_resources.SnapshotFile(storage))
