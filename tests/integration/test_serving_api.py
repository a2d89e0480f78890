"""The HTTP API as a client meets it, over real tables."""

import asyncio
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from serving_tables import OTHER_CATALOG, Event, Tables, at

from infra.settings import Settings
from serving.api import create_app
from serving.source import Source

NOON = at("2026-03-01T12:00:00")


def get(source: Source, path: str, *more: Source) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(source, *more))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def tables(clickhouse: Settings, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    made = Tables.create(clickhouse, "api_shop", tmp_path_factory.mktemp("api"))
    made.speed([Event(NOON, "buy", "DE", "u1", Decimal("10.10")), Event(NOON, "buy", "FR", "u2", Decimal("5.00"))])
    made.batch("run-1", [Event(NOON, "buy", "DE", "u1", Decimal("11.30"))])
    made.publish(date(2026, 3, 1), "run-1")
    made.certify(date(2026, 3, 1), "run-1")
    made.watermark(NOON)
    return made


def test_the_metrics_are_listed_as_the_catalog_defines_them(tables: Tables) -> None:
    body = get(tables.source, "/v1/metrics").json()
    assert body["source"] == "api_shop"
    assert [(m["name"], m["aggregation"], m["grains"]) for m in body["metrics"]] == [
        ("events", "count", ["1m", "1d"]),
        ("revenue", "sum(amount)", ["1h", "1d"]),
        ("visitors", "distinct(user)", ["5m", "1d"]),
    ]


def test_windows_come_from_the_served_view(tables: Tables) -> None:
    body = get(tables.source, "/v1/metrics/revenue?grain=1d&by=country%3DDE").json()
    assert (body["metric"], body["grain"]) == ("revenue", "1d")
    (row,) = body["rows"]
    assert (row["value"], row["layer"], row["status"], row["drift"]) == ("11.30", "batch", "certified", 1.2)


def test_a_layer_can_be_asked_for(tables: Tables) -> None:
    body = get(tables.source, "/v1/metrics/revenue?grain=1h&from=2026-03-01&to=2026-03-02&layer=speed").json()
    assert [(row["dimensions"]["country"], row["value"]) for row in body["rows"]] == [("DE", "10.10"), ("FR", "5.00")]


def test_status_and_health(tables: Tables) -> None:
    assert get(tables.source, "/healthz").json() == {"status": "ok", "source": "api_shop"}
    body = get(tables.source, "/v1/status").json()
    assert body["watermark"] == "2026-03-01T12:00:00Z"
    assert [day["certified"] for day in body["partitions"]] == [True]


@pytest.fixture(scope="module")
def both(tables: Tables, clickhouse: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    """A second source beside the first, without events."""
    other = Tables.create(clickhouse, "api_other", tmp_path_factory.mktemp("other"), OTHER_CATALOG)
    return tables.source, other.source


def test_every_metric_says_of_which_source_it_is(both: tuple[Source, Source]) -> None:
    body = get(both[0], "/v1/metrics", both[1]).json()
    assert [each["source"] for each in body["sources"]] == ["api_shop", "api_other"]
    assert [(each["source"], each["name"]) for each in body["metrics"]] == [
        *(("api_shop", name) for name in ("events", "revenue", "visitors")),
        ("api_other", "readings"),
    ]
    one = get(both[0], "/v1/metrics?source=api_other", both[1]).json()
    assert (one["source"], [each["name"] for each in one["metrics"]]) == ("api_other", ["readings"])


def test_a_metrics_name_tells_the_source_to_read(both: tuple[Source, Source]) -> None:
    path = "/v1/metrics/revenue?grain=1h"
    assert get(both[0], path, both[1]).json() == get(both[0], path).json()
    assert get(both[0], "/v1/metrics/readings", both[1]).json()["rows"] == []
    answer = get(both[0], "/v1/metrics/nothing", both[1])
    assert answer.status_code == 404
    assert "the metrics of the sources are api_shop: events, revenue, visitors; api_other: readings" in answer.text


def test_status_alerts_and_health_are_of_every_source(both: tuple[Source, Source]) -> None:
    health = get(both[0], "/healthz", both[1]).json()
    assert health == {"status": "ok", "sources": ["api_shop", "api_other"]}
    status = get(both[0], "/v1/status", both[1]).json()["sources"]
    assert [(each["source"], each["watermark"]) for each in status] == [
        ("api_shop", "2026-03-01T12:00:00Z"),
        ("api_other", None),
    ]
    assert get(both[0], "/v1/status?source=api_shop", both[1]).json().keys() == status[0].keys()
    alerts = get(both[0], "/v1/alerts", both[1]).json()
    assert [(each["source"], each["name"]) for each in alerts["definitions"]] == [("api_other", "failing")]
    assert get(both[0], "/v1/status?source=nobody", both[1]).status_code == 404


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/v1/metrics/nothing", 404, "unknown metric `nothing`. the metrics of source `api_shop` are: events, revenue"),
        ("/v1/metrics/revenue?from=noon", 400, "`from` must be an ISO 8601 time or day; got `noon`"),
        ("/v1/metrics/revenue?grain=7m", 400, "its grains are: 1h, 1d"),
        ("/v1/metrics/revenue?limit=many", 400, "`limit`: input should be a valid integer"),
        ("/v1/nothing", 404, "nothing is at `/v1/nothing`. try /v1/metrics"),
    ],
)
def test_a_wrong_request_gets_a_problem_that_says_what_is_right(
    tables: Tables, path: str, code: int, text: str
) -> None:
    answer = get(tables.source, path)
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == code
    assert text in answer.json()["detail"]


def test_without_tables_the_api_says_what_creates_them(tables: Tables, clickhouse: Settings) -> None:
    elsewhere = clickhouse.model_copy(update={"database_prefix": "nobody_"})
    answer = get(Source(elsewhere, tables.catalog), "/v1/metrics/revenue")
    assert answer.status_code == 503
    assert "lockstep up" in answer.json()["detail"]


def test_without_clickhouse_the_api_says_where_it_looked(
    tables: Tables, new_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    nowhere = new_settings(tmp_path)
    answer = get(Source(nowhere, tables.catalog), "/healthz")
    assert answer.status_code == 503
    assert f"no ClickHouse answered at `{nowhere.clickhouse_address}`" in answer.json()["detail"]
