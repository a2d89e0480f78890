"""No name that a dimension may have is taken for one that the SQL of the views uses itself."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from serving_tables import Tables, at

from infra.catalog_file import load_catalog
from infra.clickhouse import quote
from infra.settings import Settings
from metrics.catalog import MOST_DIMENSIONS, Catalog, CatalogError
from metrics.catalog_build import parse_catalog
from serving.views import views

SOURCE = """
source: {source}
topic: events.{source}
event_id: id
event_time: {{field: ts, unit: ms}}
key: user
"""
WINDOWS = "[tumbling 1h, sliding 2h every 1h, day Europe/Berlin, global]"
METRICS = {
    "n": f"agg: count, by: BY, window: {WINDOWS}",
    "users": "agg: distinct(user), by: BY, window: [tumbling 1h, global]",
    "middle": 'agg: "quantile(amount, 0.5)", by: BY, window: global',
    "spread": "agg: stddev(amount), by: BY, window: global",
    "stock": 'agg: "level(counted, counted)", by: BY, window: global',
    "visits": "agg: count, by: BY, window: session 30m",
    "share": "ratio: [n{0}, users{0}]",
}
DAY = at("2026-03-28T00:00:00").date()
HOUR = at("2026-03-28T12:00:00")


def text_of(dimensions: Sequence[Sequence[str]]) -> str:
    """A catalog in which all `METRICS` are split by each of these lists."""
    fields = ["user: string", "amount: {{type: decimal, scale: 2}}", "counted: int"]
    fields += [f"{name}: string" for by in dimensions for name in by]
    lines = [
        f"  {metric}{index}: {{{{{body.format(index).replace('BY', '[' + ', '.join(by) + ']')}}}}}"
        for index, by in enumerate(dimensions)
        for metric, body in METRICS.items()
    ]
    return SOURCE + "fields: {{" + ", ".join(fields) + "}}\nmetrics:\n" + "\n".join(lines) + "\n"


def may_name_a_dimension(name: str) -> bool:
    tree: dict[str, Any] = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts"},
        "fields": {name: "string"},
        "metrics": {"n": {"agg": "count", "by": [name], "window": "global"}},
    }
    try:
        parse_catalog(tree, {}, "test")
    except CatalogError:
        return False
    return True


def names_in_views(catalog: Catalog) -> list[str]:
    """Aliases of columns and relations, and the arguments of lambdas."""
    named: set[str] = set()
    for view in views(catalog, "shop"):
        named.update(re.findall(r"\bAS `?([a-z_]\w*)", view.body))
        for one, several in re.findall(r"(\w+) ->|\(([\w, ]+)\) ->", view.body):
            named.update([one] if one else several.split(", "))
    return sorted(named)


@pytest.fixture(scope="module")
def dimensions(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    path = tmp_path_factory.mktemp("plain") / "shop.yaml"
    path.write_text(text_of([[]]).format(source="shop"), encoding="utf-8")
    names = [*filter(may_name_a_dimension, names_in_views(load_catalog(path))), "userId"]
    return [names[start : start + MOST_DIMENSIONS] for start in range(0, len(names), MOST_DIMENSIONS)]


@pytest.fixture(scope="module")
def tables(clickhouse: Settings, dimensions: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables.create(clickhouse, "names", tmp_path_factory.mktemp("names"), text_of(dimensions))


def test_a_view_of_any_dimension_can_be_made(tables: Tables) -> None:
    there = {name for (name,) in tables.client.query("SHOW TABLES FROM " + quote(tables.database)).result_rows}
    assert {view.name for view in views(tables.catalog, tables.database)} <= there


@pytest.mark.parametrize("layer", ["speed", "batch"])
def test_a_dimension_has_its_own_value_whatever_its_name(
    tables: Tables, dimensions: list[list[str]], layer: str
) -> None:
    metrics = [f"n{index}" for index in range(len(dimensions))]
    for metric, by in zip(metrics, dimensions, strict=True):
        row = {"metric_version": tables.catalog.metric(metric).metric_version, "slice_start": HOUR, "events": 1}
        row |= {"count": 1} | {name: name for name in by}
        row |= {"pane": "on_time"} if layer == "speed" else {"run_id": "run-1", "partition": DAY, "reading": "exact"}
        target = f"{quote(tables.database)}.{quote(f'{layer}_{metric}')}"
        tables.client.insert(target, [list(row.values())], column_names=list(row))
    if layer == "batch":
        tables.close(DAY - timedelta(days=1), "run-0")
        tables.close(DAY, "run-1")
    for metric, by in zip(metrics, dimensions, strict=True):
        for grain in tables.catalog.metric(metric).grains:
            shown = tables.read(f"{metric}_{grain}", ", ".join([*map(quote, by), "value", "layer"]))
            assert set(shown) == {(*by, 1, layer)}, (metric, grain)
