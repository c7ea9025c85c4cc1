"""Falcon resources of collections, points and probes."""

from collections.abc import Callable
from typing import Any

import falcon
from falcon import Request, Response

from sandbox.qdrant import reads, writes
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.errors import NotFound
from sandbox.qdrant.http import answer, body_of
from sandbox.qdrant.name_checks import collection_name
from sandbox.qdrant.storage import Storage

VERSION = "1.19.0"  # of the server whose API this is: clients warn if theirs differs by two minor versions
_TITLE = "qdrant - vector search engine"


class Root:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.media = {"title": _TITLE, "version": VERSION, "commit": "development server over qdrant-edge"}


class Probe:
    """Answers at once: the server opens its collections before it listens."""

    def __init__(self, text: str) -> None:
        self._text = text

    def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = self._text


class _StorageResource:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage


class CollectionList(_StorageResource):
    def on_get(self, req: Request, resp: Response) -> None:
        answer(req, resp, {"collections": [{"name": name} for name in self._storage.names()]})


class OneCollection(_StorageResource):
    def on_get(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, self._storage.get(name).info())

    def on_put(self, req: Request, resp: Response, name: str) -> None:
        self._storage.create(collection_name(name), body_of(req))
        answer(req, resp, True)

    def on_delete(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, self._storage.delete(name))


class Existence(_StorageResource):
    def on_get(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, {"exists": name in self._storage.names()})


class Points(_StorageResource):
    def on_put(self, req: Request, resp: Response, name: str) -> None:
        _write(req, resp, self._storage.get(name), writes.upsert)

    def on_post(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, reads.retrieve(self._storage.get(name), body_of(req)))


class OnePoint(_StorageResource):
    def on_get(self, req: Request, resp: Response, name: str, point: str) -> None:
        answer(req, resp, reads.one(self._storage.get(name), point))


class Payload(_StorageResource):
    def on_post(self, req: Request, resp: Response, name: str) -> None:
        _write(req, resp, self._storage.get(name), writes.set_payload)

    def on_put(self, req: Request, resp: Response, name: str) -> None:
        _write(req, resp, self._storage.get(name), writes.overwrite_payload)


class Index(_StorageResource):
    def on_put(self, req: Request, resp: Response, name: str) -> None:
        _write(req, resp, self._storage.get(name), writes.create_index)


class IndexOf(_StorageResource):
    def on_delete(self, req: Request, resp: Response, name: str, field: str) -> None:
        _changed(req, resp, writes.delete_index(self._storage.get(name), field))


class Reading:
    """A POST whose body describes what to read."""

    def __init__(self, storage: Storage, read: Callable[[Collection, object], Any]) -> None:
        self._storage = storage
        self._read = read

    def on_post(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, self._read(self._storage.get(name), body_of(req)))


class Writing:
    """A POST whose body describes what to change."""

    def __init__(self, storage: Storage, write: writes.Call) -> None:
        self._storage = storage
        self._write = write

    def on_post(self, req: Request, resp: Response, name: str) -> None:
        _write(req, resp, self._storage.get(name), self._write)


def nothing_here(req: Request, resp: Response, **_: object) -> None:
    raise NotFound(f"Not found: {req.method} {req.path[:200]} is not served by the development server")


def _write(req: Request, resp: Response, collection: Collection, write: writes.Call) -> None:
    _changed(req, resp, write(collection, body_of(req)))


def _changed(req: Request, resp: Response, operation: int) -> None:
    waited = req.get_param_as_bool("wait", default=False)
    answer(req, resp, {"operation_id": operation, "status": "completed" if waited else "acknowledged"})
