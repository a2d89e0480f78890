"""The registry answers as Confluent's protocol says, and knows after a restart what it knew before."""

import json
from typing import Any

import pytest
from confluent_kafka import KafkaException
from fastapi.testclient import TestClient

from infra.schema_registry import MEDIA_TYPE, create_app
from infra.schema_store import SchemaStore, Version

STRING, LONG = '"string"', '{"type": "long"}'
V1 = {"type": "record", "name": "r", "fields": [{"name": "a", "type": "int"}]}
V2 = {**V1, "fields": [*V1["fields"], {"name": "b", "type": "int", "default": 0}]}  # type: ignore[misc]
BROKEN = {**V1, "fields": [*V1["fields"], {"name": "b", "type": "int"}]}  # type: ignore[misc]


class MemoryLog:
    def __init__(self) -> None:
        self.versions: list[Version] = []
        self.fails = False

    def read(self) -> list[Version]:
        return list(self.versions)

    def append(self, version: Version) -> None:
        self.versions.append(version)
        if self.fails:
            raise KafkaException


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def client(log: MemoryLog) -> TestClient:
    return TestClient(create_app(SchemaStore(log)))


def post(client: TestClient, path: str, schema: Any, **more: Any) -> Any:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    body = json.dumps({"schema": text, **more})
    return client.post(path, content=body, headers={"Content-Type": MEDIA_TYPE})


def test_a_schema_is_registered_once_and_found_by_its_id(client: TestClient) -> None:
    for _ in range(2):
        assert post(client, "/subjects/s/versions", V1).json() == {"id": 1}
    assert json.loads(client.get("/schemas/ids/1").json()["schema"]) == V1
    assert client.get("/subjects").json() == ["s"]
    assert client.get("/subjects/s/versions").json() == [1]


def test_a_schema_has_one_id_under_every_subject(client: TestClient) -> None:
    ids = [post(client, f"/subjects/{s}/versions", x).json()["id"] for s, x in (("s", V1), ("t", LONG), ("u", V1))]
    assert ids == [1, 2, 1]


def test_versions_are_found_by_number_by_latest_and_by_schema(client: TestClient) -> None:
    for schema in (V1, V2):
        post(client, "/subjects/s/versions", schema)
    latest = client.get("/subjects/s/versions/latest").json()
    assert (latest["subject"], latest["version"], latest["id"], json.loads(latest["schema"])) == ("s", 2, 2, V2)
    assert client.get("/subjects/s/versions/1").json()["id"] == 1
    assert post(client, "/subjects/s", V1).json()["version"] == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/schemas/ids/9", 404, 40403),
        ("/subjects/none/versions", 404, 40401),
        ("/subjects/none/versions/latest", 404, 40401),
        ("/subjects/s/versions/9", 404, 40402),
        ("/subjects/s/versions/first", 422, 42202),
    ],
)
def test_what_is_not_there_is_said_with_the_protocols_code(
    client: TestClient, path: str, status: int, code: int
) -> None:
    post(client, "/subjects/s/versions", V1)
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)


def test_a_version_that_cannot_read_the_last_one_is_refused(client: TestClient) -> None:
    post(client, "/subjects/s/versions", V1)
    answer = post(client, "/subjects/s/versions", BROKEN)
    assert (answer.status_code, answer.json()["error_code"]) == (409, 409)
    assert "b is new and has no default" in answer.json()["message"]
    check = "/compatibility/subjects/s/versions/latest"
    assert [post(client, check, schema).json()["is_compatible"] for schema in (V2, BROKEN)] == [True, False]
    assert client.get("/subjects/s/versions").json() == [1]


@pytest.mark.parametrize(
    ("schema", "more"),
    [("{", {}), ('"nonsense"', {}), ("syntax = 3", {"schemaType": "PROTOBUF"}), (STRING, {"references": [{}]})],
)
def test_what_is_no_avro_schema_is_refused(client: TestClient, schema: str, more: dict[str, Any]) -> None:
    answer = post(client, "/subjects/s/versions", schema, **more)
    assert (answer.status_code, answer.json()["error_code"]) == (422, 42201)


def test_a_restart_forgets_nothing(client: TestClient, log: MemoryLog) -> None:
    for schema in (V1, V2):
        post(client, "/subjects/s/versions", schema)
    again = TestClient(create_app(SchemaStore(log)))
    assert again.get("/subjects/s/versions").json() == [1, 2]
    assert post(again, "/subjects/s/versions", V1).json() == {"id": 1}
    assert post(again, "/subjects/t/versions", LONG).json() == {"id": 3}


def test_a_write_in_doubt_is_looked_up_before_anything_else(client: TestClient, log: MemoryLog) -> None:
    log.fails = True
    answer = post(client, "/subjects/s/versions", V1)
    assert (answer.status_code, answer.json()["error_code"]) == (500, 50001)
    log.fails = False
    assert post(client, "/subjects/t/versions", LONG).json() == {"id": 2}
    assert client.get("/subjects/s/versions/latest").json()["id"] == 1
