from datetime import UTC, date, datetime

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from serving import query


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "shop.yaml"
    path.write_text(
        "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\nfields: {country: string}\n"
        "metrics:\n  events: {agg: count, window: tumbling 1m}\n"
        "  visits: {agg: count, by: [country], window: [tumbling 1h, tumbling 1d]}\n",
        encoding="utf-8",
    )
    return load_catalog(path)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"metric": "visit"}, "unknown metric `visit`. the metrics of source `shop` are: events, visits"),
        ({"metric": "visits", "grain": "5m"}, "metric `visits` has no grain `5m`. its grains are: 1h, 1d"),
        ({"metric": "visits", "layer": "gold"}, "unknown layer `gold`. the layers are: served, speed, batch"),
        ({"metric": "visits", "by": ["city=Ulm"]}, "no dimension `city`. its dimensions are: country"),
        ({"metric": "events", "by": ["country=DE"]}, "no dimension `country`. it has none"),
        ({"metric": "visits", "by": ["country"]}, "must be DIMENSION=VALUE; got `country`. write for example"),
        ({"metric": "visits", "start": "noon"}, "`from` must be an ISO 8601 time or day; got `noon`. write for"),
        ({"metric": "visits", "limit": 0}, "`limit` must be between 1 and 1000000; got 0"),
        ({"metric": "visits", "start": "2026-03-02", "end": "2026-03-02"}, "`from` must lie before `to`; got 2026-"),
    ],
)
def test_a_wrong_query_is_refused_with_the_rule_the_value_and_the_way_out(
    catalog: Catalog, asked: dict[str, object], text: str
) -> None:
    with pytest.raises(query.QueryError) as caught:
        query.build(catalog, **asked)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_only_an_unknown_metric_is_not_found(catalog: Catalog) -> None:
    with pytest.raises(query.UnknownMetricError):
        query.build(catalog, "nothing")


def test_the_first_grain_of_the_catalog_is_the_default(catalog: Catalog) -> None:
    assert query.build(catalog, "visits").grain == "1h"


def test_values_of_one_dimension_are_alternatives(catalog: Catalog) -> None:
    asked = query.build(catalog, "visits", by=["country=DE", "country=a=b"])
    assert asked.by == {"country": ["DE", "a=b"]}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T10:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01T10:00:00Z", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01T10:00:00+02:00", datetime(2026, 3, 1, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_utc_unless_it_says_otherwise(text: str, moment: datetime) -> None:
    assert query.parse_time(text, "from") == moment


def test_times_are_written_with_z_and_days_as_days() -> None:
    assert query.iso(datetime(2026, 3, 1, 10, tzinfo=UTC)) == "2026-03-01T10:00:00Z"
    assert query.iso(datetime(2026, 3, 1, 10, 0, 0, 250_000, tzinfo=UTC)) == "2026-03-01T10:00:00.250Z"
    assert query.iso(date(2026, 3, 1)) == "2026-03-01"


def test_values_are_bound_and_never_part_of_the_statement(catalog: Catalog) -> None:
    sql, parameters = query.select("shop", query.build(catalog, "visits", by=["country='; DROP"], start="2026-03-01"))
    assert "DROP" not in sql
    assert parameters == {"most": 10_000, "start": 1_772_323_200_000, "by_0": ["'; DROP"]}
