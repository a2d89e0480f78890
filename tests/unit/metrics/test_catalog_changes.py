"""A changed catalog is classified by what the change asks for."""

import pytest
import yaml

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.catalog_changes import Impact, compare, worst

OLD = """
source: clinic
topic: events.clinic.v1
event_id: id
event_time: {field: at, unit: ms}
key: patient
fields:
  kind: string
  patient: string
  ward: string
  cost: {type: decimal, scale: 2}
metrics:
  visits: {agg: count, by: [ward], window: [tumbling 1m, tumbling 1h]}
  costs: {agg: sum(cost), where: kind = 'bill', by: [ward], window: tumbling 1h}
  cost_per_visit: {ratio: [costs, visits]}
alerts:
  rush: {when: count > 20, by: [ward], within: 5m}
"""


def catalog(text: str) -> Catalog:
    return parse_catalog(yaml.safe_load(text), {}, "clinic.yaml")


@pytest.mark.parametrize(
    ("old", "new", "impact", "subject", "change"),
    [
        ("tumbling 1h]", "tumbling 1h, tumbling 1d]", "compatible", "metric visits", "window tumbling 1d added"),
        ("tumbling 1h]", "tumbling 10s, tumbling 1h]", "needs backfill", "metric visits", "window tumbling 10s added"),
        ("tumbling 1m, ", "", "breaking", "metric visits", "window tumbling 1m removed"),
        ("kind = 'bill'", "kind='bill'", "compatible", None, None),
        (
            "kind = 'bill'",
            "kind = 'invoice'",
            "needs backfill",
            "metric costs",
            "sum(cost) where kind = 'bill' -> sum(cost) where kind = 'invoice'",
        ),
        ("sum(cost)", "max(cost)", "breaking", "metric costs", "sum(cost) as Decimal(38, 2) by ward -> max(cost)"),
        ("sum(cost)", "sum(-cost)", "needs backfill", "metric costs", "sum(cost) where kind"),
        ("sum(cost)", "mean(cost)", "breaking", "metric costs", "as Float64"),
        ("agg: count, by: [ward], window: [", "agg: count, by: [kind], window: [", "refused", None, None),
        (
            "  visits:",
            "  arrivals: {agg: count, window: tumbling 1m}\n  visits:",
            "needs backfill",
            "metric arrivals",
            "added",
        ),
        ("  cost_per_visit: {ratio: [costs, visits]}\n", "", "breaking", "metric cost_per_visit", "removed"),
        (
            "  ward: string",
            "  ward: {type: string, default: none}",
            "needs backfill",
            "field ward",
            "default None -> none",
        ),
        (
            "  ward: string",
            "  ward: {type: string, required: true}",
            "breaking",
            "field ward",
            "string -> string required",
        ),
        ("  ward: string", "  ward: string\n  age: int", "needs backfill", "field age", "added"),
        ("scale: 2", "scale: 3", "breaking", "metric costs", "Decimal(38, 3)"),
        ("events.clinic.v1", "events.clinic.v2", "breaking", "topic", "events.clinic.v1 -> events.clinic.v2"),
        ("key: patient", "key: patient\nallowed_lateness: 2h", "needs backfill", "allowed_lateness", "2:00:00"),
        ("count > 20", "count > 30", "compatible", "alert rush", "count > 20 -> count > 30"),
        ("within: 5m", "within: 5m, topic: alarms", "breaking", "alert rush", "topic alerts.clinic.rush -> alarms"),
    ],
)
def test_a_change_is_compatible_needs_a_backfill_or_is_breaking(
    old: str, new: str, impact: str, subject: str | None, change: str | None
) -> None:
    assert OLD.count(old) >= 1
    text = OLD.replace(old, new, 1)
    if impact == "refused":
        with pytest.raises(Exception, match="same dimensions"):
            catalog(text)
        return
    changes = compare(catalog(OLD), catalog(text))
    assert worst(changes) is Impact(impact)
    if subject is None:
        assert changes == ()
        return
    found = [one for one in changes if one.subject == subject]
    assert any(change is not None and change in one.change for one in found), changes
    assert all(one.consequence for one in changes)


def test_the_same_catalog_has_no_changes() -> None:
    assert compare(catalog(OLD), catalog(OLD)) == ()
    assert worst(()) is Impact.COMPATIBLE
