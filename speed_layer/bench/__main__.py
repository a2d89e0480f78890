"""`python -m speed_layer.bench`: how many events a second the speed layer drains from a backlog into ClickHouse.

The figure is what a user has: from the moment the job runs, with checkpoints on and nothing read yet, to the last event
in the tables, as ClickHouse sees them. The start of the job (workers, pipeline) is given beside it. Counts must come
out exact.
"""

import argparse
import json
import random
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra import kafka
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.services import core_services
from infra.settings import Settings, load_settings
from infra.stack import StackError, down, status, up
from metrics.catalog import Catalog
from speed_layer import published
from speed_layer.bench.measure import machine
from speed_layer.main import run

EVENTS = 2_000_000
TARGET_EVENTS_PER_S = 150_000
PER_SECOND = 10_000
"""Events in a second of event time."""

START_MS = 1_780_000_000_000
TYPES = ("page_view", "click", "cart", "purchase", "pay")
COUNTRIES = ("de", "fr", "gb", "it", "us", "es")
_POLL_S = 0.05


def bench(settings: Settings, events: int = EVENTS) -> dict[str, Any]:
    """Fills a topic of its own with a backlog and drains it; the topic and the database are removed again.

    Returns:
        name, machine, runs (system and figures), ratios, ok: whether the target was met and the count is exact.
    """
    name = f"bench_{uuid.uuid4().hex[:8]}"
    catalog = replace(load_catalog(Path(__file__).with_name("bench.yaml")), source=name, topic=f"lockstep.{name}")
    taken_on = machine()
    try:
        fill(settings, catalog, events)
        figures = _drain(settings, catalog, events)
    finally:
        connect(settings).command(f"DROP DATABASE IF EXISTS {quote(settings.database(name))}")
        topics = [catalog.topic, catalog.dlq_topic, catalog.late_topic]
        for future in kafka.admin(settings).delete_topics(topics).values():
            future.exception()
    reached = figures["events_per_s"] / TARGET_EVENTS_PER_S
    return {
        "name": "speed",
        "machine": taken_on,
        "runs": [{"system": "Beam on Flink, checkpoints on, into ClickHouse", "figures": figures}],
        "ratios": {"to_target": round(reached, 2)},
        "ok": reached >= 1 and figures["counted"] == events,
    }


def fill(settings: Settings, catalog: Catalog, events: int) -> None:
    """Produces a backlog of about 160 bytes an event, spread evenly over the partitions, in order of time."""
    kafka.ensure_topics(settings, {catalog.topic: catalog.topic_partitions})
    producer = kafka.producer(settings, {"linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    draw = random.Random(1)
    for number in range(events):
        moment = START_MS + number * 1000 // PER_SECOND
        kind = draw.randrange(100)
        value = (
            f'{{"event_id":"e{number:08d}","ts":{moment - draw.randrange(5000)},"event_type":"{TYPES[kind % 5]}",'
            f'"user_id":"u{draw.randrange(5000)}","country":"{COUNTRIES[kind % 6]}","page":"/products/{kind}",'
            f'"amount":"{kind}.{number % 100:02d}"}}'
        )
        while True:
            try:
                partition = number % catalog.topic_partitions
                producer.produce(catalog.topic, value=value, partition=partition, timestamp=moment)
                break
            except BufferError:
                producer.poll(0.05)
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush()


def _drain(settings: Settings, catalog: Catalog, events: int) -> dict[str, Any]:
    watch = threading.Thread(target=run, args=(settings, catalog, True), daemon=True)
    started = time.monotonic()
    watch.start()
    seen: list[tuple[float, int]] = []
    client: Client | None = None
    while watch.is_alive() and (not seen or seen[-1][1] < events):
        time.sleep(_POLL_S)
        try:
            client = client or connect(settings, settings.database(catalog.source))
            reached = published.frontier(client, catalog)
        except ClickHouseError:  # the database is not there yet
            continue
        now = sum(reached.values())
        if reached and (not seen or now > seen[-1][1]):
            seen.append((time.monotonic(), now))
    watch.join()
    client = client or connect(settings, settings.database(catalog.source))
    rows = client.query("SELECT sum(events) FROM speed_events FINAL").result_rows
    (first, before), (last, _) = (seen[0], seen[-1]) if seen else ((started, 0), (started, 0))
    between = max(last - first, _POLL_S)
    return {
        "events": events,
        "counted": int(rows[0][0]),
        "events_per_s": round((events - before) / between),
        "drained_in_s": round(between, 1),
        "job_started_in_s": round(first - started, 1),
    }


def main() -> int:
    """Prints the figure with the machine; 1 if the target is missed, 2 if a service is not there."""
    parser = argparse.ArgumentParser(prog="python -m speed_layer.bench", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    settings = load_settings()
    ran_before = any(service.state == "running" for service in status(settings))
    try:
        up(settings, core_services(settings), report=lambda line: print(line, file=sys.stderr))
        result = bench(settings, arguments.events)
    except (ConnectionError, StackError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if not ran_before:
            down(settings)
    if arguments.json:
        print(json.dumps(result))
    else:
        figures, on = result["runs"][0]["figures"], result["machine"]
        print(f"{figures['events_per_s']:,} events/s drained from a backlog of {figures['events']:,}")
        print(f"on {on['cpu']}, {on['cores']} cores, {on['memory_bytes'] / 2**30:.0f} GiB, load {on['load_before']}")
        print(
            f"drained in {figures['drained_in_s']} s after {figures['job_started_in_s']} s in which the job started; "
            f"counted {figures['counted']:,}"
        )
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
