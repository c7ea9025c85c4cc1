"""The calls that read points: each takes a collection and a request's body, and returns the `result`."""

from collections.abc import Callable
from typing import Any

import qdrant_edge as engine

from sandbox.qdrant import fields
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.errors import NotFound, Refusal
from sandbox.qdrant.filters import filter_of
from sandbox.qdrant.points import named_vector, point_id, point_ids, record, shown_id, with_payload, with_vector
from sandbox.qdrant.vectors import DEFAULT

_USUAL_LIMIT = 10
_ID_DIGITS = 20  # of the largest number of 64 bits
_SELECTORS = ("with_payload", "with_vector")
_WINDOW = ("filter", "params", "limit", "offset", "score_threshold", *_SELECTORS)


def retrieve(collection: Collection, body: object) -> list[dict[str, Any]]:
    """POST points: those that exist of the ids."""
    found = fields.only(body, "the body", "ids", *_SELECTORS)
    wanted = point_ids(fields.needed(found, "ids", "the body"))
    shown = _selectors(found, payload=True)
    records = collection.read(lambda shard: shard.retrieve(wanted, shown["with_payload"], shown["with_vector"]))
    return [record(each) for each in records]


def one(collection: Collection, text: str) -> dict[str, Any]:
    """GET points/ID, with payload and vector; raises NotFound."""
    number = point_id(int(text) if text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS else text)
    records = collection.read(lambda shard: shard.retrieve([number], True, True))
    if not records:
        raise NotFound(f"Not found: Point with id {shown_id(number)} does not exists!")
    return record(records[0])


def query(collection: Collection, body: object) -> dict[str, Any]:
    """POST points/query: nearest to a vector or to a point, or without a query in the order of the ids."""
    found = fields.only(body, "the body", "query", "using", *_WINDOW)
    using = fields.typed(found.get("using", DEFAULT), str, "`using`")
    wanted = found.get("query")
    if isinstance(wanted, dict):
        wanted = fields.only(wanted, "query", "nearest", "indices", "values")
        wanted = wanted.get("nearest", wanted)
    excluded = None
    if isinstance(wanted, (int, str)):
        excluded = point_id(wanted)
        wanted = _vector_of(collection, excluded, using)
    elif wanted is not None:
        wanted = collection.vectors.one(wanted, using)
    return {"points": _nearest(collection, found, wanted, using, excluded)}


def search(collection: Collection, body: object) -> list[dict[str, Any]]:
    """POST points/search, the older form of a query by vector."""
    found = fields.only(body, "the body", "vector", *_WINDOW)
    wanted, using = fields.needed(found, "vector", "the body"), DEFAULT
    if isinstance(wanted, dict):
        named = fields.only(wanted, "vector", "name", "vector")
        using = fields.typed(fields.needed(named, "name", "vector"), str, "name in vector")
        wanted = fields.needed(named, "vector", "vector")
    fields.needed(found, "limit", "the body")
    return _nearest(collection, found, collection.vectors.one(wanted, using), using, None)


def batch_of(call: Callable[[Collection, object], Any]) -> Callable[[Collection, object], list[Any]]:
    """POST points/query/batch and points/search/batch."""

    def run(collection: Collection, body: object) -> list[Any]:
        found = fields.only(body, "the body", "searches")
        searches: list[Any] = fields.typed(fields.needed(found, "searches", "the body"), list, "`searches`")
        return [call(collection, each) for each in searches]

    return run


def scroll(collection: Collection, body: object) -> dict[str, Any]:
    """POST points/scroll: in the order of the ids, from `offset` on."""
    found = fields.only(body, "the body", "filter", "limit", "offset", *_SELECTORS)
    request = engine.ScrollRequest(
        offset=fields.optional(found, "offset", point_id),
        limit=fields.count(found, "limit", _USUAL_LIMIT, 1),
        filter=fields.optional(found, "filter", filter_of),
        **_selectors(found, payload=True),
    )
    records, following = collection.read(lambda shard: shard.scroll(request))
    return {"points": [record(each) for each in records], "next_page_offset": shown_id(following)}


def count(collection: Collection, body: object) -> dict[str, int]:
    """POST points/count: always the exact number."""
    found = fields.only(body, "the body", "filter", "exact")
    fields.flag(found, "exact", default=True)
    request = engine.CountRequest(exact=True, filter=fields.optional(found, "filter", filter_of))
    return {"count": collection.read(lambda shard: shard.count(request))}


def _nearest(collection: Collection, found: dict[str, Any], vector: Any, using: str, excluded: Any) -> list[Any]:
    chosen = fields.optional(found, "filter", filter_of)
    if excluded is not None:
        chosen = engine.Filter(must=[] if chosen is None else [chosen], must_not=[engine.HasIdCondition({excluded})])
    request = engine.QueryRequest(
        limit=fields.count(found, "limit", _USUAL_LIMIT, 1),
        offset=fields.count(found, "offset", 0, 0),
        query=None if vector is None else engine.Query.Nearest(vector, using=using or None),
        filter=chosen,
        score_threshold=fields.optional(found, "score_threshold", lambda given: fields.number(given, "a threshold")),
        params=fields.optional(found, "params", _params),
        **_selectors(found, payload=False),
    )
    return [record(each) for each in collection.read(lambda shard: shard.query(request))]


def _params(value: object) -> engine.SearchParams:
    """Quantization and Acorn trade accuracy for speed; they are accepted and ignored."""
    found = fields.only(value, "params", "hnsw_ef", "exact", "indexed_only", "quantization", "acorn")
    return engine.SearchParams(
        hnsw_ef=fields.count(found, "hnsw_ef", 0, 0) or None,
        exact=fields.flag(found, "exact", default=False),
        indexed_only=fields.flag(found, "indexed_only", default=False),
    )


def _selectors(found: dict[str, Any], *, payload: bool) -> dict[str, Any]:
    return {
        "with_payload": with_payload(found.get("with_payload", payload)),
        "with_vector": with_vector(found.get("with_vector", False)),
    }


def _vector_of(collection: Collection, number: Any, using: str) -> Any:
    records = collection.read(lambda shard: shard.retrieve([number], False, True))
    if not records:
        raise NotFound(f"Not found: No point with id {shown_id(number)} found")
    vector = named_vector(records[0], using)
    if vector is None:
        raise Refusal(f"Wrong input: the point {shown_id(number)} has no vector {using!r}")
    return vector
