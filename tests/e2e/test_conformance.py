"""Every aggregation and window through the real Beam pipeline, the Spark job and the views, against the reference."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from conformance import LOG, events, judge
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from lockstep_shell import Lockstep

from infra import kafka
from infra.catalog_file import load_catalog
from infra.clickhouse import connect
from infra.settings import Settings
from metrics import reference
from metrics.catalog import Catalog, ShownMetric
from metrics.reference import Record
from metrics.reference_values import Cell, Key
from serving import query

PARTITIONS = 2
COPIES = 12
MANY = 500  # windows of all metrics; the simplest log that could be drawn has few
SHARE = 0.05
MINUTE = 60_000
LATE_MS = 6 * MINUTE  # beyond out_of_orderness and allowed_lateness of the catalog


class Log(list[Record]):
    """A log that is not printed record by record."""

    def __repr__(self) -> str:
        return f"<log of {len(self)} records>"


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Drawn events, each many times at shifted times, in a shuffled world: late, repeated, unreadable, split in two."""
    drawn = draw(events(least=25, most=45))
    chance = random.Random(draw(st.integers(0, 2**32)))
    found: list[tuple[int, int, bytes]] = []
    for copy in range(COPIES):
        for record in drawn:
            assert record.value is not None
            body = json.loads(record.value)
            body |= {"id": f"{copy}/{body['id']}", "ts": body["ts"] + chance.choice([0, 1, 60_000, 599_999]) * copy}
            value = json.dumps(body, ensure_ascii=bool(copy % 2)).encode()
            moment = body["ts"] + chance.choices([0, MINUTE, LATE_MS, 10 * LATE_MS], [80, 10, 5, 5])[0]
            place = chance.randrange(PARTITIONS)
            found.append((moment, place, value))
            if chance.random() < SHARE:
                found.append((moment + 1, chance.randrange(PARTITIONS), value))
            if chance.random() < SHARE:
                found.append((moment, place, chance.choice([b"{", b'{"id": 1}', value[:-3]])))
    offsets = [0] * PARTITIONS
    log = Log()
    for moment, place, value in sorted(found, key=lambda item: item[:2]):
        log.append(Record(place, offsets[place], moment, value))
        offsets[place] += 1
    return log


@settings(
    max_examples=1,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(records=logs())
def test_both_layers_say_what_the_reference_says(
    lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path, unique: str, records: Log
) -> None:
    tree = LOG | {"source": unique, "topic": unique, "topic_partitions": PARTITIONS}
    said = reference.answer(tree, records)
    assume({"counted", "late", "duplicate", "dead_letter"} <= set(said.dispositions.values()))
    assume(len(said.exact) > MANY)
    path = tmp_path / "conformance.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    catalog = load_catalog(path)
    kafka.ensure_topics(stack, {catalog.topic: PARTITIONS})
    written = ({"partition": r.topic_partition, "timestamp": r.record_time, "value": r.value} for r in records)
    kafka.produce_all(kafka.producer(stack), catalog.topic, written)

    run = lockstep(path)
    run("speed", "--until-drained")
    first, last = (datetime.fromtimestamp(ms / 1000, UTC).date().isoformat() for ms in _span(tree, records))
    run("batch", "--from", first, "--to", last)
    days = run.json("reconcile", "--from", first, "--to", last)["partitions"]
    assert all(day["certified"] and not day["residual"] for day in days), days
    faults = [
        *_faults(stack, catalog, "speed", said.expected),
        *_faults(stack, catalog, "batch", said.exact),
    ]
    assert not faults, "\n".join(faults)


def _span(tree: dict[str, Any], records: list[Record]) -> tuple[int, int]:
    """The first and the last event time of the log, with a day after it for sessions that end then."""
    times = [event["event_time"] for record in records if (event := reference.parse(tree, record)) is not None]
    return min(times), max(times) + 86_400_000


def _faults(stack: Settings, catalog: Catalog, layer: str, cells: dict[Key, Cell]) -> list[str]:
    """What a layer says otherwise than the reference, metric by metric."""
    client = connect(stack)
    faults = []
    for metric in catalog.shown:
        for grain in metric.grains:
            question = query.build(catalog, metric.name, grain, layer=layer, limit=1_000_000)
            rows = [_row(metric, row) for row in query.rows(client, stack.database(catalog.source), question)]
            try:
                judge(metric, grain, dict(rows), cells, exact=layer == "batch" or metric.exact)
            except AssertionError as error:
                faults.append(f"{layer} {metric.name} {grain}: {error}")
    return faults


def _row(metric: ShownMetric, row: query.Row) -> tuple[tuple[int, tuple[str, ...]], dict[str, Any]]:
    shown = row.as_json()
    key = (round(row.window_start.timestamp() * 1000), tuple(row.dimensions.values()))
    return key, shown | {"end": round(row.window_end.timestamp() * 1000), "length": row.length_ms}
