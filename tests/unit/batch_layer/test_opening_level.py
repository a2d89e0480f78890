"""What a level was before the days of a run."""

from datetime import date
from typing import Any

import polars as pl
import pytest

from batch_layer.alerts import opening_level
from metrics.catalog_build import parse_catalog

TREE = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "fields": {"product": "string", "counted": "int", "change": "int"},
    "metrics": {"stock": {"agg": "level(counted, change)", "by": ["product"], "window": "tumbling 1h"}},
    "alerts": {"low": {"when": "stock < 10"}},
}


def test_it_comes_from_runs_of_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def query(_: object, sql: str, parameters: dict[str, Any]) -> pl.DataFrame:
        asked.append(sql)
        names = {"f_product": pl.String, "set_at": pl.Int64, "set_to": pl.Int64, "changed_at": pl.Int64}
        return pl.DataFrame(schema=names | {"change": pl.Int64})

    monkeypatch.setattr("batch_layer.alerts.query_frame", query)
    shop = parse_catalog(TREE, {}, "test")
    opening_level(None, "shop", shop, shop.alerts[0], [date(2026, 3, 1)])  # type: ignore[arg-type]
    assert f"hasAll(p.metric_versions, ['{shop.metrics[0].metric_version}'])" in asked[0]
