"""Exact states from many parts against states of all events at once, with neither Spark, a log nor ClickHouse."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from batch_log import DAY_MS, DAYS, FIRST_DAY, HOUR_MS, PARTITIONS, START, records, write_catalog

from batch_layer import exact
from batch_layer.copies import later_copies, with_exact
from batch_layer.exact import Fold, of_days
from batch_layer.log_reader import Records
from batch_layer.manifest import ReadRange, lookback_ms
from batch_layer.publish import ExactFrames, ExpectedFrames
from batch_layer.rows import EVENT, ROW, STATES, Pass, arrow_schema, day_spans, from_bytes, neighbourhood
from metrics.aggregation import Aggregation
from metrics.catalog import Catalog, Metric
from metrics.disposition import COUNTED, ID_CONFLICT, LATE
from metrics.fold import Group, groups, metric_rows, partial_states, selected, session_rows
from metrics.reference import Record
from metrics.session import assign_sessions
from serving.readings import ALL, READINGS

Tables = dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return write_catalog("exactly", tmp_path_factory.mktemp("catalog"))[1]


def passed(catalog: Catalog, log: Sequence[Record], days: Sequence[date]) -> pa.Table:
    """The rows of a pass over every topic partition."""
    found = []
    for number in range(PARTITIONS):
        of = [r for r in log if r.topic_partition == number]
        absent = [None] * len(of)
        columns = ([r.offset for r in of], [r.record_time for r in of], absent, [r.value for r in of], absent)
        ranges = (ReadRange(number, 0, 0, len(of), 0, len(of), 0),)
        made = Pass(catalog, ranges, tuple(days), lambda *_, columns=columns: iter([Records(*columns)]))
        found += list(made.rows(ranges[0]))
    return pa.Table.from_batches(found, arrow_schema(ROW))


def tables(frames: Any, rows: pl.DataFrame) -> Tables:
    return dict(frames(rows))


def events_in(rows: pa.Table) -> pl.DataFrame:
    """The events of a pass."""
    frame = pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("kind") == EVENT)
    return pl.concat([from_bytes(payload) for payload in frame["payload"]])


def written(catalog: Catalog, rows: pa.Table, days: Sequence[date]) -> Tables:
    """What a run would write into `batch_<m>`."""
    spans = tuple(day_spans(days))
    events = events_in(rows)
    repeated = events.filter(pl.col("identity").is_duplicated())
    fold = Fold(catalog, spans, later_copies(repeated))
    payloads = pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("kind") == EVENT).select("topic_partition", "payload")
    # each partition in a task of its own
    tasks = (fold(of.to_arrow().to_batches()) for of in payloads.partition_by("topic_partition"))
    folded = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch for task in tasks for batch in task])))
    found: Tables = {}
    for bucket in folded.partition_by("group", "bucket"):
        for name, frame in ExactFrames(catalog, spans)(bucket):
            found[name] = pl.concat([found[name], frame]) if name in found else frame
    return {name: expanded(frame) for name, frame in found.items()}


def expanded(frame: pl.DataFrame) -> pl.DataFrame:
    """A row for each reading that has it."""
    listed = pl.when(pl.col("reading") == ALL).then(pl.lit([*READINGS])).otherwise(pl.concat_list("reading"))
    return frame.with_columns(listed.alias("reading")).explode("reading")


def readings(rows: pa.Table) -> Tables:
    """The events of each reading, by polars."""
    events = events_in(rows)
    copies = events.filter(pl.col("disposition") != ID_CONFLICT).sort("topic_partition", "offset")
    return {
        "exact": copies.unique(["event_id", "event_time"], keep="first", maintain_order=True),
        "with_late": events.filter(pl.col("disposition").is_in([COUNTED, LATE])),
        "counted": events.filter(pl.col("disposition") == COUNTED),
    }


def inside(days: Sequence[date]) -> pl.Expr:
    return pl.any_horizontal([pl.col("event_time").is_between(*span, closed="left") for span in day_spans(days)])


def by_polars(group: Group, metric: Metric, events: pl.DataFrame, days: Sequence[date]) -> pl.DataFrame:
    """The states of a metric over events, with columns as in tables."""
    if group.session:
        states = session_rows(group, metric, partial_states(group, events)).drop("chain_events")
        return states.filter(of_days(day_spans(days)))
    return metric_rows(group, metric, partial_states(group, events.filter(inside(days))))


def items_by_polars(group: Group, metric: Metric, events: pl.DataFrame, days: Sequence[date]) -> pl.DataFrame:
    """The distinct values of a metric with their counts."""
    chosen = selected(group, metric, events if group.session else events.filter(inside(days)))
    if group.session:
        chosen = chosen.rename({"slice_start": "event_time"}).with_columns(events=pl.lit(1, pl.UInt64))
        chosen = assign_sessions(chosen, group.dimensions, group.session).filter(of_days(day_spans(days)))
        chosen = chosen.drop("event_time", "events", "chain_events")
    if metric.agg.item_type == "String":
        chosen = chosen.with_columns(pl.col("argument").cast(pl.String))
    return chosen.group_by(pl.all()).agg(n=pl.len()).rename({"argument": "item"})


ROUNDING = 1e-12
"""What summing leaves of the spread of equal values."""


def plain(frame: pl.DataFrame, names: Sequence[str]) -> Counter[tuple[Any, ...]]:
    """The rows as values that compare; times in ms."""
    times = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
    ready = frame.with_columns(pl.col(times).dt.epoch("ms")).select(names)
    return Counter(tuple(map(_plain, row)) for row in ready.rows())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple((entry["key"], entry["value"]) for entry in value)
    if isinstance(value, float):
        return f"{value:.9g}" if abs(value) > ROUNDING else "0"
    return value


def keys_of(group: Group) -> list[str]:
    return [*(["window_start", "window_end", "length_ms"] if group.session else ["slice_start"]), *group.dimensions]


def check(catalog: Catalog, found: Tables, rows: pa.Table, days: Sequence[date]) -> None:
    taken = readings(rows)
    for group in groups(catalog):
        for metric in group.metrics:
            table = found[f"batch_{metric.name}"]
            names = state_names(metric.agg)
            for reading in READINGS:
                fold = items_by_polars if metric.agg.by_value else by_polars
                wanted = fold(group, metric, taken[reading], days)
                held = plain(table.filter(pl.col("reading") == reading), [*keys_of(group), *names])
                assert held == plain(wanted, [*keys_of(group), *names]), (metric.name, reading)
                assert held, f"{metric.name} has no rows"
            assert table["metric_version"].unique().to_list() == [metric.metric_version]


def state_names(agg: Aggregation) -> list[str]:
    return ["item", "n"] if agg.by_value else ["events", *(column.name for column in agg.state)]


@pytest.fixture(scope="module")
def log() -> list[Record]:
    return records(seed=1, count=4_000)


@pytest.fixture(scope="module")
def rows(catalog: Catalog, log: list[Record]) -> pa.Table:
    return passed(catalog, log, DAYS)


@pytest.fixture(scope="module")
def found(catalog: Catalog, rows: pa.Table) -> Tables:
    return written(catalog, rows, DAYS)


def test_every_reading_of_every_metric_is_what_polars_folds_of_its_events(
    catalog: Catalog, rows: pa.Table, found: Tables
):
    check(catalog, found, rows, DAYS)
    apart = {name: len(Counter(frame["reading"])) for name, frame in found.items()}
    assert set(apart.values()) == {3}
    assert found["batch_events"].group_by("reading").agg(pl.col("events").sum())["events"].n_unique() == 3


def without(reading: str) -> Callable[..., Iterator[tuple[str, pl.DataFrame]]]:
    return lambda events: ((name, part) for name, part in _PARTS(events) if name != reading)


_PARTS = exact.parts
NONE = pl.Series([], dtype=pl.Int64)
PLANTED: dict[str, tuple[str, Any, str, Any]] = {
    "copies that are taken for the first": (
        "events",
        exact,
        "with_exact",
        lambda events, _: with_exact(events, NONE),
    ),
    "late events left out": ("by_kind", exact, "parts", without("with_late")),
    "late events among those counted": ("by_kind", exact, "LATE", COUNTED),
    "sessions of other days": ("visits", exact, "of_days", lambda _: pl.lit(value=True)),
    "values without those that some readings lack": ("visit_items", exact, "parts", without("exact")),
}
"""By what is planted: the metric that shows it, and what stands where instead."""


def of_planted(catalog: Catalog, *names: str) -> tuple[Catalog, pa.Table]:
    """A catalog of some metrics, and the rows of a small log."""
    only = replace(catalog, metrics=tuple(metric for metric in catalog.metrics if metric.name in names))
    return only, passed(only, records(seed=2, count=600), DAYS)


def test_nothing_is_found_where_nothing_is_planted(catalog: Catalog):
    only, rows = of_planted(catalog, *(name for name, *_ in PLANTED.values()))
    check(only, written(only, rows, DAYS), rows, DAYS)


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_difference_is_found(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, planted: str):
    name, where, what, difference = PLANTED[planted]
    only, rows = of_planted(catalog, name)
    monkeypatch.setattr(where, what, difference)
    with pytest.raises(AssertionError, match=name):
        check(only, written(only, rows, DAYS), rows, DAYS)


def test_the_expected_states_are_those_of_the_reading_counted(catalog: Catalog, rows: pa.Table, found: Tables):
    frames = ExpectedFrames(catalog, tuple(day_spans(DAYS)))
    expected = tables(frames, pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("kind") == STATES))
    for group in groups(catalog):
        for metric in group.metrics:
            exact = found[f"batch_{metric.name}"].filter(pl.col("reading") == "counted")
            if metric.agg.by_value:
                exact = exact.group_by(keys_of(group)).agg(events=pl.col("n").sum())
            names = [*keys_of(group), *(["events"] if metric.agg.by_value else state_names(metric.agg))]
            assert plain(expected[f"expected_{metric.name}"], names) == plain(exact, names), metric.name


def test_a_day_alone_gives_the_same_bytes_as_among_others(catalog: Catalog, log: list[Record], found: Tables):
    alone = written(catalog, passed(catalog, log, DAYS[1:2]), DAYS[1:2])
    for name, frame in found.items():
        of_day = frame.filter(pl.col("partition") == DAYS[1])
        assert of_day.equals(alone[name], null_equal=True), name
        assert of_day.height > 0


def event(offset: int, name: str, moment: int, *, sent: int | None = None) -> Record:
    body = f'{{"id": "{name}", "ts": {moment}, "kind": "view", "user": "u", "country": "DE", "items": 1}}'
    return Record(0, offset, moment if sent is None else sent, body.encode())


def sessions(catalog: Catalog, log: Sequence[Record], days: Sequence[date]) -> list[dict[str, Any]]:
    only = replace(catalog, metrics=tuple(metric for metric in catalog.metrics if metric.name == "visits"))
    frame = written(only, passed(only, log, days), days)["batch_visits"]
    columns = ["partition", "window_start", "window_end", "length_ms", "session_key", "country", "events"]
    times = pl.col("window_start", "window_end").dt.epoch("ms") - START
    return frame.filter(pl.col("reading") == "exact").select(columns).with_columns(times).to_dicts()


def visit(day: date, start: int, end: int, length: int, events: int) -> dict[str, Any]:
    times = {"window_start": start, "window_end": end, "length_ms": length}
    return {"partition": day, **times, "session_key": "u", "country": "DE", "events": events}


def test_a_session_over_midnight_belongs_to_the_day_on_which_it_ends(catalog: Catalog):
    minute = 60_000
    log = [event(n, f"e{n}", START + DAY_MS + at * minute) for n, at in enumerate([-70, -20, 10, 50])]
    second = FIRST_DAY + timedelta(days=1)
    whole = visit(second, DAY_MS - 70 * minute, DAY_MS + 110 * minute, 120 * minute, 4)
    assert sessions(catalog, log, [FIRST_DAY, second]) == [whole]
    assert sessions(catalog, log, [second]) == [whole]


def test_a_session_whose_gap_is_over_at_midnight_belongs_to_the_day_before(catalog: Catalog):
    log = [event(0, "a", START + DAY_MS - HOUR_MS), event(1, "b", START + DAY_MS)]
    second = FIRST_DAY + timedelta(days=1)
    before, after = visit(FIRST_DAY, DAY_MS - HOUR_MS, DAY_MS, 0, 1), visit(second, DAY_MS, DAY_MS + HOUR_MS, 0, 1)
    assert sessions(catalog, log, [FIRST_DAY]) == [before]
    assert sessions(catalog, log, [second]) == [after]


def test_a_session_cut_at_midnight_is_found_though_the_next_begins_on_another_day(catalog: Catalog):
    half = HOUR_MS // 2
    log = [event(n, f"e{n}", START + DAY_MS + (n - 6) * half) for n in range(9)]
    second = FIRST_DAY + timedelta(days=1)
    cut = visit(FIRST_DAY, DAY_MS - 6 * half, DAY_MS, 5 * half, 6)
    assert sessions(catalog, log, [FIRST_DAY]) == [cut]
    rest = visit(second, DAY_MS, DAY_MS + 4 * half, 2 * half, 3)
    assert sessions(catalog, log, [second]) == [rest]


def test_events_before_the_days_decide_where_a_session_is_cut(catalog: Catalog):
    half = HOUR_MS // 2
    log = [event(n, f"e{n}", START + DAY_MS + (n - 8) * half) for n in range(12)]
    second = FIRST_DAY + timedelta(days=1)
    first = visit(second, DAY_MS - 2 * half, DAY_MS + 5 * half, 5 * half, 6)
    assert sessions(catalog, log, [second]) == [first]
    assert sessions(catalog, log, [FIRST_DAY]) == [visit(FIRST_DAY, DAY_MS - 8 * half, DAY_MS - 2 * half, 5 * half, 6)]


def test_each_reading_has_its_own_sessions(catalog: Catalog):
    late = START + 45 * 60_000
    log = [
        event(0, "a", START),
        event(1, "b", START + 90 * 60_000),
        event(2, "late", late, sent=late + 3 * HOUR_MS),
        event(3, "late", late, sent=late + 3 * HOUR_MS),
    ]
    only = replace(catalog, metrics=tuple(metric for metric in catalog.metrics if metric.name == "visits"))
    frame = written(only, passed(only, log, [FIRST_DAY]), [FIRST_DAY])["batch_visits"]
    found = frame.group_by("reading", maintain_order=True).agg("length_ms", "events").rows()
    assert found == [
        ("counted", [0, 0], [1, 1]),
        ("exact", [90 * 60_000], [3]),
        ("with_late", [90 * 60_000], [3]),
    ]


def test_sessions_read_what_lies_before_the_days_and_one_millisecond_after(catalog: Catalog):
    assert lookback_ms(catalog) == 7 * HOUR_MS
    assert neighbourhood(catalog, day_spans([FIRST_DAY])) == [(START - 7 * HOUR_MS, START + DAY_MS + 1)]
    sliced = replace(catalog, metrics=tuple(metric for metric in catalog.metrics if not metric.session))
    assert neighbourhood(sliced, day_spans([FIRST_DAY])) == [(START, START + DAY_MS)]
