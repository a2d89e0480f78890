"""What every engine must say: a catalog of all aggregations and windows, events around changes of clocks, a judge."""

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent / "property"))
from strategies import TREE, amounts, texts  # noqa: E402 - a directory of its own, which pytest adds too

from metrics import sketch  # noqa: E402
from metrics.catalog import ShownMetric  # noqa: E402
from metrics.reference import Record  # noqa: E402
from metrics.reference_values import Cell, Key  # noqa: E402

HOUR = 3_600_000
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]
CHANGES = [
    1_711_846_800_000,  # Berlin loses an hour
    1_729_990_800_000,  # and gains it
    1_710_054_000_000,  # New York
    1_730_613_600_000,
    1_712_415_600_000,  # Lord Howe, by half an hour
    1_728_142_200_000,
    1_714_082_400_000,  # Cairo, at midnight
    1_730_401_200_000,
]
EVERY = [
    "tumbling 7m",
    "tumbling 36h",
    "sliding 1h every 25m",
    "global",
    *(f"{unit} {zone}" for unit in ("day", "week", "month") for zone in ZONES),
]
FEW = ["tumbling 1h", "sliding 2h every 1h", "day Australia/Lord_Howe", "global"]
AGGREGATIONS = {
    "n": {"agg": "count", "by": ["country"], "window": EVERY},
    "total": {"agg": "sum(amount)", "where": "kind <> 'view'", "window": FEW},
    "size": {"agg": "sum(size)", "by": ["country"], "window": FEW},
    "least": {"agg": "min(amount)", "window": FEW},
    "most": {"agg": "max(size)", "by": ["country"], "window": FEW},
    "mean": {"agg": "mean(amount)", "window": FEW},
    "spread": {"agg": "stddev(size)", "window": FEW},
    "users": {"agg": "distinct(user)", "by": ["country"], "window": FEW},
    "median": {"agg": "quantile(amount, 0.5)", "by": ["country"], "window": FEW},
    "p95": {"agg": "quantile(items, 0.95)", "window": FEW},
    "p1": {"agg": "quantile(size, 0.01)", "window": FEW},
    "top": {"agg": "top(user, 2)", "by": ["country"], "window": FEW},
    "latest": {"agg": "last(user)", "by": ["kind"], "window": FEW},
    "member": {"agg": "last(member)", "window": FEW},
    "stock": {"agg": "level(level, items)", "by": ["country"], "window": FEW},
    "visits": {"agg": "count", "by": ["country"], "window": "session 30m max 2h"},
    "spent": {"agg": "mean(amount)", "window": "session 10m"},
    "seen": {"agg": "distinct(kind)", "window": "session 30m"},
    "per_event": {"ratio": ["size", "n"]},
}
LOG = TREE | {"fields": TREE["fields"] | {"level": "int"}, "metrics": AGGREGATIONS, "dedup_horizon": 500_000}


@st.composite
def events(draw: st.DrawFn, least: int = 1, most: int = 60) -> list[Record]:
    """Events within a day and a half of a change of clocks, many at the same millisecond, half of them in bursts."""
    change = draw(st.sampled_from(CHANGES))
    records = []
    moments = st.integers(-36 * HOUR, 36 * HOUR) | st.integers(-10, 10).map(lambda n: n * 600_000)
    for number in range(draw(st.integers(least, most))):
        moment = change + draw(moments)
        body = {
            "id": f"e{number}",
            "ts": moment,
            "kind": draw(st.sampled_from(["buy", "cart", "view"])),
            "user": draw(st.none() | st.sampled_from(["u1", "u2", "😀"]) | texts),
            "country": draw(st.sampled_from([None, "de", "日本", ""])),
            "amount": draw(st.none() | amounts.map(str)),
            "items": draw(st.none() | st.integers(-5, 5) | st.integers(-(10**15), 10**15)),
            "level": draw(st.none() | st.none() | st.integers(0, 50)),
            "member": draw(st.none() | st.booleans()),
            "size": draw(st.none() | st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([-0.0, 1e99])),
        }
        records.append(Record(0, number, moment, json.dumps(body).encode()))
    return records


def judge(
    metric: ShownMetric,
    grain: str,
    rows: dict[tuple[int, tuple[str, ...]], dict[str, Any]],
    expected: dict[Key, Cell],
    *,
    exact: bool,
) -> None:
    """Asserts that rows are all windows of a metric and grain, and say what the reference says.

    Args:
        metric: the metric.
        grain: its grain.
        rows: by start of the window (ms) and dimensions: end, events, length, value, lower, upper as JSON has them.
        expected: the reference's cells.
        exact: whether values must be equal, or lie within their bounds.
    """
    wanted = {key[2:]: cell for key, cell in expected.items() if key[:2] == (metric.name, grain)}
    assert set(rows) == set(wanted), (metric.name, grain)
    for key, cell in wanted.items():
        row = rows[key]
        assert row["end"] == cell.end, (metric.name, grain, key)
        assert row.get("events", cell.events) == cell.events, (metric.name, grain, key)
        if metric.session:
            assert row["length"] == cell.length
        if exact:
            assert _same(metric, row["value"], cell.value), (metric.name, grain, key, row["value"], cell.value)
        elif cell.value is None:
            assert row["value"] is None
        else:
            assert Decimal(row["lower"]) <= Decimal(cell.value) <= Decimal(row["upper"])
            if metric.text.startswith("quantile"):
                rounding = Decimal(1).scaleb(-_scale(metric)) / 2 if metric.value_type != "Float64" else 0
                allowed = Decimal(sketch.RELATIVE_ERROR) * abs(Decimal(cell.value)) + rounding
                assert abs(Decimal(row["value"]) - Decimal(cell.value)) <= allowed * Decimal("1.000000001")


def _same(metric: ShownMetric, value: Any, wanted: Any) -> bool:
    if value is None or wanted is None:
        return value is wanted
    if metric.text.startswith("top"):
        return [(one["item"], one["count"]) for one in value] == wanted
    if metric.value_type == "Float64":
        tolerance = 1e-9 * max(abs(wanted), 1e99 if metric.name == "size" and abs(wanted) > 1e90 else 1e6)
        return abs(float(value) - float(wanted)) <= tolerance
    return Decimal(value) == wanted if metric.value_type.startswith("Decimal") else value == wanted


def _scale(metric: ShownMetric) -> int:
    return int(metric.value_type.rstrip(")").split(", ")[1]) if metric.value_type.startswith("Decimal") else 0
