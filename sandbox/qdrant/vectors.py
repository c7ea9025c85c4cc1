"""The parameters of a collection's vectors, in the REST API's and the engine's form, and checks of vectors."""

from collections.abc import Mapping
from typing import Any

import qdrant_edge as engine

from sandbox.qdrant import fields
from sandbox.qdrant.errors import Refusal

DEFAULT = ""  # the name of a collection's only vector
_DISTANCES = {
    "Cosine": engine.Distance.Cosine,
    "Euclid": engine.Distance.Euclid,
    "Dot": engine.Distance.Dot,
    "Manhattan": engine.Distance.Manhattan,
}
_LONGEST = 65_536
_LARGEST = 3.4028234e38  # of a 32 bit float
_INDICES = 2**32
# what only changes where vectors are stored or how fast they are found: shown, and otherwise ignored
_TUNING = ("on_disk", "hnsw_config", "quantization_config", "memory")


class Vectors:
    """The vectors of one collection, by name."""

    def __init__(self, dense: object, sparse: object) -> None:
        """``dense`` and ``sparse`` are `vectors` and `sparse_vectors` of a request. Raises Refusal."""
        self.dense = {name: _dense(params, name) for name, params in _named(dense).items()}
        named: dict[str, Any] = fields.typed(sparse, dict, "sparse_vectors")
        self.sparse = {name: _sparse(params, name) for name, params in named.items()}
        if self.dense.keys() & self.sparse.keys():
            raise Refusal("Wrong input: a name is in both vectors and sparse_vectors")

    def config(self) -> engine.EdgeConfig:
        """For a new shard."""
        dense = {
            name: engine.EdgeVectorParams(params["size"], _DISTANCES[params["distance"]])
            for name, params in self.dense.items()
        }
        sparse = {name: engine.EdgeSparseVectorParams() for name in self.sparse}
        return engine.EdgeConfig(vectors=dense, sparse_vectors=sparse)

    def described(self) -> dict[str, Any]:
        """In the form of `params` in the collection's info."""
        alone = self.dense.get(DEFAULT) if len(self.dense) == 1 else None
        return {"vectors": alone or self.dense} | ({"sparse_vectors": self.sparse} if self.sparse else {})

    def stored(self, value: object) -> Any:
        """The `vector` of a point in the engine's form."""
        if isinstance(value, list):
            return self.one(value, DEFAULT)
        named = fields.typed(value, dict, "`vector`")
        return {name: self.one(vector, name) for name, vector in named.items()}

    def one(self, value: object, name: str) -> Any:
        """One vector with the name ``name``; raises Refusal if it does not fit."""
        if name in self.sparse:
            return _sparse_vector(value)
        if name not in self.dense:
            raise Refusal(f"Wrong input: Not existing vector name error: {name}")
        vector = _numbers(value, f"the vector {name}".strip())
        size = self.dense[name]["size"]
        if len(vector) != size:
            raise Refusal(f"Wrong input: Vector dimension error: expected dim: {size}, got {len(vector)}")
        return vector


def _named(value: object) -> Mapping[str, Any]:
    found = fields.typed(value, dict, "vectors")
    return {DEFAULT: found} if "size" in found or "distance" in found else found


def _dense(value: object, name: str) -> dict[str, Any]:
    where = f"vectors.{name}".strip(".")
    found = fields.only(value, where, "size", "distance", *_TUNING)
    size = fields.typed(fields.needed(found, "size", where), int, f"size in {where}")
    if not 1 <= size <= _LONGEST:
        raise Refusal(f"Wrong input: size in {where} must be a number from 1 to {_LONGEST}, not {size}")
    distance = fields.typed(fields.needed(found, "distance", where), str, f"distance in {where}")
    if distance not in _DISTANCES:
        raise Refusal(f"Wrong input: distance in {where} must be one of {', '.join(_DISTANCES)}")
    return found


def _sparse(value: object, name: str) -> dict[str, Any]:
    return fields.only({} if value is None else value, f"sparse_vectors.{name}", "index")


def _numbers(value: object, where: str) -> list[float]:
    vector: list[float] = fields.typed(value, list, where)
    if not {type(item) for item in vector} <= {int, float}:
        raise Refusal(f"Format error in JSON body: {where} must hold numbers only")
    if vector and not (max(vector) <= _LARGEST and min(vector) >= -_LARGEST):
        raise Refusal(f"Wrong input: a number in {where} does not fit into 32 bits")
    return vector


def _sparse_vector(value: object) -> engine.SparseVector:
    where = "a sparse vector"
    found = fields.only(value, where, "indices", "values")
    indices = fields.typed(fields.needed(found, "indices", where), list, "`indices`")
    values = _numbers(fields.needed(found, "values", where), "`values`")
    if len(indices) != len(values) or len(set(map(str, indices))) != len(indices):
        raise Refusal("Wrong input: a sparse vector must have as many values as indices, and each index once")
    if not all(type(index) is int and 0 <= index < _INDICES for index in indices):
        raise Refusal("Wrong input: the indices of a sparse vector must be 32 bit numbers")
    return engine.SparseVector(indices, values)
