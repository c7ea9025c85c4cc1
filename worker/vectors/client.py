"""A client of Qdrant, with what the job knowledge needs: a collection, its snapshots, and restoring one.

Only this module imports qdrant-client (60 MB and half a second). Every method raises ServerUnavailable when Qdrant
does not answer, and VectorStoreError with Qdrant's own words when it refuses. Each exchange has a deadline in all and
a limit for its answer, whatever Qdrant or a proxy before it sends. Source: https://api.qdrant.tech/
"""

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from worker.errors import ServerUnavailable, WorkerError
from worker.providers.deadlines import Deadline, exchange
from worker.vectors.bounded_transport import BoundedTransport, attach_socket

READ_TIMEOUT_SECONDS = 5  # a program that is stopped meanwhile has to end within ten
READ_EXCHANGE_SECONDS = 10.0  # in all, however the answer arrives
WRITE_TIMEOUT_SECONDS = 3600  # to take or restore a snapshot: Qdrant's disk may need long
WRITE_EXCHANGE_SECONDS = 2 * 3600.0  # with the time to upload or download it
TENANT_FIELD = "metadata.tenantId"
PARTIAL_SUFFIX = ".part"  # of a file that is being written
REASON_LENGTH = 300
CHUNK_BYTES = 1 << 20
LONG_AGO = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)
KEY_REFUSED = (401, 403)  # HTTP statuses
GATEWAY_ERRORS = (502, 503, 504)  # a proxy in front of Qdrant cannot reach it


class VectorStoreError(WorkerError):
    """Qdrant refused; the text has its reason."""


@dataclass(frozen=True)
class Collection:
    """The parameters of a collection. ``size`` and ``distance`` are None if it has named vectors, or none."""

    name: str
    size: int | None
    distance: str | None  # Cosine, Dot, Euclid or Manhattan
    points: int
    tenant_index: str | None  # type of the payload index on TENANT_FIELD
    by_tenant: bool  # whether that index keeps a tenant's points together


@dataclass(frozen=True)
class CollectionSnapshot:
    """One snapshot of a collection, as Qdrant lists it."""

    name: str
    taken_at: datetime  # naive UTC, by Qdrant's clock
    size_bytes: int
    sha256: str | None


class VectorStore:
    """One Qdrant. Thread-safe."""

    def __init__(self, url: str, api_key: str | None, read_exchange_seconds: float = READ_EXCHANGE_SECONDS) -> None:
        """Connects to nothing yet."""
        self._read_exchange_seconds = read_exchange_seconds
        self._url = url
        self._headers = {"api-key": api_key} if api_key else {}
        self._api_key = api_key
        self._client = self._connect(READ_TIMEOUT_SECONDS, read_exchange_seconds)
        self._slow_client = self._connect(WRITE_TIMEOUT_SECONDS, WRITE_EXCHANGE_SECONDS)
        self._http = httpx.Client(
            timeout=httpx.Timeout(60.0, connect=5.0),
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # no proxies
        )

    def close(self) -> None:
        self._client.close()
        self._slow_client.close()
        self._http.close()

    def collection(self, name: str) -> Collection | None:
        """None if it does not exist."""
        with self._errors_translated(f"collection {name}"):
            if not self._client.collection_exists(name):
                return None
            found = self._client.get_collection(name)
            points = self._client.count(name, exact=True).count
        vectors = found.config.params.vectors
        plain = vectors if isinstance(vectors, models.VectorParams) else None
        index = found.payload_schema.get(TENANT_FIELD)
        parameters = index.params if index else None
        return Collection(
            name,
            plain.size if plain else None,
            plain.distance.value if plain else None,
            points,
            index.data_type.value if index else None,
            by_tenant=bool(isinstance(parameters, models.KeywordIndexParams) and parameters.is_tenant),
        )

    def names(self) -> list[str]:
        """The names of all collections."""
        with self._errors_translated("list of collections"):
            return [each.name for each in self._client.get_collections().collections]

    def create(self, name: str, size: int) -> bool:
        """Creates a collection for vectors of ``size`` numbers, compared by cosine, with an index on the tenant.

        False: it exists already.
        """
        with self._errors_translated(f"creating collection {name}"):
            if self._client.collection_exists(name):
                return False
            parameters = models.VectorParams(size=size, distance=models.Distance.COSINE)
            try:
                self._slow_client.create_collection(name, vectors_config=parameters)
            except UnexpectedResponse:
                if self._client.collection_exists(name):  # created by another process in the meantime
                    return False
                raise
        self.index_tenants(name)
        return True

    def index_tenants(self, name: str) -> None:
        """Creates the payload index on the tenant, which stores each tenant's points together."""
        with self._errors_translated(f"payload index of collection {name}"):
            schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            self._slow_client.create_payload_index(name, TENANT_FIELD, schema, wait=True)

    def count(self, name: str) -> int:
        """The exact number of points."""
        with self._errors_translated(f"counting points of collection {name}"):
            return self._client.count(name, exact=True).count

    def drop(self, name: str) -> None:
        """Deletes a collection if it exists. Its snapshots stay; Qdrant lists them while one has that name."""
        with self._errors_translated(f"deleting collection {name}"):
            self._slow_client.delete_collection(name)

    def snapshots(self, name: str) -> list[CollectionSnapshot]:
        """The collection's snapshots, newest first."""
        with self._errors_translated(f"snapshots of collection {name}"):
            found = self._client.list_snapshots(name)
        return sorted(map(_snapshot, found), key=lambda each: (each.taken_at, each.name), reverse=True)

    def take_snapshot(self, name: str) -> CollectionSnapshot:
        """Waits until it is taken, which may take minutes."""
        with self._errors_translated(f"snapshot of collection {name}"):
            taken = self._slow_client.create_snapshot(name, wait=True)
        if taken is None:
            raise VectorStoreError(f"snapshot of collection {name}: Qdrant does not confirm that it took one")
        return _snapshot(taken)

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        with self._errors_translated(f"deleting snapshot {snapshot}"):
            self._slow_client.delete_snapshot(name, snapshot, wait=True)

    def download(self, name: str, snapshot: CollectionSnapshot, path: Path) -> None:
        """Copies a snapshot to ``path``, readable by its owner only. The file appears complete or not at all.

        Raises OSError too.
        """
        part = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        try:
            with open(part, "wb", opener=_private) as file:
                digest = self._stream(name, snapshot, file)
                os.fsync(file.fileno())
            if snapshot.sha256 and digest != snapshot.sha256:
                raise VectorStoreError(f"copy of snapshot {snapshot.name}: the checksum of what arrived is wrong")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def restore(self, name: str, source: str, snapshot: CollectionSnapshot) -> None:
        """Replaces the collection ``name``, which may be missing, by a snapshot of the collection ``source``.

        Qdrant downloads the snapshot from itself, from the address that is configured here.
        """
        location = self._snapshot_url(source, snapshot.name)
        with self._errors_translated(f"restoring snapshot {snapshot.name}"):
            self._slow_client.recover_snapshot(
                name,
                location,
                api_key=self._api_key,
                checksum=snapshot.sha256,
                priority=models.SnapshotPriority.SNAPSHOT,
                wait=True,
            )

    def restore_file(self, name: str, path: Path) -> None:
        """As ``restore``, from a file of this machine. Raises OSError too."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            # Qdrant keeps an uploaded file among the collection's snapshots: so under a name that nothing else has
            sent_as = f"uploaded-{secrets.token_hex(8)}.snapshot"
            try:
                with self._errors_translated(f"restoring {path}"):
                    # as text: the client would send the name of the enumeration
                    self._slow_client.http.snapshots_api.recover_from_uploaded_snapshot(
                        name,
                        wait=True,
                        priority="snapshot",  # type: ignore[arg-type]
                        checksum=sha256,
                        snapshot=(sent_as, file),  # type: ignore[arg-type]
                    )
            finally:
                with suppress(VectorStoreError, ServerUnavailable):  # the reason why the restore failed matters more
                    if any(each.name == sent_as for each in self.snapshots(name)):
                        self.delete_snapshot(name, sent_as)

    def _connect(self, read_timeout_seconds: int, exchange_seconds: float) -> QdrantClient:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a key without TLS: the operator chooses the network
            return QdrantClient(
                url=self._url,
                api_key=self._api_key,
                timeout=read_timeout_seconds,
                check_compatibility=False,
                transport=BoundedTransport(exchange_seconds, self._read_exchange_seconds),
            )

    def _stream(self, name: str, snapshot: CollectionSnapshot, file: BinaryIO) -> str:
        """Downloads a snapshot into ``file``; returns its SHA-256 in hex."""
        with exchange(WRITE_EXCHANGE_SECONDS) as deadline:
            return self._stream_until(deadline, name, snapshot, file)

    def _stream_until(self, deadline: Deadline, name: str, snapshot: CollectionSnapshot, file: BinaryIO) -> str:
        what, digest, left = f"copy of snapshot {snapshot.name}", hashlib.sha256(), snapshot.size_bytes
        url = self._snapshot_url(name, snapshot.name)
        extensions = {"trace": attach_socket}
        headers = {"Accept-Encoding": "identity", **self._headers}
        try:
            with self._http.stream("GET", url, headers=headers, extensions=extensions) as response:
                if response.status_code != 200:
                    raise VectorStoreError(f"{what}: Qdrant answers HTTP {response.status_code}")
                for chunk in response.iter_raw(CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise VectorStoreError(f"{what}: more arrives than its {snapshot.size_bytes} bytes")
                    file.write(chunk)
                    digest.update(chunk)
        except httpx.TransportError as error:
            raise ServerUnavailable("Qdrant", f"{what}: {deadline.explain(error)}") from error
        return digest.hexdigest()

    def _snapshot_url(self, name: str, snapshot: str) -> str:
        return f"{self._url}/collections/{quote(name, safe='')}/snapshots/{quote(snapshot, safe='')}"

    @contextmanager
    def _errors_translated(self, what: str) -> Iterator[None]:
        """Turns the client's errors into the worker's. ``what`` was attempted: the start of the error's text."""
        try:
            yield
        except ResponseHandlingException as error:
            if isinstance(error.source, httpx.TransportError):
                raise ServerUnavailable(
                    "Qdrant", f"{self._url}: {error.source or type(error.source).__name__}"
                ) from error
            raise VectorStoreError(
                f"{what}: Qdrant's answer is not understood: {str(error.source)[:REASON_LENGTH]}"
            ) from error
        except UnexpectedResponse as error:
            status = error.status_code
            if status in KEY_REFUSED:
                raise VectorStoreError(f"{what}: Qdrant refuses the key in QDRANT_API_KEY (HTTP {status})") from error
            if status in GATEWAY_ERRORS:
                raise ServerUnavailable("Qdrant", f"{self._url}: HTTP {status}") from error
            raise VectorStoreError(f"{what}: {_reason(error)}") from error
        except (ApiException, QdrantException, AssertionError, ValueError) as error:  # not JSON, or without a result
            reason = str(error)[:REASON_LENGTH] or type(error).__name__
            raise VectorStoreError(f"{what}: Qdrant's answer is not understood: {reason}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _snapshot(description: models.SnapshotDescription) -> CollectionSnapshot:
    taken_at = LONG_AGO
    with suppress(ValueError):  # the server may not report the time
        taken_at = datetime.fromisoformat(description.creation_time or "")
    if taken_at.tzinfo:
        taken_at = taken_at.astimezone(UTC).replace(tzinfo=None)
    return CollectionSnapshot(description.name, taken_at, description.size, description.checksum)


def _reason(error: UnexpectedResponse) -> str:
    """Qdrant's own words, if its answer has some."""
    try:
        words = error.structured()["status"]["error"]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        words = error.content[:200].decode("utf-8", "replace") or error.reason_phrase
    return f"{words} (HTTP {error.status_code})"
