"""What one pass over a topic partition yields, without Spark."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from batch_layer.log_reader import Records
from batch_layer.manifest import ReadRange
from batch_layer.publish import ExceptionFrames
from batch_layer.rows import (
    DEAD,
    EVENT,
    IDS,
    LEFT_OUT,
    REPAIRED,
    REPAIRS,
    ROW,
    STATES,
    TALLY,
    Pass,
    arrow_schema,
    day_spans,
    from_bytes,
    merged_states,
    used_fields,
)
from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from metrics.fold import groups, session_rows
from metrics.window import DAY_MS, parse_window, to_epoch_ms

CATALOG = load_catalog(Path(__file__).parents[2] / "data" / "clickstream.yaml")
DAY = date(2024, 1, 5)
START = to_epoch_ms(datetime(2024, 1, 5, tzinfo=UTC))
Log = list[tuple[int, bytes]]


def event(name: str, time: int, kind: str = "purchase") -> bytes:
    body = {"event_id": name, "timestamp": time, "event": kind, "user_id": "u" + name}
    return json.dumps(body | {"session_id": "s", "platform": "web", "acquisition_channel": "ads"}).encode()


def records(log: Log, origins: Mapping[int, int], first: int, end: int) -> Records:
    """A run of the log; headers name what a record repairs."""
    names = ("topic", "partition", "offset")
    headers: list[list[tuple[str, bytes | None]] | None] = [
        [
            (f"lockstep-origin-{name}", str(part).encode())
            for name, part in zip(names, (CATALOG.topic, 0, origins[n]), strict=True)
        ]
        if n in origins
        else None
        for n in range(first, end)
    ]
    times, values = zip(*log[first:end], strict=True)
    return Records([*range(first, end)], [*times], [None] * (end - first), [*values], headers)


def rows_of(  # noqa: PLR0913, PLR0917 - of a test
    log: Log,
    batch: int = 100,
    start: int = 0,
    days: Sequence[date] = (DAY,),
    catalog: Catalog = CATALOG,
    origins: Mapping[int, int] = MappingProxyType({}),
) -> pl.DataFrame:
    """The rows of a pass over a log of (record time, value), which comes in runs of so many records."""

    def read(_: int, first: int, end: int) -> Iterator[Records]:
        for at in range(first, end, batch):
            yield records(log, origins, at, min(at + batch, end))

    ranges = (ReadRange(0, 0, start, len(log), 0, len(log), 0),)
    numbers = pa.RecordBatch.from_pydict({"id": [0]})
    made = Pass(catalog, ranges, tuple(days), read)([numbers])
    found = pl.from_arrow(pa.Table.from_batches(list(made), arrow_schema(ROW)))
    assert isinstance(found, pl.DataFrame)
    return found


def events(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([from_bytes(payload) for payload in rows.filter(pl.col("kind") == EVENT)["payload"]])


def dispositions(rows: pl.DataFrame) -> list[tuple[int, str]]:
    dead = rows.filter(pl.col("kind") == DEAD)
    found = [part.select("offset", "disposition") for part in (events(rows), dead)]
    return pl.concat(found).sort("offset").rows()


def tally(rows: pl.DataFrame) -> dict[str, Any]:
    (payload,) = rows.filter(pl.col("kind") == TALLY)["payload"]
    (block,) = from_bytes(payload).to_dicts()
    return block


LOG: Log = [
    (START, event("1", START)),
    (START + 1, event("2", START + 1, "view")),
    (START + 2, event("1", START)),
    (START + 3, b"{bad"),
    (START + 4, event("1", START + 4)),
    (START + 3 * 3_600_000, event("3", START + 5)),
    (START + DAY_MS, event("4", START + DAY_MS)),
    (START + DAY_MS + 1, b"{bad"),
]


def test_every_record_of_the_day_is_a_row_with_its_disposition():
    assert dispositions(rows_of(LOG)) == [
        (0, "counted"),
        (1, "counted"),
        (2, "duplicate"),
        (3, "dead_letter"),
        (4, "id_conflict"),
        (5, "late"),
    ]


def test_the_tally_counts_all_records_whatever_their_day():
    block = tally(rows_of(LOG))
    assert block["read"] == block["records"] == len(LOG)
    assert (block["counted"], block["dead_letter"]) == (3, 2)


def test_the_rows_do_not_depend_on_how_records_come_in_batches():
    whole, apart = rows_of(LOG), rows_of(LOG, batch=3)
    assert whole.sort("kind", "offset", "group", "bucket").equals(apart.sort("kind", "offset", "group", "bucket"))


def test_records_before_the_start_are_remembered_and_not_read():
    rows = rows_of(LOG, batch=3, start=2)
    assert dispositions(rows)[0] == (2, "duplicate")
    assert tally(rows)["read"] == len(LOG) - 2


def test_states_hold_what_was_counted_on_the_day():
    rows = rows_of(LOG).filter(pl.col("kind") == STATES)
    found = {}
    for number, group in enumerate(groups(CATALOG)):
        payloads = rows.filter(pl.col("group") == number)["payload"].to_list()
        states = merged_states(group, payloads)
        found |= {metric.name: states[f"{metric.name}.events"].sum() for metric in group.metrics}
    assert found == {"events": 2, "events_by_type": 2, "distinct_users": 2, "purchases_by_channel": 1}


def test_events_carry_the_fields_that_metrics_use_as_their_types():
    rows = events(rows_of(LOG)).sort("offset")
    assert rows.schema["f_user_id"] == pl.String
    assert rows["f_event"].to_list()[:2] == ["purchase", "view"]
    assert rows["f_acquisition_channel"].to_list()[:2] == ["ads", "ads"]


def test_a_pass_without_records_of_the_day_yields_a_tally_alone():
    rows = rows_of(LOG, days=[date(2024, 3, 1)])
    assert rows["kind"].to_list() == [TALLY]


def test_events_with_the_same_id_and_time_have_the_same_hash_wherever_they_stand():
    held = events(rows_of(LOG)).sort("offset")["identity"].to_list()
    assert held[0] == held[2]
    assert len(set(held)) == len(held) - 1
    hashes = [np.frombuffer(payload, np.uint64) for payload in rows_of(LOG).filter(pl.col("kind") == IDS)["payload"]]
    assert sorted(np.concatenate(hashes).tolist()) == sorted(held)


def test_of_the_events_that_name_a_dead_letter_the_first_repairs_it_whatever_their_day():
    origins = {4: 3, 6: 3, 7: 3}
    for batch in (100, 3):
        (payload,) = rows_of(LOG, batch, origins=origins).filter(pl.col("kind") == REPAIRS)["payload"]
        assert from_bytes(payload).rows() == [(0, 3, 4)]
    rows = rows_of(LOG, days=[date(2024, 3, 1)], origins={1: 3, 6: 3, 7: 5})
    assert from_bytes(rows.filter(pl.col("kind") == REPAIRS)["payload"][0]).rows() == [(0, 3, 6)]
    assert REPAIRS not in rows_of(LOG, origins={3: 1, 7: 3})["kind"]


def test_a_dead_letter_alone_is_named_as_repaired():
    rows = rows_of(LOG).filter(pl.col("kind").is_in([LEFT_OUT, DEAD]))
    repairs = pl.DataFrame([(0, 3, 9), (0, 5, 10)], schema=REPAIRED, orient="row")
    ((table, frame),) = ExceptionFrames("clicks", repairs)(rows)
    assert table == "batch_exceptions"
    assert frame.select("offset", "disposition", "repaired_offset").rows() == [
        (2, "duplicate", None),
        (3, "dead_letter", 9),
        (4, "id_conflict", None),
        (5, "late", None),
    ]


def test_columns_are_the_fields_that_conditions_arguments_and_dimensions_name():
    assert [field.name for field in used_fields(CATALOG)] == ["event", "user_id", "acquisition_channel"]
    assert used_fields(replace(CATALOG, metrics=CATALOG.metrics[:1])) == ()
    assert [field.name for field in used_fields(sessions())] == ["user_id"]


def sessions() -> Catalog:
    metric = replace(CATALOG.metrics[0], windows=(parse_window("session 30m max 1h"),))
    return replace(CATALOG, metrics=(metric,))


def test_events_that_a_session_may_reach_are_neighbours_and_folded():
    times = [-9_000_001, -9_000_000, -600_000, 0, DAY_MS - 1, DAY_MS, DAY_MS + 1]
    log = [(START + time, event(f"e{n}", START + time)) for n, time in enumerate(times)]
    rows = rows_of(log, catalog=sessions())
    assert events(rows).sort("offset")["offset"].to_list() == [*range(1, 6)]
    (group,) = groups(sessions())
    states = merged_states(group, rows.filter(pl.col("kind") == STATES)["payload"].to_list())
    assert states["slice_start"].sort().to_list() == [START + time for time in times[1:-1]]


def test_all_instants_of_a_session_key_are_in_one_bucket():
    times = [n * 600_000 for n in range(100)]
    log = [
        (START + time, event(f"e{n}", START + time).replace(b"ue%d" % n, b"u%d" % (n % 7)))
        for n, time in enumerate(times)
    ]
    (group,) = groups(sessions())
    rows = rows_of(log, catalog=sessions()).filter(pl.col("kind") == STATES)
    keys = [set(from_bytes(payload)["session_key"]) for payload in rows["payload"]]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 7
    found = [session_rows(group, group.metrics[0], merged_states(group, [payload])) for payload in rows["payload"]]
    assert sum(frame["events"].sum() for frame in found) == 100


def test_consecutive_days_are_one_span():
    days = [date(2024, 1, 7), date(2024, 1, 5), date(2024, 1, 6), date(2024, 1, 9)]
    assert day_spans(days) == [(START, START + 3 * DAY_MS), (START + 4 * DAY_MS, START + 5 * DAY_MS)]
