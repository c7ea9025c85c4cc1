"""Filters of the REST API as the engine's objects.

One field of a condition determines its kind: see _CONDITIONS for conditions on a payload field, and _WITHOUT_KEY for
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qdrant_edge as engine

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal, engine_errors
from sandbox.qdrant.points import point_id

_DEEPEST = 32
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_CLAUSES = ("must", "should", "must_not")
_BOUNDS = ("lt", "gt", "lte", "gte")


def filter_of(value: object) -> engine.Filter:
    """Raises Refusal with the reason why it is not a filter."""
    with engine_errors():  # the engine checks paths of keys, and times
        return _filter(value, 0)


def _filter(value: object, depth: int) -> engine.Filter:
    if depth > _DEEPEST:
        raise Refusal(f"Wrong input: the filter is nested deeper than {_DEEPEST} levels")
    found = fields.only(value, "filter", *_CLAUSES, "min_should")
    clauses = {name: _conditions(found[name], name, depth) for name in _CLAUSES if name in found}
    least = fields.optional(found, "min_should", lambda given: _min_should(given, depth))
    return engine.Filter(**clauses, min_should=least)


def _conditions(value: object, where: str, depth: int) -> list[engine.ConditionType]:
    """A single condition need not be in a list."""
    listed = value if isinstance(value, list) else [value]
    return [_condition(item, where, depth) for item in listed]


def _min_should(value: object, depth: int) -> engine.MinShould:
    where = "min_should"
    found = fields.only(value, where, "conditions", "min_count")
    conditions = _conditions(fields.needed(found, "conditions", where), where, depth)
    fields.needed(found, "min_count", where)
    return engine.MinShould(conditions, fields.count(found, "min_count", 0, 0))


def _condition(value: object, where: str, depth: int) -> engine.ConditionType:
    found = fields.typed(value, dict, f"each condition of {where}")
    if "key" in found:
        return _field_condition(found, where)
    if found.keys() & {*_CLAUSES, "min_should"} or not found:
        return _filter(found, depth + 1)
    if "nested" in found:
        return _nested(fields.only(found, where, "nested")["nested"], depth)
    for kind, read in _WITHOUT_KEY.items():
        if kind in found:
            return read(fields.only(found, where, kind).get(kind))
    raise Refusal(f"Wrong input: no condition of {where} has the fields {', '.join(sorted(found))}")


def _nested(value: object, depth: int) -> engine.NestedCondition:
    found = fields.only(value, "nested", "key", "filter")
    inner = _filter(fields.needed(found, "filter", "nested"), depth + 1)
    return engine.NestedCondition(_key(found, "nested"), inner)


def _field_condition(value: dict[str, Any], where: str) -> engine.FieldCondition:
    found = fields.only(value, f"a condition of {where}", "key", *_CONDITIONS)
    key = _key(found, where)
    kinds = [kind for kind in _CONDITIONS if kind in found]
    if len(kinds) != 1:
        raise Refusal(f"Wrong input: the condition on `{key}` must have exactly one of {', '.join(_CONDITIONS)}")
    return engine.FieldCondition(key, **{kinds[0]: _CONDITIONS[kinds[0]](found[kinds[0]])})


def _key(found: Mapping[str, Any], where: str) -> str:
    return fields.typed(fields.needed(found, "key", where), str, f"`key` in {where}")


def _match(value: object) -> engine.MatchType:
    found = fields.only(value, "match", *_MATCHES)
    if len(found) != 1:
        raise Refusal(f"Wrong input: match must have exactly one of {', '.join(_MATCHES)}")
    ((kind, given),) = found.items()
    return _MATCHES[kind](given)


def _match_value(value: object) -> engine.MatchValue:
    if not isinstance(value, (str, int)) or (isinstance(value, int) and not _SMALLEST <= value <= _LARGEST):
        raise Refusal("Format error in JSON body: `value` in match must be a string, a 64 bit integer, true or false")
    return engine.MatchValue(value)


def _variants(value: object, where: str) -> list[Any]:
    """Strings only, or integers only."""
    listed: list[Any] = fields.typed(value, list, f"`{where}` in match")
    if {type(item) for item in listed} - {str} and {type(item) for item in listed} - {int}:
        raise Refusal(f"Format error in JSON body: `{where}` in match must hold strings only or integers only")
    return listed


def _text(kind: Callable[[str], engine.MatchType]) -> Callable[[object], engine.MatchType]:
    return lambda value: kind(fields.typed(value, str, "the text in match"))


def _range(value: object) -> engine.RangeType:
    """Over numbers, or over times in ISO 8601."""
    found = fields.only(value, "range", *_BOUNDS)
    if any(isinstance(bound, str) for bound in found.values()):
        return engine.RangeDateTime(**{name: fields.typed(bound, str, name) for name, bound in found.items()})
    return engine.RangeFloat(**{name: fields.number(bound, f"`{name}` in range") for name, bound in found.items()})


def _values_count(value: object) -> engine.ValuesCount:
    found = fields.only(value, "values_count", *_BOUNDS)
    return engine.ValuesCount(**{name: fields.count(found, name, 0, 0) for name in found})


def _geo_point(value: object) -> engine.GeoPoint:
    found = fields.only(value, "a geo point", "lon", "lat")
    lon, lat = (fields.number(fields.needed(found, name, "a geo point"), name) for name in ("lon", "lat"))
    return engine.GeoPoint(lon, lat)


def _geo_bounding_box(value: object) -> engine.GeoBoundingBox:
    found = fields.only(value, "geo_bounding_box", "top_left", "bottom_right")
    corners = (fields.needed(found, name, "geo_bounding_box") for name in ("top_left", "bottom_right"))
    return engine.GeoBoundingBox(*map(_geo_point, corners))


def _geo_radius(value: object) -> engine.GeoRadius:
    found = fields.only(value, "geo_radius", "center", "radius")
    center, radius = (fields.needed(found, name, "geo_radius") for name in ("center", "radius"))
    return engine.GeoRadius(_geo_point(center), fields.number(radius, "radius"))


def _is(value: object) -> bool:
    return fields.typed(value, bool, "is_empty and is_null of a condition with a key")


def _has_id(value: object) -> engine.HasIdCondition:
    return engine.HasIdCondition({point_id(item) for item in fields.typed(value, list, "has_id")})


_MATCHES: dict[str, Callable[[Any], engine.MatchType]] = {
    "value": _match_value,
    "any": lambda value: engine.MatchAny(_variants(value, "any")),
    "except": lambda value: engine.MatchExcept(_variants(value, "except")),
    "text": _text(engine.MatchText),
    "text_any": _text(engine.MatchTextAny),
    "phrase": _text(engine.MatchPhrase),
}
_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "values_count": _values_count,
    "geo_bounding_box": _geo_bounding_box,
    "geo_radius": _geo_radius,
    "is_empty": _is,
    "is_null": _is,
}
_WITHOUT_KEY: dict[str, Callable[[Any], engine.ConditionType]] = {
    "has_id": _has_id,
    "has_vector": lambda value: engine.HasVectorCondition(fields.typed(value, str, "has_vector")),
    "is_empty": lambda value: engine.IsEmptyCondition(_key(fields.only(value, "is_empty", "key"), "is_empty")),
    "is_null": lambda value: engine.IsNullCondition(_key(fields.only(value, "is_null", "key"), "is_null")),
}
