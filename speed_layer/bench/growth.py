"""Growth: throughput, memory and state of the speed layer by the number of distinct dimension values and of partitions.

Each case drains a backlog of its own. Then the job is left running for a while: the watermark has passed all slices but
the last, so memory must not grow any more.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import Popen
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra import kafka
from infra.clickhouse import connect
from infra.measure import Meter, machine
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.fold import groups
from metrics.window import milliseconds
from speed_layer import flink, published
from speed_layer.bench import text
from speed_layer.bench.own_source import own_source, parts, running
from speed_layer.bench.program import Result, carry_out, options, report
from speed_layer.bench.state_bound import Shape, state_bound
from speed_layer.partials import SLICES_PER_KEY
from speed_layer.source import buckets

EVENTS = 2_000_000
KEYS = (1_000, 100_000, 1_000_000, 10_000_000)
PARTITIONS = (1, 4, 16)
SLICES = 10
USUAL_KEYS, USUAL_PARTITIONS = 100_000, 4
SETTLED_S = 15.0
MOST_GROWTH = 1.05
"""What memory may grow to once the watermark has passed: the rest is how much it wavers."""

_SLICE_MS = 60_000
_START_MS = 1_780_000_000_000 // (SLICES_PER_KEY * _SLICE_MS) * SLICES_PER_KEY * _SLICE_MS
_PATIENCE_S = 400.0
_POLL_S = 0.1
_STRIDE = 7_919
"""Neighbouring events have values far apart: a prime, so that no value is left out."""


def cases(events: int, keys: Sequence[int], partitions: Sequence[int]) -> list[Shape]:
    """What is measured: each number of keys with the usual partitions, each number of partitions with the usual keys.

    There are at least as many events as keys.
    """
    pairs = [(k, USUAL_PARTITIONS) for k in keys] + [(USUAL_KEYS, p) for p in partitions]
    return [Shape(max(events, k), k, SLICES, p) for k, p in dict.fromkeys(pairs)]


def main(arguments: Sequence[str]) -> int:
    """Prints the figures; 1 if something is not exact, bounded or flat, 2 if something is not there."""
    parser = options("growth", __doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help=f"in each case, at least ({EVENTS:,})")
    parser.add_argument("--keys", type=int, action="append", help="a number of dimension values; may be repeated")
    parser.add_argument("--partitions", type=int, action="append", help="a number of partitions; may be repeated")
    given = parser.parse_args(arguments)
    chosen = (given.keys or [], given.partitions or []) if given.keys or given.partitions else (KEYS, PARTITIONS)
    return carry_out(given, lambda settings: bench(settings, given.events, *chosen), text.growth)


def bench(
    settings: Settings,
    events: int = EVENTS,
    keys: Sequence[int] = KEYS,
    partitions: Sequence[int] = PARTITIONS,
    settled_s: float = SETTLED_S,
) -> Result:
    """Measures each case with a job of its own; topics and databases are removed again.

    Args:
        settings: Where everything is.
        events: In each case, at least.
        keys: Numbers of distinct dimension values.
        partitions: Numbers of partitions.
        settled_s: How long memory is watched once the watermark has passed.

    Returns:
        name, machine, runs (system and figures), ratios (of the greatest state to its bound, and of memory afterwards
        to that when the watermark had passed), ok: whether all is exact, bounded and flat.
    """
    taken_on = machine()
    runs = []
    for shape in cases(events, keys, partitions):
        system = f"{shape.keys:,} keys, {shape.partitions} partitions"
        report(f"{system}: filling {shape.events:,} events")
        with own_source(settings, "growth.yaml", {"topic_partitions": shape.partitions}) as (path, catalog):
            fill(settings, catalog, shape)
            figures = _measured(settings, path, catalog, shape, settled_s)
        runs.append({"system": system, "figures": figures})
        report(next(text.growth({"runs": runs[-1:]})))
    found = [run["figures"] for run in runs]
    return {
        "name": "growth",
        "machine": taken_on,
        "runs": runs,
        "ratios": {
            "state_to_bound": round(max(f["state_bytes"] / f["state_bound_bytes"] for f in found), 2),
            "memory_after": round(max(f["memory_after"] for f in found), 3),
        },
        "ok": all(f["ok"] for f in found),
    }


def events_of(shape: Shape) -> Iterator[tuple[int, bytes]]:
    """Event time in ms and the event, in order of time."""
    span = shape.slices * _SLICE_MS
    for number in range(shape.events):
        at = _START_MS + number * span // shape.events
        device = number * _STRIDE % shape.keys
        yield at, f'{{"event_id":"e{number}","ts":{at},"device":"d{device}"}}'.encode()


def fill(settings: Settings, catalog: Catalog, shape: Shape) -> None:
    """Writes the events, partitions in turn."""
    kafka.ensure_topics(settings, {catalog.topic: shape.partitions})
    producer = kafka.producer(settings, {"linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    records = (
        {"value": value, "timestamp": at, "partition": number % shape.partitions}
        for number, (at, value) in enumerate(events_of(shape))
    )
    kafka.produce_all(producer, catalog.topic, records)


def _measured(settings: Settings, path: Path, catalog: Catalog, shape: Shape, settled_s: float) -> dict[str, Any]:
    ends = {number: end for number, (_, end) in kafka.log_offsets(settings, catalog.topic).items()}
    last = _START_MS + (shape.events - 1) * shape.slices * _SLICE_MS // shape.events
    goal = published.Goal(ends, last - milliseconds(catalog.out_of_orderness))
    job_name = f"lockstep-{settings.database(catalog.source)}"
    states: list[int] = []
    begun = time.monotonic()
    with Meter(parts(settings)) as meter, running(settings, path) as job:
        client, (first, before) = _begun(settings, catalog, job)
        cpu = meter.cpu()
        last_seen, reached = first, before
        deadline = time.monotonic() + _PATIENCE_S
        while reached < shape.events and time.monotonic() < deadline:
            states += _state_bytes(settings, job_name)
            reached = sum(published.frontier(client, catalog).values())
            last_seen = time.monotonic()
            time.sleep(_POLL_S)
        used = {part: seconds - cpu[part] for part, seconds in meter.cpu().items()}
        while not published.is_drained(client, catalog, goal) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        drained = published.is_drained(client, catalog, goal)
        passed = time.monotonic()
        report(f"drained: {drained}; watching memory for {settled_s:g} s")
        time.sleep(settled_s)
        states += _state_bytes(settings, job_name)
        [(rows, counted)] = client.query("SELECT count(), sum(events) FROM speed_events FINAL").result_rows
    when_passed = _engine_bytes(meter, passed - 1, passed + 1)
    afterwards = _engine_bytes(meter, passed + settled_s - 2, passed + settled_s)
    bound = state_bound(shape, groups(catalog)[0], buckets(settings))
    figures = {
        **asdict(shape),
        "rows": shape.rows,
        "published_rows": rows,
        "counted": int(counted),
        "events_per_s": round((shape.events - before) / max(last_seen - first, _POLL_S)),
        "drained_in_s": round(last_seen - first, 1),
        "passed_in_s": round(passed - first, 1),
        "job_started_in_s": round(first - begun, 1),
        "cpu_s": {part: round(seconds, 1) for part, seconds in used.items()},
        "peak_bytes": meter.peaks(),
        "passed_bytes": when_passed,
        "after_bytes": afterwards,
        "memory_after": round(afterwards / when_passed, 3),
        "state_bytes": max(states, default=0),
        "state_bound_bytes": bound,
        "memory_series": [(round(at - first, 1), rss["workers"], rss["flink"]) for at, rss in meter.samples[::4]],
    }
    exact = drained and (rows, counted) == (shape.rows, shape.events)
    bounded = 0 < figures["state_bytes"] <= bound
    return figures | {"exact": exact, "ok": exact and bounded and figures["memory_after"] <= MOST_GROWTH}


def _begun(settings: Settings, catalog: Catalog, job: Popen[bytes]) -> tuple[Client, tuple[float, int]]:
    """Waits until some partition is known to be read; when that was, and how much of the log was published then.

    Raises:
        RuntimeError: The job ended before.
    """
    client: Client | None = None
    while job.poll() is None:
        with suppress(ClickHouseError):  # the database is not there yet
            client = client or connect(settings, settings.database(catalog.source))
            if reached := published.frontier(client, catalog):
                return client, (time.monotonic(), sum(reached.values()))
        time.sleep(_POLL_S)
    msg = "the speed layer must run to be measured; it has ended. read its log"
    raise RuntimeError(msg)


def _state_bytes(settings: Settings, job_name: str) -> list[int]:
    """The whole size of the last checkpoint, what was there before included; nothing where there is none."""
    found = []
    for address in flink._addresses(settings):
        for job in flink._running(address, job_name):
            answer = flink._request(f"{address}/jobs/{job['jid']}/checkpoints", "GET") or {}
            if last := (answer.get("latest") or {}).get("completed"):
                found.append(int(last["state_size"]))
    return found


def _engine_bytes(meter: Meter, since: float, until: float) -> int:
    """The greatest resident memory of workers and Flink between two moments."""
    return max(rss["workers"] + rss["flink"] for at, rss in meter.samples if since <= at <= until)
