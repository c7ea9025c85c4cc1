"""Payload indexes: between `field_schema` of the REST API and the engine's form."""

from __future__ import annotations

from typing import Any

import qdrant_edge as engine

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal

_TYPES = {
    "keyword": engine.PayloadSchemaType.Keyword,
    "integer": engine.PayloadSchemaType.Integer,
    "float": engine.PayloadSchemaType.Float,
    "geo": engine.PayloadSchemaType.Geo,
    "text": engine.PayloadSchemaType.Text,
    "bool": engine.PayloadSchemaType.Bool,
    "datetime": engine.PayloadSchemaType.Datetime,
    "uuid": engine.PayloadSchemaType.Uuid,
}
_FLAGS = ("on_disk", "enable_hnsw")
# the parameters of each index besides _FLAGS
_PARAMETERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "keyword": (engine.KeywordIndexParams, ("is_tenant",)),
    "integer": (engine.IntegerIndexParams, ("lookup", "range", "is_principal")),
    "float": (engine.FloatIndexParams, ("is_principal",)),
    "geo": (engine.GeoIndexParams, ()),
    "text": (
        engine.TextIndexParams,
        ("lowercase", "phrase_matching", "ascii_folding", "min_token_len", "max_token_len", "tokenizer"),
    ),
    "bool": (engine.BoolIndexParams, ()),
    "datetime": (engine.DatetimeIndexParams, ("is_principal",)),
    "uuid": (engine.UuidIndexParams, ("is_tenant",)),
}
_TOKENIZERS = {
    "prefix": engine.TokenizerType.Prefix,
    "whitespace": engine.TokenizerType.Whitespace,
    "word": engine.TokenizerType.Word,
    "multilingual": engine.TokenizerType.Multilingual,
}


def schema_of(value: object) -> Any:
    """The engine's form of a type's name, or of an object with `type` and parameters. Raises Refusal."""
    if isinstance(value, str):
        return _TYPES[_known_type(value)]
    kind = _known_type(fields.needed(fields.typed(value, dict, "field_schema"), "type", "field_schema"))
    parameters, names = _PARAMETERS[kind]
    found = fields.only(value, f"the schema of a {kind} field", "type", *_FLAGS, *names)
    return parameters(**{name: _parameter(name, item) for name, item in found.items() if name != "type"})


def described(schema: dict[str, engine.PayloadIndexInfo]) -> dict[str, Any]:
    """`payload_schema` of a collection's info."""
    return {name: _described(info) for name, info in schema.items()}


def _known_type(name: object) -> str:
    if not isinstance(name, str) or name not in _TYPES:
        raise Refusal(f"Format error in JSON body: field_schema must be one of {', '.join(_TYPES)}")
    return name


def _parameter(name: str, value: object) -> Any:
    if name == "tokenizer":
        tokenizer = _TOKENIZERS.get(fields.typed(value, str, name))
        if tokenizer is None:
            raise Refusal(f"Format error in JSON body: tokenizer must be one of {', '.join(_TOKENIZERS)}")
        return tokenizer
    return fields.typed(value, int if name.endswith("_len") else bool, name)


def _described(info: engine.PayloadIndexInfo) -> dict[str, Any]:
    kind = next(name for name, schema in _TYPES.items() if schema == info.data_type)
    shown: dict[str, Any] = {"data_type": kind, "points": info.points}
    if info.params is not None:
        given = {name: getattr(info.params, name) for name in (*_FLAGS, *_PARAMETERS[kind][1])}
        shown["params"] = {"type": kind} | {name: _plain(item) for name, item in given.items() if item is not None}
    return shown


def _plain(value: Any) -> Any:
    return next((name for name, tokenizer in _TOKENIZERS.items() if tokenizer == value), value)
