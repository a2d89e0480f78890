"""`bench batch`: a day of the shop's events by the batch layer and by other means, side by side, by turns.

The batch layer begins with nothing each time: it also makes the index of the log, and its tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from infra import kafka
from infra.measure import machine
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.window import DAY_MS
from orchestration.batch_bench import answers
from orchestration.batch_bench.systems import BATCH, PLAIN, POLARS, READING, SPAN, TITLES, measured
from speed_layer.bench import table
from speed_layer.bench.backlog import Backlog, body_b, fill
from speed_layer.bench.own_source import own_source
from speed_layer.bench.program import Result, report
from speed_layer.bench.throughput import Target, measure, result

EVENTS, RUNS, PARTITIONS = 5_000_000, 3, 4
TARGETS = {"batch_to_plain": Target(BATCH, PLAIN, 3.0), "batch_to_polars": Target(BATCH, POLARS, 0.5)}


def bench(  # noqa: PLR0917 - what is measured, then how
    settings: Settings,
    shop: Path,
    events: int,
    runs: int,
    systems: Sequence[str],
    notes: Path,
    *,
    resume: bool = False,
) -> Result:
    """Fills a topic with a day of events, then runs the systems by turns; see `throughput.result`."""
    taken_on = machine()
    with own_source(settings, shop, {"topic_partitions": PARTITIONS}) as (path, catalog):
        backlog = filled(settings, catalog, events, SPAN)
        answer = answers.summary(answers.expected(backlog, SPAN))
        wanted = dict.fromkeys(systems, answer) | {READING: f"{events + 1:,} records"}
        found = measure(
            {name: partial(measured, settings, path, catalog, name, events, wanted[name]) for name in systems},
            runs,
            notes,
            report,
            resume=resume,
            titles=TITLES,
        )
    return result(taken_on, found, name="batch", titles=TITLES, targets=TARGETS)


def filled(settings: Settings, catalog: Catalog, events: int, span: tuple[int, int]) -> Backlog:
    """Writes so many events of the shop into a stretch of time (ms), and one by which all of its days are over."""
    backlog = fill(settings, catalog, events, body_b, lambda n: report(f"{n:,} events written"), span)
    at = span[1] + DAY_MS
    value = f'{{"event_id":"closing","ts":{at},"event_type":"page_view"}}'.encode()
    record = {"value": value, "timestamp": at, "partition": 0}
    kafka.produce_all(kafka.producer(settings), catalog.topic, [record])
    return backlog


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What the rates leave out, and what they have in them."""
    for run in result["runs"]:
        f = run["figures"]
        of_it = (
            f"; of its {f['seconds']:g} s, {f['index_s']:g} s are for the index of the log" if "index_s" in f else ""
        )
        yield f"not in the rate of {run['key']}: {f['start_s']:g} s to start, a JVM too where it needs one{of_it}"


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Everything, as lines of text."""
    yield from table.lines(result)
    yield from notes(result)
