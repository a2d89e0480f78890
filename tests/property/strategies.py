"""Logs and catalogs as hypothesis makes them."""

import json
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from metrics.reference import Record

NOON = 1_700_000_000_000 // 86_400_000 * 86_400_000 + 12 * 3_600_000
MINUTE = 60_000

TREE: dict[str, Any] = {
    "source": "shop",
    "topic": "events",
    "key": "user",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "out_of_orderness": "10s",
    "allowed_lateness": "5m",
    "dedup_horizon": 6,
    "fields": {
        "kind": "string",
        "user": "string",
        "country": {"type": "string", "default": "unknown"},
        "amount": {"type": "decimal", "scale": 2},
        "items": "int",
        "member": "bool",
        "size": {"type": "float"},
    },
    "metrics": {
        "events": {"agg": "count", "window": ["tumbling 1m", "tumbling 1d"]},
        "by_kind": {"agg": "count", "by": ["kind", "member"], "window": "tumbling 1m"},
        "revenue": {
            "agg": "sum(amount)",
            "where": "kind = 'buy' and (amount > 1.5 or member)",
            "by": "country",
            "window": "tumbling 5m",
        },
        "items": {"agg": "sum(items)", "where": "kind in ('buy', 'cart') and not size < 2", "window": "tumbling 1m"},
        "users": {"agg": "distinct(user)", "where": "amount is not null", "by": ["country"], "window": "tumbling 5m"},
        "amounts": {"agg": "distinct(amount)", "window": "tumbling 1h"},
        "size": {"agg": "sum(size)", "by": ["kind"], "window": "tumbling 1m"},
        "least": {"agg": "min(amount)", "window": "tumbling 1m"},
        "most": {"agg": "max(size)", "by": ["country"], "window": "tumbling 5m"},
        "mean": {"agg": "mean(amount)", "by": ["country"], "window": "tumbling 5m"},
        "mean_size": {"agg": "mean(size)", "window": "tumbling 5m"},
        "spread": {"agg": "stddev(size)", "window": "tumbling 5m"},
        "spread_of_amounts": {"agg": "stddev(amount)", "by": ["member"], "window": "tumbling 5m"},
        "median": {"agg": "quantile(amount, 0.5)", "window": "tumbling 5m"},
        "p95_size": {"agg": "quantile(size, 0.95)", "window": "tumbling 5m"},
        "top_users": {"agg": "top(user, 2)", "by": "country", "window": "tumbling 5m"},
        "last_size": {"agg": "last(size)", "by": ["country"], "window": "tumbling 5m"},
        "last_user": {"agg": "last(user)", "window": "tumbling 5m"},
        "stock": {"agg": "level(items, items)", "by": ["country"], "window": "tumbling 5m"},
    },
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
amounts = st.decimals(-1000, 1000, places=2, allow_nan=False)
anything = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), texts)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """The bytes of an event, now and then with a field of another type or missing."""
    body: dict[str, Any] = {
        "id": draw(st.sampled_from([f"e{number}" for number in range(12)])),
        "ts": NOON + draw(st.integers(-20 * MINUTE, 20 * MINUTE)),
        "kind": draw(st.sampled_from(["buy", "cart", "view"])),
        "user": draw(st.one_of(st.none(), texts)),
        "country": draw(st.sampled_from([None, "de", "fr", "日本", ""])),
        "amount": draw(st.one_of(st.none(), amounts.map(str), amounts.map(float))),
        "items": draw(st.one_of(st.none(), st.integers(-5, 5))),
        "member": draw(st.one_of(st.none(), st.booleans())),
        "size": draw(st.one_of(st.none(), st.integers(-3, 3), st.floats(-10, 10))),
    }
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=1)):
        if draw(st.booleans()):
            del body[name]
        else:
            body[name] = draw(anything)
    return json.dumps(body, ensure_ascii=draw(st.booleans())).encode()


values = st.one_of(
    events(),
    events(),
    events(),
    events(),
    st.sampled_from([None, b"", b"{", b"[]", b"null", b"\xff", b"{}\n{}", b'{"id": "\\ud800", "ts": 1}', b"NaN"]),
    st.binary(max_size=12),
)


@st.composite
def logs(draw: st.DrawFn, most: int = 40) -> list[Record]:
    """Records of two topic partitions in offset order, offsets with gaps, record timestamps out of order."""
    records = []
    for partition in (0, 1):
        offset = draw(st.integers(0, 100))
        for value in draw(st.lists(values, max_size=most)):
            record_time = NOON + draw(st.integers(-10 * MINUTE, 20 * MINUTE))
            records.append(Record(partition, offset, record_time, value))
            offset += draw(st.sampled_from([1, 1, 1, 2, 5]))
    return records


def number(value: Decimal | int) -> Decimal:
    return Decimal(value)
