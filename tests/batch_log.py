"""A small seeded log for tests of the batch layer: late, repeated, conflicting and unreadable records."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from infra import kafka
from infra.catalog_file import load_catalog
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.reference import Record
from metrics.window import to_epoch_ms

FIRST_DAY = date(2026, 3, 1)
DAYS = [FIRST_DAY + timedelta(days=n) for n in range(3)]
PARTITIONS = 3
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START = to_epoch_ms(datetime(2026, 3, 1, tzinfo=UTC))
BUSY_SHARE = 0.02
"""How many events are of the user whose sessions reach their greatest length."""

CLOSING_TIME = START + 3 * DAY_MS + 2 * HOUR_MS
"""Timestamp of the last record: the lateness of the third day is over."""


def catalog_tree(source: str) -> dict[str, Any]:
    """A catalog with every aggregation and kind of window, as the plain values of its file."""
    session = "session 1h max 3h"
    return {
        "source": source,
        "topic": f"events.{source}",
        "format": "json",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "out_of_orderness": "10s",
        "allowed_lateness": "1h",
        "dedup_horizon": 200,
        "fields": {
            "kind": "string",
            "user": {"type": "string"},
            "country": {"type": "string", "default": "unknown"},
            "amount": {"type": "decimal", "scale": 2},
            "items": "int",
            "price": "float",
            "member": "bool",
            "stocked": "int",
        },
        "metrics": {
            "events": {"agg": "count", "window": ["tumbling 1m", "tumbling 1d"]},
            "by_kind": {"agg": "count", "by": ["kind"], "window": "tumbling 1h"},
            "revenue": {
                "agg": "sum(amount)",
                "where": "kind = 'purchase' AND amount > 1.5",
                "by": ["country"],
                "window": ["tumbling 5m", "tumbling 1d"],
            },
            "items": {"agg": "sum(items)", "by": ["country"], "window": "tumbling 1h"},
            "visitors": {"agg": "distinct(user)", "by": ["country"], "window": ["tumbling 15m", "tumbling 1d"]},
            "prices": {"agg": "sum(price)", "by": ["kind"], "window": ["tumbling 1h", "sliding 1d every 12h"]},
            "mean_amount": {"agg": "mean(amount)", "by": ["member"], "window": ["tumbling 1h", "day Europe/Berlin"]},
            "spread": {"agg": "stddev(price)", "by": ["member"], "window": ["tumbling 1h", "global"]},
            "least": {"agg": "min(amount * 2)", "by": ["kind"], "where": "member", "window": "tumbling 1h"},
            "greatest": {"agg": "max(items)", "by": ["kind"], "window": "tumbling 1h"},
            "amount_p95": {"agg": "quantile(amount, 0.95)", "by": ["kind"], "window": ["tumbling 1h", "tumbling 1d"]},
            "amount_p50": {"agg": "quantile(amount, 0.5)", "by": ["kind"], "window": "tumbling 1h"},
            "price_p90": {"agg": "quantile(price, 0.9)", "window": "tumbling 1h"},
            "top_users": {"agg": "top(user, 5)", "by": ["items"], "window": ["tumbling 1h", "tumbling 1d"]},
            "amounts": {"agg": "distinct(amount)", "where": "kind <> 'view'", "window": "tumbling 1h"},
            "latest": {"agg": "last(user)", "by": ["kind"], "window": ["tumbling 1h", "tumbling 1d"]},
            "stock": {"agg": "level(stocked, items)", "by": ["country"], "window": ["tumbling 1h", "tumbling 1d"]},
            "visits": {"agg": "count", "by": ["country"], "window": session},
            "visit_prices": {"agg": "sum(price)", "window": session},
            "visit_last": {"agg": "last(kind)", "where": "kind <> 'click'", "window": session},
            "visit_items": {"agg": "distinct(items)", "where": "kind <> 'click'", "window": session},
        },
    }


def write_catalog(source: str, directory: Path) -> tuple[dict[str, Any], Catalog, Path]:
    """The catalog as plain values, as a catalog, and its file."""
    tree = catalog_tree(source)
    path = directory / f"{source}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return tree, load_catalog(path), path


def records(seed: int, count: int) -> list[Record]:
    """Records over three days in the order of sending, offsets counted per topic partition, closed by one more."""
    rng = random.Random(seed)
    offsets = dict.fromkeys(range(PARTITIONS), 0)
    sent: list[Record] = []
    plain: list[bytes] = []

    def send(topic_partition: int, time: int, value: bytes | None) -> None:
        sent.append(Record(topic_partition, offsets[topic_partition], time, value))
        offsets[topic_partition] += 1

    for number in range(count):
        time = START + 3 * DAY_MS * number // count
        event = {
            "id": f"e{number}",
            "ts": time - rng.randrange(5_000),
            "kind": rng.choice(["view", "click", "purchase"]),
            "user": "busy" if rng.random() < BUSY_SHARE else rng.choice([None, *(f"u{n}" for n in range(200))]),
            "country": rng.choice(["DE", "FR", None]),
            "amount": f"{rng.randrange(-500, 9_999) / 100:.2f}",
            "items": rng.choice([None, 1, 2, 3]),
            "price": rng.choice([None, -0.0, 1e10, 0.1, rng.uniform(-9, 99)]),
            "member": rng.choice([None, True, False]),
            "stocked": rng.randrange(50) if rng.random() < BUSY_SHARE else None,
        }
        choice = rng.random()
        where = number % PARTITIONS
        if choice < 0.03:
            event["ts"] -= rng.randrange(HOUR_MS + 10_000, 20 * HOUR_MS)
        value = json.dumps(event).encode()
        if 0.03 <= choice < 0.06 and plain:
            value = rng.choice(plain)
        elif 0.06 <= choice < 0.08 and plain:
            value = json.dumps(json.loads(rng.choice(plain)) | {"ts": event["ts"], "country": "IT"}).encode()
        elif 0.08 <= choice < 0.10 and plain:
            value = json.dumps(json.loads(rng.choice(plain)) | {"country": "ES"}).encode()
        elif 0.10 <= choice < 0.12:
            value = rng.choice([b"{bad", b"[]", json.dumps(event | {"ts": time + HOUR_MS}).encode(), b"\xff"])
        plain.append(value) if choice < 0.03 or choice >= 0.12 else None
        send(where, time, value)
    last = {"id": "last", "ts": CLOSING_TIME, "kind": "view", "user": "u1", "items": 1}
    send(0, CLOSING_TIME, json.dumps(last).encode())
    return sent


def produce(settings: Settings, catalog: Catalog, log: Sequence[Record]) -> None:
    """Writes the records so that each stands at its offset."""
    # The events lie in the past: a topic that expires by time would drop them.
    kafka.ensure_topics(settings, {catalog.topic: PARTITIONS}, {"retention.ms": "-1"})
    messages = [{"value": r.value, "timestamp": r.record_time, "partition": r.topic_partition} for r in log]
    assert kafka.produce_all(kafka.producer(settings), catalog.topic, messages) == len(log)
