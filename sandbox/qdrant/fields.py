"""Reads a request's JSON field by field; refuses fields that are missing, of a wrong type, or not supported here."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sandbox.qdrant.errors import Refusal

T = TypeVar("T")

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "an integer"}
_DEEPEST = 100  # the engine cannot read a payload back that is nested deeper than 127
_LARGEST = 2**64 - 1
_SMALLEST = -(2**63)


def only(value: object, where: str, *known: str) -> dict[str, Any]:
    """``value`` as an object without its nulls. Raises Refusal for other values and for unknown fields."""
    found = typed(value, dict, where)
    for name in found.keys() - set(known):
        if found[name] is not None:
            raise Refusal(f"Wrong input: `{name}` in {where} is unknown, or not served by the development server")
    return {name: item for name, item in found.items() if item is not None}


def typed(value: object, kind: type[T], where: str) -> T:
    """``value`` itself; raises Refusal if it has another type. True is not an integer here."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refusal(f"Format error in JSON body: {where} must be {_NAMES[kind]}")
    return value


def needed(fields: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        raise Refusal(f"Format error in JSON body: missing field `{name}` in {where}")
    return fields[name]


def optional(fields: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    return read(fields[name]) if name in fields else None


def count(fields: Mapping[str, Any], name: str, default: int, least: int) -> int:
    """A whole number from ``least`` to a million."""
    number = typed(fields.get(name, default), int, f"`{name}`")
    if not least <= number <= 1_000_000:
        raise Refusal(f"Wrong input: `{name}` must be a number from {least} to 1000000, not {number}")
    return number


def number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f"Format error in JSON body: {where} must be a number")
    return float(value)


def flag(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    return typed(fields.get(name, default), bool, f"`{name}`")


def strings(value: object, where: str) -> list[str]:
    return [typed(item, str, f"each item of {where}") for item in typed(value, list, where)]


def payload(value: object, where: str = "`payload`") -> dict[str, Any]:
    """A payload that the engine can store and read back."""
    found = typed(value, dict, where)
    _check(found, where, _DEEPEST)
    return found


def _check(value: object, where: str, left: int) -> None:
    if left == 0:
        raise Refusal(f"Wrong input: {where} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, where, left - 1)
    elif isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise Refusal(f"Wrong input: a number in {where} does not fit into 64 bits")
