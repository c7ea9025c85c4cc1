"""/metrics of the development Qdrant, under the names of the real one."""

from collections import Counter
from collections.abc import Iterator
from threading import Lock

from falcon import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from sandbox.qdrant.errors import NotFound
from sandbox.qdrant.storage import Storage


class Metrics:
    """Counts the answers; reads the collections when it is requested."""

    def __init__(self, storage: Storage, version: str) -> None:
        self._storage = storage
        self._version = version
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._counting = Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count(self, method: str, endpoint: str, status: int) -> None:
        """``endpoint`` is the path's template: unknown paths must not create new series."""
        with self._counting:
            self._answers[method, endpoint, status] += 1

    def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        app = GaugeMetricFamily("app_info", "information about the server", labels=["name", "version"])
        app.add_metric(["qdrant", self._version], 1)
        yield app
        yield GaugeMetricFamily("collections_total", "number of collections", value=len(self._storage.names()))
        points = GaugeMetricFamily("collection_points", "points of each collection", labels=["id"])
        for name, number in self._points():
            points.add_metric([name], number)
        yield points
        answers = CounterMetricFamily("rest_responses", "answers", labels=["method", "endpoint", "status"])
        with self._counting:
            counted = dict(self._answers)
        for (method, endpoint, status), number in counted.items():
            answers.add_metric([method, endpoint, str(status)], number)
        yield answers

    def _points(self) -> Iterator[tuple[str, int]]:
        for collection in self._storage.all():
            try:
                yield collection.name, collection.read(lambda shard: shard.info().points_count)
            except NotFound:
                continue  # deleted in the meantime
