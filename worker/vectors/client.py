"""Writes to Qdrant what the job knowledge needs: a collection, its snapshots, and restoring one.

Only this module imports qdrant-client, which costs 60 MB and most of a second: to read, VectorReader is enough. Every
method raises ServerUnavailable when Qdrant does not answer, and VectorStoreError with Qdrant's own words when it
refuses. Each exchange has a deadline in all and a limit for its answer, whatever Qdrant or a proxy before it sends.
Source: https://api.qdrant.tech/
"""

import hashlib
import json
import os
import secrets
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from worker.errors import ServerUnavailable
from worker.providers.deadlines import Deadline, exchange
from worker.vectors.bounded_transport import BoundedTransport, attach_socket
from worker.vectors.collection import (
    LONGEST_SNAPSHOT_SECONDS,
    PARTIAL_SUFFIX,
    TENANT_FIELD,
    CollectionSnapshot,
    VectorStoreError,
    not_understood,
    refusal,
)
from worker.vectors.reader import READ_EXCHANGE_SECONDS, VectorReader, snapshot_from

WRITE_EXCHANGE_SECONDS = 2 * 3600.0  # with the time to upload or download it
REASON_LENGTH = 300
CHUNK_BYTES = 1 << 20


class VectorStore(VectorReader):
    """One Qdrant, to be read and written. Thread-safe."""

    def __init__(self, url: str, api_key: str | None, read_exchange_seconds: float = READ_EXCHANGE_SECONDS) -> None:
        """Connects to nothing yet."""
        super().__init__(url, api_key, read_exchange_seconds)
        self._api_key = api_key
        tls = ssl.create_default_context()  # the system's authorities, as for all other servers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a key without TLS: the operator chooses the network
            self._client = QdrantClient(
                url=url,
                api_key=api_key,
                timeout=LONGEST_SNAPSHOT_SECONDS,
                check_compatibility=False,
                transport=BoundedTransport(WRITE_EXCHANGE_SECONDS, read_exchange_seconds, tls),
            )
        self._http = httpx.Client(
            verify=tls,
            timeout=httpx.Timeout(60.0, connect=5.0),
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # no proxies
        )

    def close(self) -> None:
        super().close()
        self._client.close()
        self._http.close()

    def create(self, name: str, size: int) -> bool:
        """Creates a collection for vectors of ``size`` numbers, compared by cosine, with an index on the tenant.

        False: it exists already.
        """
        if self.exists(name):
            return False
        with self._errors_translated(f"creating collection {name}"):
            parameters = models.VectorParams(size=size, distance=models.Distance.COSINE)
            try:
                self._client.create_collection(name, vectors_config=parameters)
            except UnexpectedResponse:
                if self.exists(name):  # created by another process in the meantime
                    return False
                raise
        self.index_tenants(name)
        return True

    def index_tenants(self, name: str) -> None:
        """Creates the payload index on the tenant, which stores each tenant's points together."""
        with self._errors_translated(f"payload index of collection {name}"):
            schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            self._client.create_payload_index(name, TENANT_FIELD, schema, wait=True)

    def drop(self, name: str) -> None:
        """Deletes a collection if it exists. Its snapshots stay; Qdrant lists them while one has that name."""
        with self._errors_translated(f"deleting collection {name}"):
            self._client.delete_collection(name)

    def take_snapshot(self, name: str) -> CollectionSnapshot:
        """Waits until it is taken, which may take minutes."""
        with self._errors_translated(f"snapshot of collection {name}"):
            taken = self._client.create_snapshot(name, wait=True)
            if taken is None:
                raise VectorStoreError(f"snapshot of collection {name}: Qdrant does not confirm that it took one")
            return snapshot_from(taken.model_dump())

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        with self._errors_translated(f"deleting snapshot {snapshot}"):
            self._client.delete_snapshot(name, snapshot, wait=True)

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
            self._client.recover_snapshot(
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
                    self._client.http.snapshots_api.recover_from_uploaded_snapshot(
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
            raise not_understood(what, str(error.source)[:REASON_LENGTH]) from error
        except UnexpectedResponse as error:
            raise refusal(self._url, what, error.status_code or 0, _reason(error)) from error
        except (ApiException, QdrantException, AssertionError, ValueError) as error:  # not JSON, or without a result
            raise not_understood(what, str(error)[:REASON_LENGTH] or type(error).__name__) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: UnexpectedResponse) -> str:
    """Qdrant's own words, if its answer has some."""
    try:
        return str(error.structured()["status"]["error"])
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        return error.content[:200].decode("utf-8", "replace") or error.reason_phrase
