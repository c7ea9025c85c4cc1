"""What the worker knows of Qdrant's collection and its snapshots, and the errors for what Qdrant answers."""

from dataclasses import dataclass
from datetime import datetime

from worker.errors import ServerUnavailable, WorkerError

TENANT_FIELD = "metadata.tenantId"
PARTIAL_SUFFIX = ".part"  # of a file that is being written
LONGEST_SNAPSHOT_SECONDS = 3600  # to take or restore one: Qdrant's disk may need long
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


def refusal(url: str, what: str, status: int, words: str) -> WorkerError:
    """The error for an answer that is no success. ``what`` was attempted; ``words`` are Qdrant's own."""
    if status in KEY_REFUSED:
        return VectorStoreError(f"{what}: Qdrant refuses the key in QDRANT_API_KEY (HTTP {status})")
    if status in GATEWAY_ERRORS:
        return ServerUnavailable("Qdrant", f"{url}: HTTP {status}")
    return VectorStoreError(f"{what}: {words} (HTTP {status})")


def not_understood(what: str, reason: str) -> VectorStoreError:
    """The error for an answer that is no answer of Qdrant's. ``what`` was attempted."""
    return VectorStoreError(f"{what}: Qdrant's answer is not understood: {reason}")
