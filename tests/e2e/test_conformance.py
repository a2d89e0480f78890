"""Every aggregation and window through the real Beam pipeline, the Spark job and the views, against the reference."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from clickhouse_connect.driver.client import Client
from conformance import SEED, bodies, drawn_by, encoded, fresh_seed, samples, unreadable
from hypothesis import strategies as st
from judge import STATES, Place, Said, Tree, judge, judge_states, state_tree
from lockstep_shell import Lockstep

from infra import kafka
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.settings import Settings
from metrics import reference
from metrics.catalog import Catalog, Metric, RatioMetric, ShownMetric
from metrics.disposition import DISPOSITIONS
from metrics.reference import Record
from metrics.reference_values import Cell, Key
from serving import query
from serving.views import dimensions, view_name

PARTITIONS = 2
COPIES = 12
LONG_COPIES = 2
MINUTE = 60_000
MANY = 500  # windows of all metrics
LATE_MS = 6 * MINUTE  # beyond out_of_orderness and allowed_lateness of the catalog
FATES = ["late", "later", "again", "elsewhere", "conflict", "unreadable"]


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """Drawn events, each many times at shifted times, in a shuffled world: late, repeated, unreadable, split in two.

    Of the first copies each meets another fate, so that none is missing; later ones meet one by chance.
    """
    drawn = draw(bodies(30, 45))
    chance = random.Random(draw(st.integers(0, 2**64)))
    found: list[tuple[int, int, bytes]] = []
    for copy in range(COPIES):
        for number, original in enumerate(drawn):
            body = original | {"id": f"{copy}/{original['id']}"}
            body["ts"] += chance.choice([0, 1, 60_000, 599_999]) * copy
            value = encoded(body, ascii_only=bool(copy % 2))
            if len(value) > 10_000 and copy >= LONG_COPIES:
                continue
            fate = chance.choices(["on time", *FATES], [70, *[5] * len(FATES)])[0]
            if copy == 0:
                fate = dict(enumerate(FATES, start=4)).get(number, "on time")
            sent = body["ts"] + {"late": LATE_MS, "later": 10 * LATE_MS}.get(fate, chance.choice([0, 0, MINUTE]))
            place = chance.randrange(PARTITIONS)
            found.append((sent, place, value))
            match fate:
                case "again":
                    found.append((sent + 1, place, value))
                case "elsewhere":
                    found.append((sent + 1, 1 - place, value))
                case "conflict":
                    found.append((sent + 1, place, encoded(body | {"ts": body["ts"] + MINUTE})))
                case "unreadable" if copy == 0:
                    found += [(sent, place, broken) for broken in unreadable(body)]
                case "unreadable":
                    found.append((sent, place, chance.choice(unreadable(body))))
    offsets = [0] * PARTITIONS
    log = []
    for moment, place, value in sorted(found, key=lambda item: item[:2]):
        log.append(Record(place, offsets[place], moment, value))
        offsets[place] += 1
    return log


PAIRS = st.tuples(samples(), logs())


def test_a_seed_stands_for_one_catalog_and_one_rich_log() -> None:
    tree, log = drawn_by(1, PAIRS)
    assert (tree, log) == drawn_by(1, PAIRS)
    assert (tree, log) != drawn_by(2, PAIRS)
    for number in range(3, 6):
        tree, log = drawn_by(number, PAIRS)
        said = reference.answer(tree, log)
        assert set(said.dispositions.values()) == set(DISPOSITIONS)
        assert len(said.exact) > MANY


def test_both_layers_say_what_the_reference_says(
    lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path, unique: str
) -> None:
    number = fresh_seed()
    drawn, records = drawn_by(number, PAIRS)
    tree = drawn | {"source": unique, "topic": unique, "topic_partitions": PARTITIONS}
    told = f"{SEED}={number} draws this again"
    said = reference.answer(tree, records)
    assert set(said.dispositions.values()) == set(DISPOSITIONS), told
    assert len(said.exact) > MANY, told
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
    assert all(day["certified"] and not day["residual"] for day in days), (told, days)
    database = connect(stack, stack.database(catalog.source))
    states = reference.answer(state_tree(catalog, tree), records).expected
    faults = [
        *_faults(database, stack, catalog, "speed", said.expected),
        *_faults(database, stack, catalog, "batch", said.exact),
        *_state_faults(database, catalog, "speed", states),
        *_state_faults(database, catalog, "expected", states),
    ]
    assert not faults, "\n".join([told, *faults])


def _span(tree: Tree, records: list[Record]) -> tuple[int, int]:
    """The first and the last event time of the log, with a day after it for sessions that end then."""
    times = [event["event_time"] for record in records if (event := reference.parse(tree, record)) is not None]
    return min(times), max(times) + 86_400_000


def _faults(client: Client, stack: Settings, catalog: Catalog, layer: str, cells: dict[Key, Cell]) -> Iterator[str]:
    """What a layer says otherwise than the reference, metric by metric."""
    for metric in catalog.shown:
        for grain in metric.grains:
            question = query.build(catalog, metric.name, grain, layer=layer, limit=1_000_000)
            found = query.rows(client, stack.database(catalog.source), question)
            events = _events(client, metric, grain, layer)
            rows = [_said(row, events) for row in found]
            try:
                judge(metric, grain, rows, cells, exact=layer == "batch" or metric.exact)
            except AssertionError as error:
                yield f"{layer} {error}"


def _said(row: query.Row, events: dict[Place, int]) -> tuple[Place, Said]:
    shown = row.as_json()
    place = (_ms(row.window_start), tuple(row.dimensions.values()))
    said = Said(_ms(row.window_end), shown["value"], shown["lower"], shown["upper"], events.get(place), row.length_ms)
    return place, said


def _events(client: Client, metric: ShownMetric, grain: str, layer: str) -> dict[Place, int]:
    """How many events each window of a view was folded from; a ratio does not say."""
    if isinstance(metric, RatioMetric):
        return {}
    view = quote(f"{view_name(metric, grain)}__{layer}")
    columns = ", ".join(["window_start", "events", *map(quote, dimensions(metric))])
    found = client.query(f"SELECT {columns} FROM {view}").result_rows
    return {(_ms(start), tuple(key)): events for start, events, *key in found}


def _state_faults(client: Client, catalog: Catalog, layer: str, cells: dict[Key, Cell]) -> Iterator[str]:
    """Where the sketches and counts that are stored are others than the reference's."""
    for metric in (metric for metric in catalog.metrics if metric.agg.name in STATES):
        try:
            judge_states(metric, _states(client, metric, layer), cells)
        except AssertionError as error:
            yield f"states of {layer} {error}"


def _states(client: Client, metric: Metric, layer: str) -> list[tuple[Place, int, dict[Any, int]]]:
    (state,) = metric.agg.state
    start = "window_start" if metric.session else "slice_start"
    columns = ", ".join([start, "events", state.name, *map(quote, dimensions(metric))])
    table = f"{quote(f'{layer}_{metric.name}')}{' FINAL' if layer == 'speed' else ''}"
    alive = " AND is_deleted = 0" if metric.session and layer == "speed" else ""
    found = client.query(
        f"SELECT {columns} FROM {table} WHERE metric_version = {{version:String}}{alive}",
        parameters={"version": metric.metric_version},
    ).result_rows
    return [((_ms(at), tuple(key)), events, states) for at, events, states, *key in found]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
