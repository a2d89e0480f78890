"""What becomes of a source's tables when its catalog changes."""

from decimal import Decimal
from pathlib import Path

import pytest
from serving_tables import CATALOG, Event, Tables, at

from infra.catalog_file import load_catalog
from infra.clickhouse import quote
from infra.settings import Settings
from metrics.catalog import Catalog
from serving import schema
from serving.evolution import read_shapes
from serving.versions import standing, switch

NOON = at("2026-03-01T12:00:00")


@pytest.fixture
def tables(clickhouse: Settings, unique: str, tmp_path: Path) -> Tables:
    made = Tables.create(clickhouse, unique, tmp_path)
    made.speed([Event(NOON, "buy", "DE", "u1", Decimal("10.10"))])
    return made


def changed(tables: Tables, directory: Path, old: str, new: str) -> Catalog:
    path = directory / "changed.yaml"
    text = CATALOG.format(source=tables.catalog.source)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return load_catalog(path)


def test_an_unchanged_catalog_sets_nothing_aside(tables: Tables) -> None:
    before = set(read_shapes(tables.client, tables.database))
    schema.apply(tables.client, tables.catalog, tables.database)
    assert set(read_shapes(tables.client, tables.database)) == before


def test_a_new_metric_leaves_the_others_alone(tables: Tables, tmp_path: Path) -> None:
    before = tables.read("revenue_1h")
    more = changed(tables, tmp_path, "  events:", "  clicks: {agg: count, window: tumbling 1m}\n  events:")
    schema.apply(tables.client, more, tables.database)
    assert tables.read("revenue_1h") == before
    assert tables.read("clicks_1m") == []


def test_other_dimensions_begin_a_new_table_and_keep_the_old_rows(tables: Tables, tmp_path: Path) -> None:
    wider = changed(tables, tmp_path, "by: [country]", "by: [country, user]")
    schema.apply(tables.client, wider, tables.database)
    assert tables.read("revenue_1h") == []
    aside = [name for name in read_shapes(tables.client, tables.database) if name.startswith("speed_revenue__")]
    assert len(aside) == 1
    assert tables.read(aside[0], "country, total") == [("DE", Decimal("10.10"))]


def test_another_aggregation_of_another_type_can_be_written(tables: Tables, tmp_path: Path) -> None:
    other = changed(tables, tmp_path, "agg: sum(amount)", "agg: count")
    schema.apply(tables.client, other, tables.database)
    switch(tables.client, tables.database, other.shown)
    assert tables.read("revenue_1h") == []
    types = {name: shape.types for name, shape in read_shapes(tables.client, tables.database).items()}
    assert types["batch_revenue"]["count"] == "UInt64"
    assert types["speed_revenue"]["count"] == "UInt64"


def test_a_column_that_is_missing_is_added_and_the_rows_stay(tables: Tables) -> None:
    table = f"{quote(tables.database)}.speed_revenue"
    tables.client.command(f"ALTER TABLE {table} DROP COLUMN pane")
    schema.apply(tables.client, tables.catalog, tables.database)
    assert tables.read("speed_revenue", "country, pane") == [("DE", "")]


def test_exact_values_of_windows_are_set_aside_for_exact_slices(tables: Tables) -> None:
    table = f"{quote(tables.database)}.batch_revenue"
    tables.client.command(f"DROP TABLE {table}")
    tables.client.command(
        f"CREATE TABLE {table} (run_id String, partition Date, metric_version String, grain LowCardinality(String),"
        " window_start DateTime64(3, 'UTC'), country String, events UInt64, value Decimal(38, 2))"
        " ENGINE = MergeTree PARTITION BY (partition, run_id) ORDER BY (metric_version, grain, window_start, country)"
    )
    schema.apply(tables.client, tables.catalog, tables.database)
    shapes = read_shapes(tables.client, tables.database)
    assert "reading" in shapes["batch_revenue"].types
    assert [name for name in shapes if name.startswith("batch_revenue__")]
    assert tables.read("revenue_1d__batch") == []


def test_a_metric_that_becomes_sessions_begins_new_tables(tables: Tables, tmp_path: Path) -> None:
    sessions = changed(tables, tmp_path, "by: [country], window: [tumbling 1h, tumbling 1d]", "window: session 30m")
    schema.apply(tables.client, sessions, tables.database)
    assert tables.read("revenue_session") == []
    shapes = read_shapes(tables.client, tables.database)
    assert {"chain_events", "is_deleted", "session_key"} <= set(shapes["speed_revenue"].types)
    assert [name for name in shapes if name.startswith("speed_revenue__")]


def test_a_version_whose_exact_values_alone_are_set_aside_is_shown_no_more(
    clickhouse: Settings, unique: str, tmp_path: Path
) -> None:
    middle = '  middle: {{agg: "quantile(counted, 0.5)", window: tumbling 1h}}\n'
    old = Tables.create(clickhouse, unique, tmp_path, CATALOG + middle)
    path = tmp_path / "changed.yaml"
    path.write_text((CATALOG + middle.replace("counted", "amount")).format(source=unique), encoding="utf-8")
    new = load_catalog(path)
    schema.apply(old.client, new, old.database)
    assert [name for name in read_shapes(old.client, old.database) if name.startswith("batch_middle__")]
    assert standing(old.client, old.database).active["middle"] == new.metric("middle").metric_version
