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
    ("old", "new", "line", "rule", "value", "hint"),
    [
        ("sum(amount)", "sum(amout)", 15, "unknown field", "amout", "did you mean `amount`?"),
        ("sum(amount)", "median(amount)", 15, "unknown aggregation", "median(amount)", "count, sum(FIELD)"),
        ("sum(amount)", "sum(weight)", 15, "a sum needs an int or a decimal", "sum(weight)", "declare the field"),
        ("event_type = 'purchase'", "kind = 'purchase'", 15, "unknown field `kind`", "kind = 'purchase'", "fields are"),
        ("event_type = 'purchase'", "amount = 'x'", 15, "it cannot be compared", "amount = 'x'", "correct"),
        ("event_type = 'purchase'", "sleep(9)", 15, "not allowed in a condition", "sleep(9)", "allowed are"),
        ("event_type = 'purchase'", "event_type = (", 15, "not a condition that parses", "event_type = (", "as in SQL"),
        ("by: [country]", "by: [contry]", 15, "unknown field", "contry", "did you mean `country`?"),
        ("tumbling 1m,", "hopping 1m,", 15, "unknown window", "hopping 1m", "tumbling SIZE"),
        ("tumbling 1m,", "tumbling 7m,", 15, "must divide a day", "tumbling 7m", "use for example"),
        ("tumbling 1m,", "tumbling soon,", 15, "a duration is a whole number", "tumbling soon", "10s, 5m or 1d"),
        ("amount: {type: decimal", "amount: {type: money", 12, "Input should be", "money", "named by the rule"),
        ("key: user_id", "key: user", 5, "`key` must be a field", "user", "did you mean `user_id`?"),
        ("allowed_lateness: 1h", "allowed_lateness: -1h", 7, "must not be negative", "-1h", "use 0s"),
        ("topic: events", "topics: events", 2, "topics", "topics", "remove it"),
        ("  weight: float", "  amount: int", 13, "a name stands once", "amount", "remove one"),
        ("  revenue:", "  Revenue:", 15, "a name is lower case", "Revenue", "`revenue`"),
        ("fields:", "fields", 8, "a catalog is YAML", "", "correct the syntax"),
    ],
)
def test_a_bad_catalog_is_refused_with_file_line_rule_value_and_way_out(
    tmp_path: Path, old: str, new: str, line: int, rule: str, value: str, hint: str
) -> None:
    assert GOOD.count(old) == 1
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(CatalogError) as raised:
        load_catalog(path)
    problem = next(p for p in raised.value.problems if rule in p.rule)
    assert problem.file == str(path)
    assert problem.line == line or rule == "a catalog is YAML"
    assert value in problem.value
    assert hint in problem.hint


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("sum(amount)", "sum(amout)").replace("distinct(user_id)", "mode(user_id)")
    with pytest.raises(CatalogError) as raised:
        load_catalog(written(tmp_path, bad))
    assert [problem.line for problem in raised.value.problems] == [15, 16]


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file.*--catalog"):
        load_catalog(tmp_path / "none.yaml")
