"""The calls that change points and payload indexes: each takes a collection and a request's body.

They return the number of the operation, which is completed and logged by then, whatever `wait` is.
"""

from collections.abc import Callable
from typing import Any

from qdrant_edge import UpdateOperation

from sandbox.qdrant import fields
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.errors import Refusal, engine_errors
from sandbox.qdrant.filters import filter_of
from sandbox.qdrant.payload_index import schema_of
from sandbox.qdrant.points import point_ids, points_of

Call = Callable[[Collection, object], int]
_Maker = Callable[..., UpdateOperation]
_CHOICE = ("points", "filter")


def upsert(collection: Collection, body: object) -> int:
    found = fields.only(body, "the body", "points", "batch")
    with engine_errors():
        operation = UpdateOperation.upsert_points(points_of(found, collection.vectors))
    return collection.change(operation)


def delete(collection: Collection, body: object) -> int:
    found = fields.only(body, "the body", *_CHOICE)
    by_ids, by_filter = UpdateOperation.delete_points, UpdateOperation.delete_points_by_filter
    return collection.change(_chosen(found, by_ids, by_filter))


def set_payload(collection: Collection, body: object) -> int:
    return _with_payload(collection, body, UpdateOperation.set_payload, UpdateOperation.set_payload_by_filter)


def overwrite_payload(collection: Collection, body: object) -> int:
    by_ids, by_filter = UpdateOperation.overwrite_payload, UpdateOperation.overwrite_payload_by_filter
    return _with_payload(collection, body, by_ids, by_filter)


def delete_payload(collection: Collection, body: object) -> int:
    found = fields.only(body, "the body", "keys", *_CHOICE)
    keys = fields.strings(fields.needed(found, "keys", "the body"), "`keys`")
    by_ids, by_filter = UpdateOperation.delete_payload, UpdateOperation.delete_payload_by_filter
    return collection.change(_chosen(found, by_ids, by_filter, keys))


def clear_payload(collection: Collection, body: object) -> int:
    found = fields.only(body, "the body", *_CHOICE)
    by_ids, by_filter = UpdateOperation.clear_payload, UpdateOperation.clear_payload_by_filter
    return collection.change(_chosen(found, by_ids, by_filter))


def create_index(collection: Collection, body: object) -> int:
    found = fields.only(body, "the body", "field_name", "field_schema")
    name = fields.typed(fields.needed(found, "field_name", "the body"), str, "`field_name`")
    schema = schema_of(fields.needed(found, "field_schema", "the body"))
    with engine_errors():
        operation = UpdateOperation.create_field_index(name, schema)
    return collection.change(operation)


def delete_index(collection: Collection, name: str) -> int:
    with engine_errors():
        operation = UpdateOperation.delete_field_index(name)
    return collection.change(operation)


def _with_payload(collection: Collection, body: object, by_ids: _Maker, by_filter: _Maker) -> int:
    found = fields.only(body, "the body", "payload", "key", *_CHOICE)
    content = fields.payload(fields.needed(found, "payload", "the body"))
    key = fields.optional(found, "key", lambda given: fields.typed(given, str, "`key`"))
    return collection.change(_chosen(found, by_ids, by_filter, content, key))


def _chosen(found: dict[str, Any], by_ids: _Maker, by_filter: _Maker, *rest: Any) -> UpdateOperation:
    """The operation over the points that the body names by ids or by a filter. Raises Refusal when by neither."""
    with engine_errors():
        if "filter" in found and "points" not in found:
            return by_filter(filter_of(found["filter"]), *rest)
        if "points" in found and "filter" not in found:
            return by_ids(point_ids(found["points"]), *rest)
    raise Refusal("Wrong input: the body must have either `points` or `filter`")
