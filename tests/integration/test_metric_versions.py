"""A metric whose definition changed: filled beside the old version, switched over in one step, and back."""

from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from serving_tables import CATALOG, Event, Tables, at

from infra.catalog_file import load_catalog
from infra.settings import Settings
from serving import query, schema
from serving.source import Source
from serving.versions import SwitchError, standing, switch

NOON = at("2026-03-01T12:00:00")
DAY = date(2026, 3, 1)
EVENTS = [Event(NOON, "buy", "DE", "u1", Decimal("10.10")), Event(NOON, "gift", "DE", "u2", Decimal("5.00"))]
RATIO = "  share: {{ratio: [revenue, spent], window: tumbling 1h}}\n"
TEXT = CATALOG + "  spent: {{agg: sum(amount), by: [country], window: tumbling 1h}}\n" + RATIO


@pytest.fixture
def old(clickhouse: Settings, unique: str, tmp_path: Path) -> Tables:
    made = Tables.create(clickhouse, unique, tmp_path, TEXT)
    made.speed(EVENTS)
    made.batch("r1", EVENTS)
    made.close(DAY, "r1")
    return made


@pytest.fixture
def new(old: Tables, clickhouse: Settings, tmp_path: Path) -> Tables:
    """The same source with gifts counted as revenue, applied beside the old definition."""
    path = tmp_path / "new.yaml"
    text = TEXT.format(source=old.catalog.source).replace("kind = 'buy'", "kind = 'buy' OR kind = 'gift'")
    path.write_text(text, encoding="utf-8")
    catalog = load_catalog(path)
    schema.apply(old.client, catalog, old.database)
    return replace(old, catalog=catalog, source=Source(clickhouse, catalog))


def shown(tables: Tables, metric: str = "revenue", version: str | None = None) -> list[object]:
    question = query.build(tables.catalog, metric, "1h", version=version)
    return [row.value for row in query.rows(tables.client, tables.database, question)]


def test_a_changed_metric_shows_its_old_version_until_it_is_switched(old: Tables, new: Tables) -> None:
    new.speed(EVENTS)
    version = new.catalog.metric("revenue").metric_version
    assert shown(new) == [Decimal("10.10")]
    assert shown(new, version=version) == [Decimal("15.10")]
    assert standing(new.client, new.database).active["revenue"] == old.catalog.metric("revenue").metric_version


@pytest.mark.parametrize("metric", ["revenue", "share"])
def test_a_version_that_lacks_days_is_not_switched_to(new: Tables, metric: str) -> None:
    with pytest.raises(SwitchError, match=rf"`{metric}` lacks 1 days, 2026-03-01 to 2026-03-01\. .*--force"):
        switch(new.client, new.database, [new.catalog.metric(metric)])
    assert shown(new) == [Decimal("10.10")]


def test_a_switch_gives_the_name_to_the_new_version_and_keeps_the_old_one(old: Tables, new: Tables) -> None:
    new.batch("r2", EVENTS)
    new.close(DAY, "r2")
    assert shown(new) == [Decimal("10.10")], "a run of the new version leaves the old one's day as it is"
    switched = switch(new.client, new.database, new.catalog.shown)
    assert [metric.name for metric in switched] == ["revenue", "share"]
    assert shown(new) == [Decimal("15.10")]
    assert shown(new, "share") == [1.0]
    assert shown(new, version=old.catalog.metric("revenue").metric_version) == [Decimal("10.10")]
    assert shown(new, "spent") == [Decimal("15.10")]
    assert switch(new.client, new.database, new.catalog.shown) == []


def test_a_switch_can_be_taken_back(old: Tables, new: Tables) -> None:
    switch(new.client, new.database, new.catalog.shown, force=True)
    schema.apply(old.client, old.catalog, old.database)
    switch(old.client, old.database, old.catalog.shown)
    assert shown(old) == [Decimal("10.10")]
    assert standing(old.client, old.database).is_active(old.catalog.metric("revenue"))


def test_an_added_metric_is_shown_at_once_and_changes_no_other(old: Tables, tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    text = TEXT.format(source=old.catalog.source).replace(
        "  events:", "  clicks: {agg: count, window: tumbling 1h}\n  events:"
    )
    path.write_text(text, encoding="utf-8")
    more = load_catalog(path)
    before = standing(old.client, old.database).active
    schema.apply(old.client, more, old.database)
    after = standing(old.client, old.database).active
    assert after == before | {"clicks": more.metric("clicks").metric_version}
    assert shown(old) == [Decimal("10.10")]


def test_no_view_of_the_old_version_keeps_the_name_and_no_other_metric_loses_a_view(
    clickhouse: Settings, unique: str, tmp_path: Path
) -> None:
    text = CATALOG.replace("tumbling 1d]}}\n  visitors", "day Europe/Berlin]}}\n  visitors")
    text += "  revenue_99: {{agg: sum(amount), window: tumbling 1h}}\n"
    old = Tables.create(clickhouse, unique, tmp_path, text)
    path = tmp_path / "new.yaml"
    changed = text.format(source=unique).replace("kind = 'buy'", "kind = 'gift'")
    path.write_text(changed.replace("[tumbling 1h, day Europe/Berlin]", "tumbling 1h"), encoding="utf-8")
    new = load_catalog(path)
    schema.apply(old.client, new, old.database)

    switch(old.client, old.database, new.shown)

    sql = "SELECT name FROM system.tables WHERE database = {database:String} AND name LIKE 'revenue%'"
    found = {name for (name,) in old.client.query(sql, parameters={"database": old.database}).result_rows}
    digits = old.catalog.metric("revenue").metric_version[:8]
    names = {"revenue_1h", "revenue_99_1h", f"revenue__{digits}_1h", f"revenue__{digits}_day_europe_berlin"}
    assert found == {name + suffix for name in names for suffix in ("", "__speed", "__batch")}
