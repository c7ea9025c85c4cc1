"""Points: between the REST API's JSON and the engine's objects."""

import uuid
from collections.abc import Callable
from math import isfinite
from typing import Any

import qdrant_edge as engine

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal
from sandbox.qdrant.vectors import DEFAULT, Vectors

_LARGEST_ID = 2**64 - 1


def point_id(value: object) -> int | uuid.UUID:
    """A number of 64 bits or a UUID; raises Refusal."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
        return value
    if isinstance(value, str):
        try:
            return uuid.UUID(value)
        except ValueError:
            pass  # refused below like any other value
    shown = str(value)[:100]
    raise Refusal(f"Wrong input: {shown} is not a point id: it must be an unsigned 64 bit integer or a UUID")


def point_ids(value: object) -> list[int | uuid.UUID | str]:
    return [point_id(item) for item in fields.typed(value, list, "the ids")]


def points_of(body: dict[str, Any], vectors: Vectors) -> list[engine.Point]:
    """The points of an upsert, given as a list or as a batch of columns."""
    if "batch" in body:
        return _batch(body["batch"], vectors)
    listed = fields.typed(fields.needed(body, "points", "the body"), list, "`points`")
    return [_point(item, vectors) for item in listed]


def _point(value: object, vectors: Vectors) -> engine.Point:
    found = fields.only(value, "a point", "id", "vector", "payload")
    vector = vectors.stored(fields.needed(found, "vector", "a point"))
    number = point_id(fields.needed(found, "id", "a point"))
    return engine.Point(number, vector, fields.optional(found, "payload", fields.payload))


def _batch(value: object, vectors: Vectors) -> list[engine.Point]:
    found = fields.only(value, "batch", "ids", "vectors", "payloads")
    numbers = point_ids(fields.needed(found, "ids", "batch"))
    columns = fields.needed(found, "vectors", "batch")
    if isinstance(columns, dict):
        rows = [dict(zip(columns, row, strict=True)) for row in _rows(columns, len(numbers))]
    else:
        rows = fields.typed(columns, list, "`vectors` in batch")
    payloads = fields.typed(found.get("payloads", [None] * len(numbers)), list, "`payloads` in batch")
    if not len(rows) == len(payloads) == len(numbers):
        raise Refusal("Wrong input: ids, vectors and payloads of a batch must be of one length")
    return [
        engine.Point(number, vectors.stored(row), None if content is None else fields.payload(content))
        for number, row, content in zip(numbers, rows, payloads, strict=True)
    ]


def _rows(columns: dict[str, Any], length: int) -> list[tuple[Any, ...]]:
    listed = [fields.typed(column, list, f"vectors.{name} in batch") for name, column in columns.items()]
    if any(len(column) != length for column in listed):
        raise Refusal("Wrong input: ids, vectors and payloads of a batch must be of one length")
    return list(zip(*listed, strict=True))


def with_payload(value: object) -> Any:
    """Which part of the payload is requested: all, nothing, or some fields."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        return engine.PayloadSelector.Include(fields.strings(value, "with_payload"))
    found = fields.only(value, "with_payload", "include", "exclude")
    if len(found) != 1:
        raise Refusal("Wrong input: with_payload must have either include or exclude")
    ((kind, names),) = found.items()
    select: Callable[[list[str]], engine.PayloadSelector]
    select = engine.PayloadSelector.Include if kind == "include" else engine.PayloadSelector.Exclude
    return select(fields.strings(names, f"with_payload.{kind}"))


def with_vector(value: object) -> bool | list[str]:
    return value if isinstance(value, bool) else fields.strings(value, "with_vector")


def record(found: engine.Record | engine.ScoredPoint) -> dict[str, Any]:
    """A point in the REST API's form; payload and vector only if they were requested."""
    shown: dict[str, Any] = {"id": shown_id(found.id)}
    if isinstance(found, engine.ScoredPoint):
        # JSON has no infinite numbers: Qdrant also shows such a score as null
        shown |= {"version": found.version, "score": found.score if isfinite(found.score) else None}
    if found.payload is not None:
        shown["payload"] = found.payload
    if found.vector is not None:
        shown["vector"] = _shown_vector(found.vector)
    return shown


def shown_id(found: object) -> int | str | None:
    return found if isinstance(found, int) or found is None else str(found)


def _shown_vector(vector: Any) -> Any:
    if isinstance(vector, engine.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    if isinstance(vector, dict):
        return {name: _shown_vector(each) for name, each in vector.items()}
    return vector


def named_vector(found: engine.Record, name: str) -> Any:
    """One vector of a point that was read with its vectors; None if it has none with that name."""
    if isinstance(found.vector, dict):
        return found.vector.get(name)
    return found.vector if name == DEFAULT else None
