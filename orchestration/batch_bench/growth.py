"""`bench batch-growth`: what a day costs the batch layer by its number of events, JVM and imports not counted.

Each day is a log of its own; the batch layer makes its index too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.measure import machine
from infra.settings import Settings
from orchestration.batch_bench import answers
from orchestration.batch_bench.beside import PARTITIONS, filled
from orchestration.batch_bench.systems import BATCH, SPAN, measured
from speed_layer.bench.own_source import own_source
from speed_layer.bench.program import Result, report

EVENTS = 10_000_000
"""Of the greatest day; the others have a tenth and a hundredth of it."""

_MIB = 1 << 20


def sizes(greatest: int) -> list[int]:
    """The numbers of events that are measured."""
    return [greatest // 100, greatest // 10, greatest]


def bench(settings: Settings, shop: Path, greatest: int = EVENTS) -> Result:
    """Measures each size once, in a topic and a database of its own, which are removed again."""
    taken_on = machine()
    found = []
    for events in sizes(greatest):
        with own_source(settings, shop, {"topic_partitions": PARTITIONS}) as (path, catalog):
            wanted = answers.summary(answers.expected(filled(settings, catalog, events, SPAN), SPAN))
            found.append(measured(settings, path, catalog, BATCH, events, wanted).figures())
        report(_line(found[-1]))
    return result(taken_on, found)


def result(taken_on: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Result:
    """The result as JSON, from the figures of days in order of size; `ok` if every one is exact.

    Its ratios are of the greatest day to the one before: processor time of an event, and memory.
    """
    before, last = found[-2:]
    cost, memory = ([f[name]["system"] for f in (before, last)] for name in ("cpu_s_per_million", "peak_bytes"))
    return {
        "name": "batch-growth",
        "machine": dict(taken_on),
        "runs": [{"system": f"{f['events']:,} events", "figures": dict(f)} for f in found],
        "ratios": {"cost_per_event": round(cost[1] / cost[0], 3), "memory": round(memory[1] / memory[0], 3)},
        "ok": all(f["exact"] for f in found),
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A line per size, and what the last step up in size has changed."""
    yield from (_line(run["figures"]) for run in result["runs"])
    before, last = (run["system"] for run in result["runs"][-2:])
    for name, ratio in result["ratios"].items():
        yield f"{name.replace('_', ' ')}, {last} to {before}: {ratio:g} times"


def _line(figures: Mapping[str, Any]) -> str:
    cpu, peak = figures["cpu_s_per_million"], figures["peak_bytes"]
    return (
        f"{figures['events']:,} events: {figures['seconds']:,.1f} s, {figures['events_per_s']:,} events/s; "
        f"processor time of a million: {cpu['system']:.1f} s, ClickHouse {cpu['clickhouse']:.1f} s; "
        f"peak memory: {peak['system'] / _MIB:,.0f} MiB, ClickHouse {peak['clickhouse'] / _MIB:,.0f} MiB"
        f"{'' if figures['exact'] else '; NOT EXACT'}"
    )
