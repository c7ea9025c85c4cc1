"""The request that created a collection: its checks, what GET shows of it, and the file that it is kept in."""

import json
import os
from pathlib import Path
from typing import Any

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal
from sandbox.qdrant.vectors import Vectors

DESCRIPTION = "collection.json"
# Qdrant's defaults. The development server shows them, or what was requested instead, and ignores both.
_PARAMS = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0, "on_disk": False}
_OPTIMIZERS = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}
_TUNING = ("hnsw_config", "optimizers_config", "wal_config", "quantization_config")
_OBJECTS = ("vectors", "sparse_vectors", *_TUNING, "metadata")


def request_of(body: object) -> dict[str, Any]:
    """The body of PUT /collections/NAME, checked. Raises Refusal."""
    request = fields.only(body, "the body", *_OBJECTS, *_PARAMS)
    for name in _OBJECTS:
        fields.payload(request.get(name, {}), f"`{name}`")
    for name, usual in _PARAMS.items():
        fields.typed(request.get(name, usual), type(usual), f"`{name}`")
    if not (request.get("vectors") or request.get("sparse_vectors")):
        raise Refusal("Wrong input: a collection needs `vectors` or `sparse_vectors`")
    return request | vectors_of(request).described()


def vectors_of(request: dict[str, Any]) -> Vectors:
    return Vectors(request.get("vectors", {}), request.get("sparse_vectors", {}))


def config_of(request: dict[str, Any]) -> dict[str, Any]:
    """`config` of the collection's info."""
    config = {
        "params": vectors_of(request).described() | {key: request.get(key, usual) for key, usual in _PARAMS.items()},
        "hnsw_config": _HNSW | request.get("hnsw_config", {}),
        "optimizer_config": _OPTIMIZERS | request.get("optimizers_config", {}),
        "wal_config": _WAL | request.get("wal_config", {}),
        "quantization_config": request.get("quantization_config"),
    }
    return config | ({"metadata": request["metadata"]} if "metadata" in request else {})


def described(folder: Path) -> dict[str, Any]:
    """What ``describe`` wrote: `request`, and in `shard` the name of a folder. Raises OSError, ValueError."""
    content: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    return content


def describe(folder: Path, content: dict[str, Any]) -> None:
    """Replaces collection.json atomically."""
    making = folder / f"{DESCRIPTION}.new"
    with making.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    making.replace(folder / DESCRIPTION)
