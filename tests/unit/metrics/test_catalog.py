from datetime import timedelta
from pathlib import Path

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import CatalogError

GOOD = """\
source: shop
topic: events.shop.v1
event_id: event_id
event_time: {field: ts, unit: ms}
key: user_id
out_of_orderness: 10s
allowed_lateness: 1h
fields:
  event_type: string
  user_id: string
  country: {type: string, default: unknown}
  amount: {type: decimal, scale: 2}
  weight: float
metrics:
  revenue: {agg: sum(amount), where: event_type = 'purchase', by: [country], window: [tumbling 1m, tumbling 1d]}
  visitors: {agg: distinct(user_id), window: tumbling 5m}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    return path


def test_a_catalog_defines_metrics_with_grains_slices_and_versions(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, GOOD))
    revenue = catalog.metric("revenue")
    assert revenue.grains == ("1m", "1d")
    assert revenue.slice_width == timedelta(minutes=1)
    assert revenue.by == ("country",)
    assert len(revenue.metric_version) == 16
    assert catalog.late_topic == "events.shop.v1.late"
    assert catalog.dlq_topic == "events.shop.v1.dlq"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("event_type = 'purchase'", "event_type='purchase'", True),
        ("event_type = 'purchase'", "event_type = 'refund'", False),
        ("scale: 2}", "scale: 3}", False),
        ("allowed_lateness: 1h", "allowed_lateness: 60m", True),
        ("allowed_lateness: 1h", "allowed_lateness: 2h", False),
        ("  visitors: {agg: distinct(user_id), window: tumbling 5m}\n", "", True),
    ],
)
def test_a_version_changes_with_the_meaning_of_its_metric_alone(tmp_path: Path, old: str, new: str, same: bool) -> None:
    before = load_catalog(written(tmp_path, GOOD)).metric("revenue").metric_version
    after = load_catalog(written(tmp_path, GOOD.replace(old, new))).metric("revenue").metric_version
    assert (before == after) is same


@pytest.mark.parametrize(
    ("declared", "kept"),
    [
        ("{type: decimal, scale: 2, default: 5}", "'5.00'"),
        ('{type: decimal, scale: 2, default: "-0"}', "'0.00'"),
        ('{type: decimal, default: "1e3"}', "'1000'"),
        ("{type: float, default: 5}", "5.0"),
        ("{type: float, default: -0.0}", "0.0"),
        ("{type: int, default: -9223372036854775808}", "-9223372036854775808"),
        ("{type: bool, default: false}", "False"),
    ],
)
def test_a_default_is_kept_as_an_event_could_have_it(tmp_path: Path, declared: str, kept: str) -> None:
    catalog = load_catalog(written(tmp_path, GOOD.replace("  weight: float", f"  weight: {declared}")))
    assert repr(catalog.fields["weight"].default) == kept


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("sum(amount)", "sum(amout)").replace("distinct(user_id)", "mode(user_id)")
    with pytest.raises(CatalogError) as raised:
        load_catalog(written(tmp_path, bad))
    assert [problem.line for problem in raised.value.problems] == [15, 16]


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file.*--catalog"):
        load_catalog(tmp_path / "none.yaml")
