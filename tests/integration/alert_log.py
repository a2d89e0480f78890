"""A small log of a shop with alerts: cards, large sums, stocks and errors, and what is due of them."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from confluent_kafka import TopicPartition

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.alert import Alert
from metrics.breach import alert_rows, breaches, table_rows
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader

DAY_MS = 86_400_000
START_MS = 1_780_000_000_000 // DAY_MS * DAY_MS
PARTITIONS = 2
STEP_MS = 700

Sent = tuple[int, int, bytes]
"""Topic partition, record timestamp and value of a record."""


def text(name: str) -> str:
    """The catalog as a file holds it."""
    tree = {
        "source": name,
        "topic": f"{name}.events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "out_of_orderness": "5s",
        "allowed_lateness": "1m",
        "topic_partitions": PARTITIONS,
        "fields": {
            "kind": "string",
            "user": "string",
            "product": "string",
            "amount": {"type": "decimal", "scale": 2},
            "counted": "int",
            "change": "int",
            "code": "int",
        },
        "metrics": {
            "events": {"agg": "count", "window": "tumbling 1m"},
            "stock": {
                "agg": "level(counted, change)",
                "where": "kind = 'stock'",
                "by": ["product"],
                "window": "tumbling 1h",
            },
        },
        "alerts": {
            "card_velocity": {"when": "count > 3", "where": "kind = 'buy'", "by": ["user"], "within": "2m"},
            "high_value": {"when": "sum(amount) > 1000", "where": "kind = 'buy'", "by": ["user"], "within": "10m"},
            "low_stock": {"when": "stock < 10", "topic": f"{name}.low"},
            "error_share": {
                "when": "share(code >= 500) > 0.2",
                "where": "kind = 'view'",
                "within": "1m",
                "at_least": 20,
            },
        },
    }
    return yaml.safe_dump(tree)


def catalog(name: str) -> Catalog:
    """The catalog of a source."""
    return parse_catalog(yaml.safe_load(text(name)), {}, "test")


def write_catalog(name: str, directory: Path) -> Path:
    """The catalog's file."""
    path = directory / f"{name}.yaml"
    path.write_text(text(name))
    return path


def records(
    seed: int, count: int, start_ms: int = START_MS, prefix: str = "e", step_ms: int = STEP_MS, *, keyed: bool = False
) -> list[Sent]:
    """Records in the order of sending, none late or repeated; keyed, all of an alert's key are in one partition."""
    rng = random.Random(seed)
    sent = []
    for number in range(count):
        time = start_ms + number * step_ms
        event: dict[str, Any] = {"id": f"{prefix}{number}", "ts": time, "kind": rng.choice(["buy", "view", "stock"])}
        if event["kind"] == "buy":
            event |= {"user": f"u{rng.randrange(12)}", "amount": f"{rng.randrange(50_000) / 100:.2f}"}
        elif event["kind"] == "view":
            event |= {"code": 500 if rng.random() < 0.15 else 200}
        else:
            event |= {"product": f"p{rng.randrange(4)}"}
            event |= {"counted": 30} if rng.random() < 0.1 else {"change": -rng.randrange(1, 6)}
        own = int((event.get("user") or event.get("product") or "v0")[1:]) % PARTITIONS
        sent.append((own if keyed else rng.randrange(PARTITIONS), time, json.dumps(event).encode()))
    return sent


def flaws(seed: int, sent: list[Sent]) -> list[Sent]:
    """The records with late ones, copies and unreadable ones among them."""
    rng = random.Random(seed)
    result = []
    for number, (partition, time, value) in enumerate(sent):
        result.append((partition, time, value))
        choice = rng.random()
        if choice < 0.02:
            result.append((partition, time, value))
        elif choice < 0.04:
            late = json.loads(value) | {"id": f"late{number}", "ts": time - 120_000}
            result.append((partition, time, json.dumps(late).encode()))
        elif choice < 0.05:
            result.append((partition, time, b"{bad"))
    return result


def append(settings: Settings, source: Catalog, sent: list[Sent]) -> None:
    """Writes records to the topic."""
    kafka.ensure_topics(settings, {source.topic: PARTITIONS}, {"retention.ms": "-1"})
    messages = [{"partition": p, "timestamp": t, "value": v} for p, t, v in sent]
    assert kafka.produce_all(kafka.producer(settings), source.topic, messages) == len(sent)


def events_of(source: Catalog, sent: list[Sent]) -> pl.DataFrame:
    """All events of a log of these records alone, with their dispositions."""
    chunks = []
    for partition in range(PARTITIONS):
        own = [(t, v) for p, t, v in sent if p == partition]
        chunk = PartitionReader(source).read(partition, range(len(own)), [t for t, _ in own], [v for _, v in own])
        chunks.append(chunk.events)
    return pl.concat(chunks)


def due(source: Catalog, events: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """By alert, what the table is to hold."""
    return {a.name: table_rows(a, breaches(a, alert_rows(a, source, events))) for a in source.alerts}


def ids(found: dict[str, pl.DataFrame]) -> dict[str, set[str]]:
    """By alert, the ids."""
    return {name: set(rows["alert_id"]) for name, rows in found.items()}


def stored(settings: Settings, source: Catalog) -> dict[str, list[str]]:
    """By alert, the ids in the table, as often as they were written."""
    client = connect(settings, settings.database(source.source))
    found = client.query("SELECT alert, alert_id FROM alerts FINAL").result_rows
    return {a.name: sorted(i for name, i in found if name == a.name) for a in source.alerts}


def messages(settings: Settings, alert: Alert) -> list[dict[str, Any]]:
    """The messages of an alert's topic."""
    consumer = kafka.consumer(settings)
    found: list[dict[str, Any]] = []
    try:
        [(begin, end)] = kafka.log_offsets(settings, alert.topic).values()
        if end > begin:
            consumer.assign([TopicPartition(alert.topic, 0, begin)])
            while len(found) < end - begin:
                for message in consumer.consume(1000, 1.0):
                    assert message.error() is None
                    body = json.loads(message.value())
                    assert message.key().decode() == body["alert_id"]
                    found.append(body)
    finally:
        consumer.close()
    return found
