"""`bench batch`: a day of the shop's events by the batch layer and by other means, side by side.

Every system runs as a process of its own, by turns. Its clock starts when its imports are done and, of those that use
Spark, a JVM is up: what a run costs, not what starting costs, which is told apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from infra import kafka
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.measure import Meter, machine, of_services
from infra.processes import cpu_seconds
from infra.settings import Settings, load_settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, LATE
from metrics.window import DAY_MS, Window, to_epoch_ms
from speed_layer.bench.backlog import body_b, fill

DAY = date(2026, 5, 28)
EVENTS, RUNS, PARTITIONS = 5_000_000, 5, 4
TITLES = {
    "batch": "the batch layer: all metrics and alerts, three readings, into ClickHouse",
    "plain": "Spark: Kafka source, from_json, dropDuplicates, a groupBy per metric, to Parquet",
    "polars": "polars over the same bytes, a group_by per metric, to Parquet",
    "reading": "reading alone: consumed, not decoded",
}
TARGETS = {"batch_to_plain": 3.0, "batch_to_polars": 0.5}
"""Least ratios of medians of events per second."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the result as JSON; 1 if a count is not exact or a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.batch_bench", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--only", action="append", choices=TITLES)
    parser.add_argument("--shop", type=Path, required=True, help="the catalog")
    parser.add_argument("--run", choices=TITLES, help="run this system once, over what is there; prints its figures")
    given = parser.parse_args(arguments)
    settings = load_settings()
    if given.run:
        print(json.dumps(once(settings, load_catalog(given.shop), given.run)))
        return 0
    result = bench(settings, given.shop.absolute(), given.events, given.runs, given.only or [*TITLES])
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def bench(settings: Settings, shop: Path, events: int, runs: int, systems: Sequence[str]) -> dict[str, Any]:
    """Fills a topic with a day of events, then runs the systems by turns.

    Returns:
        name, machine, runs (system and figures), ratios, targets, missed, ok: whether all is exact and none is missed.
    """
    taken_on = machine()
    measured: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    start = to_epoch_ms(Window.of_day(DAY).start)
    with own_shop(settings, shop) as (path, catalog):
        filled = fill(
            settings, catalog, events, body_b, lambda n: _say(f"{n:,} events written"), (start, start + DAY_MS)
        )
        _close(settings, catalog, start + 2 * DAY_MS)
        happened = filled.expected(COUNTED, LATE)
        of_day = sum(found.events for (at, _), found in happened.items() if start <= at < start + DAY_MS)
        distinct = sum(found.events for found in happened.values()) + 1
        wanted = {"batch": of_day, "plain": distinct, "polars": distinct, "reading": events + 1}
        for number in range(runs):
            for system in systems:
                measured[system].append(found := _measured(settings, path, system))
                right = "exact" if found["answer"] == wanted[system] else f"NOT EXACT, wanted {wanted[system]:,}"
                _say(f"{number + 1}/{runs} {system}: {found['seconds']:.1f} s, {right}")
    figures = {system: _figures(found, events, wanted[system]) for system, found in measured.items()}
    ratios = {
        f"batch_to_{other}": round(figures["batch"]["events_per_s"] / figures[other]["events_per_s"], 2)
        for other in figures
        if other != "batch" and "batch" in figures
    }
    missed = [name for name, ratio in ratios.items() if ratio < TARGETS.get(name, 0)]
    return {
        "name": "batch",
        "machine": taken_on,
        "runs": [{"system": TITLES[system], "figures": each} for system, each in figures.items()],
        "ratios": ratios,
        "targets": TARGETS,
        "missed": missed,
        "ok": not missed and all(each["exact"] for each in figures.values()),
    }


def once(settings: Settings, catalog: Catalog, system: str) -> dict[str, Any]:
    """Runs a system over what is in the topic.

    Returns:
        seconds, cpu_s and answer: how many events it counted; of the batch layer those of the day, of reading alone all
        records.
    """
    with tempfile.TemporaryDirectory() as scratch, _ready(settings, catalog, system, Path(scratch)) as work:
        before, begun = cpu_seconds(os.getpid()), time.monotonic()
        answer = work()
        seconds = time.monotonic() - begun
        return {"seconds": seconds, "cpu_s": cpu_seconds(os.getpid()) - before, "answer": answer}


@contextmanager
def _ready(settings: Settings, catalog: Catalog, system: str, scratch: Path) -> Iterator[Callable[[], int]]:
    """What a system does, once all that it needs is loaded and started."""
    from orchestration import batch_rivals  # noqa: PLC0415 - Spark takes a second to import

    if system == "reading":
        yield partial(batch_rivals.reading, settings, catalog)
    elif system == "polars":
        yield partial(batch_rivals.polars_job, settings, catalog, scratch)
    else:
        from batch_layer.job import spark_session  # noqa: PLC0415
        from batch_layer.run import run  # noqa: PLC0415

        with spark_session(settings, EVENTS) as session:
            session.range(1).count()
            if system == "plain":
                yield partial(batch_rivals.plain_job, session, settings, catalog, scratch)
            else:
                yield lambda: run(settings, catalog, [DAY], session_of=lambda *_: nullcontext(session))[0].events


def _measured(settings: Settings, path: Path, system: str) -> dict[str, Any]:
    """Runs a system as a process; its figures, and what it took of memory.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "orchestration.batch_bench", "--shop", str(path), "--run", system]
    begun = time.monotonic()
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, env={**os.environ, **settings.environ()}, stdout=answer)
        parts = {"system": [process.pid], "kafka": of_services(settings, ("kafka",))}
        parts["clickhouse"] = of_services(settings, ("clickhouse",))
        with Meter(parts) as meter:
            before = meter.cpu()
            code = process.wait()
            after = meter.cpu()
        answer.seek(0)
        told = answer.read()
    if code:
        msg = f"`{system}` ended with {code}; what it said is above"
        raise RuntimeError(msg)
    services = {part: after[part] - before[part] for part in ("kafka", "clickhouse")}
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found | {"whole_s": time.monotonic() - begun, "peaks": meter.peaks(), "services": services}


def _figures(found: Sequence[Mapping[str, Any]], events: int, wanted: int) -> dict[str, Any]:
    """Medians over the runs of a system."""
    millions = events / 1_000_000
    return {
        "runs": len(found),
        "events_per_s": round(events / median(each["seconds"] for each in found)),
        "seconds": round(median(each["seconds"] for each in found), 2),
        "least_s": round(min(each["seconds"] for each in found), 2),
        "greatest_s": round(max(each["seconds"] for each in found), 2),
        "whole_s": round(median(each["whole_s"] for each in found), 2),
        "cpu_s_per_million": {
            "system": round(median(each["cpu_s"] for each in found) / millions, 2),
            **{
                part: round(median(each["services"][part] for each in found) / millions, 2)
                for part in ("kafka", "clickhouse")
            },
        },
        "peak_bytes": {part: max(each["peaks"][part] for each in found) for part in ("system", "clickhouse")},
        "exact": all(each["answer"] == wanted for each in found),
    }


@contextmanager
def own_shop(settings: Settings, shop: Path) -> Iterator[tuple[Path, Catalog]]:
    """The shop's catalog under a name and a topic of its own; both are removed at the end."""
    values = yaml.safe_load(shop.read_text())
    name = f"bench_{uuid.uuid4().hex[:8]}"
    values |= {"source": name, "topic": f"lockstep.{name}", "topic_partitions": PARTITIONS}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        catalog = load_catalog(path)
        try:
            yield path, catalog
        finally:
            connect(settings).command(f"DROP DATABASE IF EXISTS {quote(settings.database(name))}")
            for future in kafka.admin(settings).delete_topics([catalog.topic]).values():
                future.exception()


def _close(settings: Settings, catalog: Catalog, at: int) -> None:
    """An event by which the day is over."""
    value = f'{{"event_id":"closing","ts":{at},"event_type":"page_view"}}'.encode()
    record = {"value": value, "timestamp": at, "partition": 0}
    kafka.produce_all(kafka.producer(settings), catalog.topic, [record])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
