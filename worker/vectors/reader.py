"""Reads what is in Qdrant, without its client library: the job knowledge looks every few minutes, mostly in vain.

Every method raises ServerUnavailable when no whole answer comes within the deadline and the limit of size, and
VectorStoreError with Qdrant's own words when it refuses. Answers are untrusted: what is used of them has the right
type, or the answer is not understood. Source: https://api.qdrant.tech/
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

from worker.errors import SendError, ServerUnavailable
from worker.providers.http import Answer, HttpPool, json_body
from worker.providers.untrusted import safe_text, text_at
from worker.vectors.collection import TENANT_FIELD, Collection, CollectionSnapshot, not_understood, refusal

READ_TIMEOUT_SECONDS = 5.0  # a program that is stopped meanwhile has to end within ten
READ_EXCHANGE_SECONDS = 10.0  # in all, however the answer arrives
LARGEST_NUMBER = 2**63 - 1
LONG_AGO = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)

T = TypeVar("T")


class VectorReader:
    """One Qdrant, to be read only. Thread-safe."""

    def __init__(self, url: str, api_key: str | None, read_exchange_seconds: float = READ_EXCHANGE_SECONDS) -> None:
        """Connects to nothing yet."""
        self._url = url
        self._headers = {"Connection": "close"}  # an hour may pass before the next request
        if api_key:
            self._headers["api-key"] = api_key
        self._pool = HttpPool(
            connect_timeout_seconds=READ_TIMEOUT_SECONDS,
            read_timeout_seconds=READ_TIMEOUT_SECONDS,
            exchange_seconds=read_exchange_seconds,
        )

    def close(self) -> None:
        self._pool.close()

    def names(self) -> list[str]:
        """The names of all collections."""
        with self._read("list of collections", "/collections") as result:
            return [_text(each, "name") for each in _at(list, result, "collections")]

    def exists(self, name: str) -> bool:
        with self._read(f"collection {name}", f"{_path(name)}/exists") as result:
            return _at(bool, result, "exists")

    def collection(self, name: str) -> Collection | None:
        """None if it does not exist."""
        if not self.exists(name):
            return None
        with self._read(f"collection {name}", _path(name)) as result:
            vectors = _at(dict, result, "config", "params").get("vectors")
            plain = isinstance(vectors, dict) and type(vectors.get("size")) is int
            index = _at(dict, result, "payload_schema").get(TENANT_FIELD)
            parameters = index.get("params") if isinstance(index, dict) else None
            return Collection(
                name,
                size=_number(vectors, "size") if plain else None,
                distance=_text(vectors, "distance") if plain else None,
                points=self.count(name),
                tenant_index=None if index is None else _text(index, "data_type"),
                by_tenant=isinstance(parameters, dict) and parameters.get("is_tenant") is True,
            )

    def count(self, name: str) -> int:
        """The exact number of points."""
        what = f"counting points of collection {name}"
        with self._read(what, f"{_path(name)}/points/count", {"exact": True}) as result:
            return _number(result, "count")

    def snapshots(self, name: str) -> list[CollectionSnapshot]:
        """The collection's snapshots, newest first."""
        with self._read(f"snapshots of collection {name}", f"{_path(name)}/snapshots") as result:
            found = [snapshot_from(each) for each in _at(list, result)]
        return sorted(found, key=lambda each: (each.taken_at, each.name), reverse=True)

    @contextmanager
    def _read(self, what: str, path: str, question: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """The result in the answer to a GET, or to a POST of ``question``; the block raises ValueError about it."""
        result = self._answer(what, self._url + path, question).body.get("result")
        try:
            yield result
        except ValueError as error:
            raise not_understood(what, safe_text(str(error))) from error

    def _answer(self, what: str, url: str, question: Mapping[str, Any] | None) -> Answer:
        try:
            if question is None:
                answer = self._pool.get(url, self._headers)
            else:
                body = json_body(question)
                answer = self._pool.post(url, body, "application/json", self._headers, repeatable=True)
        except SendError as error:
            raise ServerUnavailable("Qdrant", f"{self._url}: {error}") from error
        if not answer.success:
            words = text_at(answer.body, "status", "error") or answer.fault or "no reason is given"
            raise refusal(self._url, what, answer.status, safe_text(words))
        if answer.fault:
            raise ServerUnavailable("Qdrant", f"{self._url}: {answer.fault}")
        return answer


def snapshot_from(description: Any) -> CollectionSnapshot:
    """One snapshot from Qdrant's description of it. Raises ValueError."""
    taken_at = LONG_AGO
    with suppress(ValueError, OverflowError):  # the server may not report the time
        created = datetime.fromisoformat(text_at(description, "creation_time"))
        taken_at = created.astimezone(UTC).replace(tzinfo=None) if created.tzinfo else created
    sha256 = text_at(description, "checksum") or None
    return CollectionSnapshot(_text(description, "name"), taken_at, _number(description, "size"), sha256)


def _path(name: str) -> str:
    return f"/collections/{quote(name, safe='')}"


def _at(kind: type[T], value: Any, *path: str) -> T:
    """What is at a path of keys in JSON. Raises ValueError if it is of another kind, or missing."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if type(value) is not kind:  # a bool is no number here
        raise ValueError(f"its {'.'.join(('result', *path))} is no {kind.__name__}")
    return value


def _text(value: Any, key: str) -> str:
    found = _at(str, value, key)
    found.encode()  # raises ValueError for lone surrogates, which can be written nowhere
    return found


def _number(value: Any, key: str) -> int:
    """A number of points, bytes or dimensions."""
    found = _at(int, value, key)
    if not 0 <= found <= LARGEST_NUMBER:
        raise ValueError(f"its {key} is out of range")
    return found
