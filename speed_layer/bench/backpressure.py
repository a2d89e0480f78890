"""Backpressure: what happens while ClickHouse is away at full rate, and how fast what was held up is published then.

A load in a process of its own goes on all the while. Memory must not grow with the outage, nothing may be lost, and the
backlog must be drained at a multiple of the live rate.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError

from infra import kafka
from infra.clickhouse import connect
from infra.measure import Meter, machine
from infra.services import clickhouse_services
from infra.settings import Settings
from infra.stack import stop, up
from metrics.catalog import Catalog
from speed_layer import published
from speed_layer.bench import text
from speed_layer.bench.load import Load
from speed_layer.bench.own_source import own_source, parts, running
from speed_layer.bench.program import Result, carry_out, options, report

RATE = 20_000
OUTAGE_S = 300.0
WARM_UP_S = 20.0
TARGET_DRAIN = 2.0
"""Events published per second while the backlog drains, to the live rate."""

MOST_GROWTH = 1.1
"""Greatest memory of workers and Flink in the second half of the outage, to that in the first."""

LAG_S = 5.0
_PATIENCE_S = 300.0
_POLL_S = 0.1
_ENGINE = ("workers", "flink")


def main(arguments: Sequence[str]) -> int:
    """Prints the figures; 1 if a target is missed or something is lost, 2 if something is not there."""
    parser = options("backpressure", __doc__)
    parser.add_argument("--rate", type=int, default=RATE, help=f"events per second ({RATE:,})")
    parser.add_argument("--outage", type=float, default=OUTAGE_S, help=f"seconds without ClickHouse ({OUTAGE_S:g})")
    given = parser.parse_args(arguments)
    return carry_out(given, lambda settings: bench(settings, given.rate, given.outage), text.backpressure)


def bench(settings: Settings, rate: int = RATE, outage_s: float = OUTAGE_S) -> Result:
    """Stops and starts ClickHouse under a job of its own; its topics and its database are removed again.

    Returns:
        name, machine, runs (system and figures), ratios (of draining to the live rate, and of memory late in the
        outage to that early in it), ok: whether both meet their targets and every event is counted.
    """
    taken_on = machine()
    with own_source(settings, "job_a.yaml") as (path, catalog):
        figures = _measured(settings, path, catalog, rate, outage_s)
    memory = figures["memory"]
    ratios = {
        "drained_to_live_rate": round(figures["drained_per_s"] / rate, 2),
        "memory_growth": round(memory["late_in_the_outage"] / memory["early_in_the_outage"], 2),
    }
    met = ratios["drained_to_live_rate"] >= TARGET_DRAIN and ratios["memory_growth"] <= MOST_GROWTH
    return {
        "name": "backpressure",
        "machine": taken_on,
        "runs": [{"system": "Beam on Flink, checkpoints on, into ClickHouse", "figures": figures}],
        "ratios": ratios,
        "ok": met and figures["counted"] == figures["events"],
    }


def _measured(settings: Settings, path: Path, catalog: Catalog, rate: int, outage_s: float) -> dict[str, Any]:
    kafka.ensure_topics(settings, {catalog.topic: catalog.topic_partitions})
    with running(settings, path), Load(settings, catalog.topic, catalog.topic_partitions, rate) as load:
        report(f"starting the job at {rate:,} events/s")
        _until(lambda: 0 < _published(settings, catalog) >= _written(settings, catalog) - rate * LAG_S, "a short lag")
        time.sleep(WARM_UP_S)
        with Meter(parts(settings)) as meter:
            before = _published(settings, catalog)
            report(f"ClickHouse is away for {outage_s:g} s")
            stop(settings, ["clickhouse"])
            away = time.monotonic()
            time.sleep(outage_s)
            back = time.monotonic()
            backlog = _written(settings, catalog) - before
            up(settings, clickhouse_services(settings))
            report(f"{backlog:,} events are held up")
            began, first = time.monotonic(), _published(settings, catalog)
            _until(lambda: _published(settings, catalog) >= _written(settings, catalog) - rate * LAG_S, "a short lag")
            drained_s, drained = time.monotonic() - began, _published(settings, catalog) - first
        sent = load.stop()
        _until(lambda: _published(settings, catalog) >= sent.events, "the end of the log")
        [(counted,)] = _query(settings, catalog, "SELECT sum(events) FROM speed_events FINAL")
    halfway = (away + back) / 2
    early, late = (
        max(sum(rss[part] for part in _ENGINE) for at, rss in meter.samples if since <= at <= until)
        for since, until in ((away, halfway), (halfway, back))
    )
    return {
        "rate": rate,
        "sent_per_s": round(sent.events / sent.seconds),
        "outage_s": outage_s,
        "short_lag_s": LAG_S,
        "backlog": backlog,
        "recovered_s": round(drained_s, 1),
        "drained_per_s": round(drained / drained_s),
        "events": sent.events,
        "counted": int(counted),
        "memory": {"early_in_the_outage": early, "late_in_the_outage": late},
        "peak_bytes": meter.peaks(),
    }


def _written(settings: Settings, catalog: Catalog) -> int:
    return sum(end for _, end in kafka.log_offsets(settings, catalog.topic).values())


def _published(settings: Settings, catalog: Catalog) -> int:
    """How many records are published; 0 while the database is not there yet."""
    try:
        client = connect(settings, settings.database(catalog.source))
        return sum(published.frontier(client, catalog).values())
    except ClickHouseError:
        return 0


def _query(settings: Settings, catalog: Catalog, sql: str) -> Sequence[Sequence[Any]]:
    return list(connect(settings, settings.database(catalog.source)).query(sql).result_rows)


def _until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            msg = f"{what} must be reached within {_PATIENCE_S:g} s; it is not. read the logs of `beam-workers`"
            raise TimeoutError(msg)
        time.sleep(_POLL_S)
