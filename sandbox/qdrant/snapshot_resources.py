"""Falcon resources of snapshots: take, list, download, delete, and restore from a file, an address or an upload."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

import falcon
import urllib3
from falcon import Request, Response

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal
from sandbox.qdrant.http import answer, body_of
from sandbox.qdrant.name_checks import collection_name
from sandbox.qdrant.snapshots import check
from sandbox.qdrant.storage import Storage

_PRIORITIES = ("no_sync", "snapshot", "replica")
_TIMEOUT = urllib3.Timeout(connect=10, read=60)


class SnapshotList:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def on_get(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, self._storage.snapshots.list(self._storage.get(name).name))

    def on_post(self, req: Request, resp: Response, name: str) -> None:
        answer(req, resp, self._storage.snapshots.take(self._storage.get(name)))


class SnapshotFile:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def on_get(self, req: Request, resp: Response, name: str, snapshot: str) -> None:
        stream, size = self._storage.snapshots.open(self._storage.get(name).name, snapshot)
        resp.content_type = "application/octet-stream"
        resp.downloadable_as = snapshot
        resp.set_stream(stream, size)

    def on_delete(self, req: Request, resp: Response, name: str, snapshot: str) -> None:
        self._storage.snapshots.delete(self._storage.get(name).name, snapshot)
        answer(req, resp, True)


class Recovery:
    """Creates the collection if it does not exist; the snapshot may be of another collection."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def on_put(self, req: Request, resp: Response, name: str) -> None:
        collection_name(name)
        found = fields.only(body_of(req), "the body", "location", "priority", "checksum", "api_key")
        text = {key: fields.typed(value, str, f"`{key}`") for key, value in found.items()}
        _check_priority(text.get("priority"))
        with _fetched(self._storage, fields.needed(text, "location", "the body"), text.get("api_key")) as path:
            check(path, text.get("checksum"))
            self._storage.restore(name, path)
        answer(req, resp, True)


class Upload:
    """As Recovery, with the file in the request: the part `snapshot` of a form."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def on_post(self, req: Request, resp: Response, name: str) -> None:
        collection_name(name)
        _check_priority(req.get_param("priority"))
        with _temporary(self._storage) as path:
            _receive(req, path)
            check(path, req.get_param("checksum"))
            self._storage.restore(name, path)
        answer(req, resp, True)


def _check_priority(priority: str | None) -> None:
    """The priority has no effect: there are no replicas besides the snapshot."""
    if priority is not None and priority not in _PRIORITIES:
        raise Refusal(f"Format error: priority must be one of {', '.join(_PRIORITIES)}")


@contextmanager
def _temporary(storage: Storage) -> Iterator[Path]:
    path = storage.tmp_path()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _fetched(storage: Storage, location: str, api_key: str | None) -> Iterator[Path]:
    """A snapshot's file, downloaded if it is at an http address. Raises Refusal."""
    scheme, _, rest = location.partition("://")
    if scheme == "file":
        path = Path("/", unquote(rest.removeprefix("localhost")))
        if "\0" in str(path) or not path.is_file():
            raise Refusal(f"Wrong input: there is no file at {location}")
        yield path
    elif scheme in ("http", "https"):
        with _temporary(storage) as path:
            _download(location, api_key, path)
            yield path
    else:
        raise Refusal(f"Wrong input: the location must start with file://, http:// or https://: {location}")


def _download(location: str, api_key: str | None, path: Path) -> None:
    headers = {"api-key": api_key} if api_key else {}
    try:
        with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as pool:
            response = pool.request("GET", location, headers=headers, preload_content=False)
            if response.status != HTTPStatus.OK:
                raise Refusal(f"Wrong input: {location} answered with status {response.status}")
            with path.open("wb") as file:
                shutil.copyfileobj(response, file)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise Refusal(f"Wrong input: cannot download the snapshot from {location}: {error}") from error


def _receive(req: Request, path: Path) -> None:
    if not (req.content_type or "").startswith(falcon.MEDIA_MULTIPART):
        raise Refusal(f"Wrong input: the body must be of type {falcon.MEDIA_MULTIPART}")
    try:
        for part in req.get_media():
            if part.name == "snapshot":
                with path.open("wb") as file:
                    part.stream.pipe(file)
                return
    except falcon.HTTPError as error:
        raise Refusal(f"Wrong input: {error.description or error.title}") from error
    raise Refusal("Wrong input: the form has no part `snapshot`")
