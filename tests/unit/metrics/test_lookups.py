"""What lookups change of a catalog, and of what its events are."""

from pathlib import Path

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog, CatalogError, Field, Lookup
from metrics.catalog_changes import Impact, compare
from metrics.disposition import PartitionReader
from metrics.lookup import joined, without_versions

GOOD = """\
source: shop
topic: events.shop.v1
event_id: id
event_time: {field: ts}
fields:
  user_id: string
  amount: {type: decimal, scale: 2}
lookups:
  customers: {topic: customers.v1, key: user_id, fields: {segment: string, tier: {type: string, default: none}}}
  limits: {topic: limits.v1, key: user_id, fields: {most: {type: decimal, scale: 2}}}
metrics:
  events: {agg: count, window: tumbling 1m}
  revenue: {agg: sum(amount), where: customers_tier = 'gold', by: [customers_segment], window: tumbling 1m}
  headroom: {agg: min(limits_most - amount), window: tumbling 1m}
  share: {ratio: [headroom, events]}
"""


def catalog(tmp_path: Path, text: str = GOOD) -> Catalog:
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    return load_catalog(path)


def versions(tmp_path: Path, text: str = GOOD) -> dict[str, str]:
    return {metric.name: metric.metric_version for metric in catalog(tmp_path, text).shown}


def changed(tmp_path: Path, before: str, after: str) -> set[str]:
    assert before in GOOD
    former, now = versions(tmp_path), versions(tmp_path, GOOD.replace(before, after))
    return {name for name in former if former[name] != now[name]}


def test_fields_of_lookups_are_used_like_fields_of_events(tmp_path: Path) -> None:
    shop = catalog(tmp_path)
    assert list(shop.columns) == ["user_id", "amount", "customers_segment", "customers_tier", "limits_most"]
    assert list(shop.fields) == ["user_id", "amount"]
    used = {metric.name: [lookup.name for lookup in shop.lookups_of(metric)] for metric in shop.shown}
    assert used == {"events": [], "revenue": ["customers"], "headroom": ["limits"], "share": ["limits"]}


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("topic: customers.v1", "topic: customers.v2", {"revenue"}),
        ("default: none", "default: unknown", {"revenue"}),
        ("fields: {segment: string,", "fields: {segment: {type: string, required: true},", {"revenue"}),
        ("most: {type: decimal, scale: 2}", "most: {type: decimal, scale: 3}", {"headroom", "share"}),
    ],
)
def test_the_version_of_a_metric_covers_the_lookups_that_it_uses(
    tmp_path: Path, before: str, after: str, named: set[str]
) -> None:
    assert changed(tmp_path, before, after) == named


def test_a_lookup_that_nothing_uses_changes_no_version(tmp_path: Path) -> None:
    former = versions(tmp_path)
    more = GOOD.replace("metrics:\n", "  shops: {topic: shops.v1, key: user_id, fields: {city: string}}\nmetrics:\n")
    assert versions(tmp_path, more) == former


def test_a_changed_lookup_is_told_with_what_it_asks_for(tmp_path: Path) -> None:
    former = catalog(tmp_path)
    now = catalog(tmp_path, GOOD.replace("topic: limits.v1", "topic: limits.v2"))
    told = [(change.subject, change.impact) for change in compare(former, now)]
    assert told == [
        ("lookup limits", Impact.BACKFILL),
        ("metric headroom", Impact.BACKFILL),
        ("metric share", Impact.BACKFILL),
    ]
    without = GOOD.replace(GOOD[GOOD.index("  limits:") : GOOD.index("metrics:")], "")
    gone = without.replace(without[without.index("  headroom:") :], "")
    subjects = [(change.subject, change.impact) for change in compare(catalog(tmp_path, gone), former)]
    assert subjects[0] == ("lookup limits", Impact.COMPATIBLE)


def test_a_lookup_is_not_named_like_a_table_about_lookups_nor_a_joined_field_like_another_in_other_letters(
    tmp_path: Path,
) -> None:
    text = GOOD.replace("  limits:", "  gaps:").replace("limits_most", "gaps_most")
    with pytest.raises(CatalogError, match="a lookup must not have the name of a table about lookups; got `gaps`"):
        catalog(tmp_path, text)
    text = GOOD.replace("  user_id: string", "  user_id: string\n  Limits_Most: int")
    with pytest.raises(CatalogError, match="a joined field must not have the name of another field"):
        catalog(tmp_path, text)


def test_a_reader_joins_what_its_catalog_says_or_is_not_made(tmp_path: Path) -> None:
    shop = catalog(tmp_path)
    with pytest.raises(ValueError, match="`join` serves a catalog's lookups; got None for 2 of them"):
        PartitionReader(shop)
    none = without_versions(shop.lookups)

    def join(events):
        for lookup in shop.lookups:
            events = joined(events, lookup, none[lookup.name])
        return events

    chunk = PartitionReader(shop, None, join).read(0, [0], [60_000], [b'{"id": "e", "ts": 1, "user_id": "u"}'])
    found = chunk.counted.select("f_customers_segment", "f_customers_tier", "f_limits_most")
    assert found.rows() == [(None, "none", None)]


def test_joined_fields_are_never_required() -> None:
    lookup = Lookup("customers", "customers.v1", "user", (Field("segment", "string", required=True),))
    assert [(field.name, field.required) for field in lookup.joined] == [("customers_segment", False)]
