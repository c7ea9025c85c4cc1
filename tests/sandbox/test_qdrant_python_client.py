"""The development Qdrant with its Python client, used like the real one."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.common.version_check import is_compatible
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_server import client_of, qdrant_in

from sandbox.qdrant import Qdrant

SIZE = 8
TENANT = models.FieldCondition(key="metadata.tenantId", match=models.MatchValue(value="t1"))
UUID = str(uuid.UUID(int=77))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qdrant]:
    with qdrant_in(tmp_path_factory.mktemp("qdrant") / "a b") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Qdrant) -> Iterator[QdrantClient]:
    with client_of(server) as made:
        yield made


@pytest.fixture
def name(client: QdrantClient) -> Iterator[str]:
    """A collection with the points 1 to 12, of three tenants."""
    made = f"kb_{token_hex(4)}"
    client.create_collection(made, models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    fill(client, made)
    yield made
    client.delete_collection(made)


@pytest.fixture(scope="module")
def filtered(client: QdrantClient) -> Iterator[tuple[QdrantClient, QdrantClient]]:
    """The client, and the same points in the client's own imitation of Qdrant, to compare filters with."""
    with closing(QdrantClient(":memory:")) as imitation:
        for each in (client, imitation):
            each.create_collection("filtered", models.VectorParams(size=SIZE, distance=models.Distance.DOT))
            fill(each, "filtered")
        yield client, imitation


def vector(number: int) -> list[float]:
    return [float(number**place % 23) for place in range(1, SIZE + 1)]


def payload(number: int) -> dict[str, object]:
    content: dict[str, object] = {
        "metadata": {"tenantId": f"t{number % 3}", "source": "manual" if number % 2 else "faq"},
        "number": number,
        "words": ["lead", "call"][: number % 3],
        "when": f"2026-01-{number:02d}T10:00:00Z",
        "parts": [{"kind": "a", "size": number}, {"kind": "b", "size": -number}],
        "place": {"lon": 72.0 + number, "lat": 19.0},
    }
    if number % 4:
        content["note"] = None if number % 4 == 1 else "the quick lead"
    return content


def fill(client: QdrantClient, name: str) -> None:
    points = [models.PointStruct(id=each, vector=vector(each), payload=payload(each)) for each in range(1, 13)]
    client.upsert(name, points, wait=True)


def test_the_client_accepts_its_version(client: QdrantClient) -> None:
    assert is_compatible(version("qdrant-client"), client.info().version)


def test_a_collection_is_created_and_deleted(client: QdrantClient) -> None:
    assert not client.collection_exists("made")
    assert client.create_collection("made", models.VectorParams(size=1536, distance=models.Distance.COSINE))
    assert client.collection_exists("made")
    assert "made" in [each.name for each in client.get_collections().collections]
    info = client.get_collection("made")
    assert info.config.params.vectors == models.VectorParams(size=1536, distance=models.Distance.COSINE)
    assert (info.status, info.points_count) == (models.CollectionStatus.GREEN, 0)
    with pytest.raises(UnexpectedResponse, match=r"409[\s\S]*already exists"):
        client.create_collection("made", models.VectorParams(size=2, distance=models.Distance.DOT))
    assert client.delete_collection("made")
    assert not client.delete_collection("made")
    with pytest.raises(UnexpectedResponse, match=r"404[\s\S]*`made` doesn"):
        client.get_collection("made")


def test_the_requested_parameters_are_shown(client: QdrantClient) -> None:
    client.create_collection(
        "asked",
        models.VectorParams(size=4, distance=models.Distance.EUCLID, on_disk=True),
        hnsw_config=models.HnswConfigDiff(m=32),
        optimizers_config=models.OptimizersConfigDiff(default_segment_number=2),
        replication_factor=1,
        metadata={"made_by": "a test"},
    )
    config = client.get_collection("asked").config
    assert (config.params.vectors.distance, config.params.vectors.on_disk) == (models.Distance.EUCLID, True)
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (32, 100)
    assert config.optimizer_config.default_segment_number == 2
    assert config.metadata == {"made_by": "a test"}


def test_payload_indexes(client: QdrantClient, name: str) -> None:
    tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    client.create_payload_index(name, "metadata.tenantId", tenant)
    client.create_payload_index(name, "number", models.PayloadSchemaType.INTEGER)
    text = models.TextIndexParams(type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True)
    client.create_payload_index(name, "note", text)
    schema = client.get_collection(name).payload_schema
    assert (schema["metadata.tenantId"].params, schema["metadata.tenantId"].points) == (tenant, 12)
    assert schema["number"].data_type == models.PayloadSchemaType.INTEGER
    assert schema["note"].params == text
    assert client.count(name, models.Filter(must=[TENANT])).count == 4
    client.delete_payload_index(name, "number")
    assert set(client.get_collection(name).payload_schema) == {"metadata.tenantId", "note"}


def test_points_are_written_as_a_list_or_as_columns_and_read_by_id(client: QdrantClient, name: str) -> None:
    done = client.upsert(name, [models.PointStruct(id=UUID, vector=vector(9), payload={"x": "é"})], wait=True)
    assert done.status == models.UpdateStatus.COMPLETED
    batch = models.Batch(ids=[100, 101], vectors=[vector(1), vector(2)], payloads=[{"x": 1}, {}])
    assert client.upsert(name, batch, wait=False).status == models.UpdateStatus.ACKNOWLEDGED
    found = {point.id: point for point in client.retrieve(name, [UUID, 100, 101, 999], with_vectors=True)}
    assert {number: point.payload for number, point in found.items()} == {UUID: {"x": "é"}, 100: {"x": 1}, 101: {}}
    length = sum(part**2 for part in vector(1)) ** 0.5
    assert found[100].vector == pytest.approx([part / length for part in vector(1)])
    client.upsert(name, [models.PointStruct(id=100, vector=vector(3), payload={"y": 2})])
    assert client.retrieve(name, [100], with_payload=True)[0].payload == {"y": 2}


def test_a_query_finds_the_nearest_of_a_tenant(client: QdrantClient, name: str) -> None:
    found = client.query_points(name, vector(4), query_filter=models.Filter(must=[TENANT]), limit=2).points
    assert found[0].id == 4
    assert found[0].score == pytest.approx(1.0)
    assert found[0].payload == payload(4)
    assert found[0].vector is None
    assert {point.payload["metadata"]["tenantId"] for point in found if point.payload} == {"t1"}


def test_a_query_can_be_limited(client: QdrantClient, name: str) -> None:
    ranked = client.query_points(name, vector(4), limit=12, with_vectors=True).points
    assert len(ranked) == 12
    assert ranked[0].vector is not None
    second = client.query_points(name, vector(4), limit=2, offset=1, with_payload=False).points
    assert [point.score for point in second] == [point.score for point in ranked[1:3]]
    assert {point.payload for point in second} == {None}
    best = client.query_points(name, vector(4), score_threshold=0.999).points
    assert [point.id for point in best] == [point.id for point in ranked if point.score >= 0.999]
    some = client.query_points(name, vector(4), limit=1, with_payload=["number"]).points
    assert some[0].payload == {"number": 4}
    rest = models.PayloadSelectorExclude(exclude=["metadata", "parts", "place", "when", "words"])
    assert client.query_points(name, vector(4), limit=1, with_payload=rest).points[0].payload == {"number": 4}


def test_a_point_can_be_the_query(client: QdrantClient, name: str) -> None:
    by_vector = client.query_points(name, vector(5), limit=4).points
    by_id = client.query_points(name, 5, limit=3).points
    assert by_vector[0].id == 5
    assert [point.score for point in by_id] == pytest.approx([point.score for point in by_vector[1:]])
    assert 5 not in [point.id for point in by_id]
    with pytest.raises(UnexpectedResponse, match=r"404[\s\S]*999"):
        client.query_points(name, 999)


def test_many_queries_in_one_call(client: QdrantClient, name: str) -> None:
    requests = [models.QueryRequest(query=vector(each), limit=1) for each in (2, 3)]
    assert [answer.points[0].id for answer in client.query_batch_points(name, requests)] == [2, 3]


def test_scrolling_returns_every_point_once(client: QdrantClient, name: str) -> None:
    seen: list[object] = []
    offset = None
    while True:
        points, offset = client.scroll(name, limit=5, offset=offset)
        seen += [point.id for point in points]
        if offset is None:
            break
    assert seen == list(range(1, 13))
    points, following = client.scroll(name, models.Filter(must=[TENANT]), limit=2, with_vectors=True)
    assert ([point.id for point in points], following) == ([1, 4], 7)
    assert points[0].payload == payload(1)


def condition(key: str, **kind: object) -> models.FieldCondition:
    return models.FieldCondition.model_validate({"key": key} | kind)


FILTERS = {
    "value": models.Filter(must=[TENANT]),
    "number": models.Filter(must=[condition("number", match={"value": 3})]),
    "any": models.Filter(must=[condition("number", match={"any": [1, 2, 50]})]),
    "except": models.Filter(must=[condition("metadata.tenantId", match={"except": ["t0", "t1"]})]),
    "text": models.Filter(must=[condition("note", match={"text": "quick"})]),
    "range": models.Filter(must=[condition("number", range={"gt": 3, "lte": 6.5})]),
    "times": models.Filter(must=[condition("when", range={"gte": "2026-01-10T10:00:00Z"})]),
    "ids": models.Filter(must=[models.HasIdCondition(has_id=[1, 5, 500])]),
    "empty": models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="words"))]),
    "null": models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="note"))]),
    "count": models.Filter(must=[condition("words", values_count={"gte": 2})]),
    "should": models.Filter(should=[TENANT, condition("number", match={"value": 3})]),
    "must not": models.Filter(must_not=[TENANT]),
    "all": models.Filter(
        must=[condition("number", range={"lt": 9})],
        must_not=[TENANT],
        should=[condition("number", match={"any": [2, 10]})],
    ),
    "filter in filter": models.Filter(must=[models.Filter(should=[TENANT]), models.Filter(must_not=[TENANT])]),
    "some of": models.Filter(
        min_should=models.MinShould(
            conditions=[TENANT, condition("number", match={"value": 1}), condition("number", match={"value": 2})],
            min_count=2,
        )
    ),
    "array": models.Filter(must=[condition("words[]", match={"value": "call"})]),
    "same object": models.Filter(
        must=[
            models.NestedCondition(
                nested=models.Nested(
                    key="parts",
                    filter=models.Filter(
                        must=[condition("kind", match={"value": "b"}), condition("size", range={"gte": -2})]
                    ),
                )
            )
        ]
    ),
    "radius": models.Filter(
        must=[condition("place", geo_radius={"center": {"lon": 75.0, "lat": 19.0}, "radius": 150_000.0})]
    ),
    "nothing": models.Filter(),
}


@pytest.mark.parametrize("kind", FILTERS)
def test_filters_agree_with_the_clients_own(filtered: tuple[QdrantClient, QdrantClient], kind: str) -> None:
    chosen = [{point.id for point in client.scroll("filtered", FILTERS[kind], limit=100)[0]} for client in filtered]
    assert chosen[0] == chosen[1]
    assert filtered[0].count("filtered", FILTERS[kind], exact=True).count == len(chosen[0])
    assert chosen[0] or kind == "filter in filter"


def test_points_are_deleted_by_id_or_by_filter(client: QdrantClient, name: str) -> None:
    client.delete(name, [2, 3, 999])
    assert client.count(name).count == 10
    client.delete(name, models.FilterSelector(filter=models.Filter(must=[TENANT])), wait=True)
    assert [point.id for point in client.scroll(name, limit=20)[0]] == [5, 6, 8, 9, 11, 12]


def test_payloads_are_changed_in_place(client: QdrantClient, name: str) -> None:
    client.set_payload(name, {"seen": True}, points=[1, 2])
    client.set_payload(name, {"seen": False}, points=models.Filter(must=[models.HasIdCondition(has_id=[2])]))
    client.set_payload(name, {"source": "call"}, points=[1], key="metadata")
    client.overwrite_payload(name, {"only": 1}, points=[3])
    client.delete_payload(name, ["parts", "when", "place"], points=[4])
    client.clear_payload(name, points_selector=[5])
    found = {point.id: point.payload for point in client.retrieve(name, [1, 2, 3, 4, 5])}
    assert found[1] == payload(1) | {"seen": True, "metadata": {"tenantId": "t1", "source": "call"}}
    assert found[2] == payload(2) | {"seen": False}
    assert found[3] == {"only": 1}
    assert found[4] == {key: item for key, item in payload(4).items() if key not in ("parts", "when", "place")}
    assert found[5] == {}
    with pytest.raises(UnexpectedResponse, match=r"404[\s\S]*No point with id 999"):
        client.set_payload(name, {"seen": True}, points=[999])


def test_vectors_with_names(client: QdrantClient) -> None:
    client.create_collection(
        "named",
        {
            "title": models.VectorParams(size=2, distance=models.Distance.DOT),
            "body": models.VectorParams(size=3, distance=models.Distance.MANHATTAN),
        },
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    sparse = models.SparseVector(indices=[7, 9], values=[1.0, 2.0])
    client.upsert(
        "named",
        [
            models.PointStruct(id=1, vector={"title": [1, 0], "body": [1, 1, 1], "words": sparse}),
            models.PointStruct(id=2, vector={"title": [0, 1]}),
        ],
    )
    assert client.query_points("named", [0.0, 3.0], using="title", limit=1).points[0].id == 2
    assert [point.id for point in client.query_points("named", [0.0, 0.0, 0.0], using="body").points] == [1]
    found = client.query_points("named", sparse, using="words", with_vectors=["words"]).points
    assert [(point.id, point.score, point.vector) for point in found] == [(1, 5.0, {"words": sparse})]
    assert set(client.get_collection("named").config.params.vectors) == {"title", "body"}
    with pytest.raises(UnexpectedResponse, match=r"400[\s\S]*expected dim: 2, got 3"):
        client.query_points("named", [1.0, 2.0, 3.0], using="title")


def test_a_snapshot_restores_a_deleted_collection(client: QdrantClient, server: Qdrant, name: str) -> None:
    tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    client.create_payload_index(name, "metadata.tenantId", tenant)
    before = client.get_collection(name)
    made = client.create_snapshot(name)
    assert made is not None
    assert client.list_snapshots(name) == [made]
    client.delete_collection(name)
    location = (server.snapshots / name / made.name).as_uri()
    client.recover_snapshot(name, location, checksum=made.checksum, priority=models.SnapshotPriority.SNAPSHOT)
    assert client.get_collection(name) == before
    assert client.retrieve(name, [3])[0].payload == payload(3)
    client.upsert(name, [models.PointStruct(id=50, vector=vector(1))])
    assert client.count(name, models.Filter(must=[TENANT])).count == 4


def test_a_snapshot_is_restored_over_http_into_another_collection(
    client: QdrantClient, server: Qdrant, name: str
) -> None:
    made = client.create_snapshot(name)
    assert made is not None
    location = f"{server.url}/collections/{name}/snapshots/{made.name}"
    with pytest.raises(UnexpectedResponse, match=r"400[\s\S]*checksum mismatch"):
        client.recover_snapshot("scratch", location, checksum="0" * 64)
    assert not client.collection_exists("scratch")
    client.recover_snapshot("scratch", location, checksum=made.checksum)
    client.delete(name, [1])
    assert (client.count("scratch").count, client.count(name).count) == (12, 11)
    client.recover_snapshot(name, location)
    assert client.count(name).count == 12
    assert client.delete_snapshot(name, made.name)
    assert client.list_snapshots(name) == []
    with pytest.raises(UnexpectedResponse, match="404"):
        client.delete_snapshot(name, made.name)


def test_a_client_needs_the_key(tmp_path: Path) -> None:
    with qdrant_in(tmp_path / "q", api_key="a secret") as server:
        with pytest.warns(UserWarning, match="insecure connection"):
            friend = QdrantClient(url=server.url, api_key="a secret", check_compatibility=False)
        with closing(friend):
            assert friend.get_collections().collections == []
        with client_of(server) as stranger, pytest.raises(UnexpectedResponse, match=r"401[\s\S]*API key"):
            stranger.get_collections()
