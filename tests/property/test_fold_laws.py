"""The columnar fold agrees with the reference, and its states merge in any order and grouping."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from strategies import TREE, logs

from metrics import reference
from metrics.catalog import Metric
from metrics.catalog_build import parse_catalog
from metrics.disposition import DISPOSITIONS, Chunk, PartitionReader
from metrics.fold import Group, groups, merge_states, metric_rows, partial_states, slice_start
from metrics.reference import Record
from metrics.reference_values import Cell
from metrics.sketch import REGISTERS

CATALOG = parse_catalog(TREE, {}, "test.yaml")
GROUPS = groups(CATALOG)


def read(records: list[Record], cuts: list[int]) -> list[Chunk]:
    """Reads a log, each topic partition in the runs that `cuts` make of it."""
    chunks = []
    for partition in (0, 1):
        reader = PartitionReader(CATALOG)
        own = [record for record in records if record.topic_partition == partition]
        edges = sorted({0, len(own), *(cut for cut in cuts if cut < len(own))})
        chunks += [reader.read(*columns(partition, own[a:b])) for a, b in pairwise(edges)]
    return chunks


def columns(partition: int, records: list[Record]) -> tuple[int, list[int], list[int], list[bytes | None]]:
    return partition, [r.offset for r in records], [r.record_time for r in records], [r.value for r in records]


def states(group: Group, chunks: list[Chunk]) -> pl.DataFrame:
    empty = read([Record(0, 0, 0, None)], [])[0].counted
    return merge_states(
        group, pl.concat([partial_states(group, events) for events in [empty, *(c.counted for c in chunks)]])
    )


def near(value: float | None, wanted: float | None, tolerance: float) -> bool:
    if value is None or wanted is None:
        return value is wanted
    return math.isclose(value, wanted, rel_tol=tolerance, abs_tol=tolerance)


def assert_state_is_that_of(cell: Cell, metric: Metric, row: dict[str, Any]) -> None:
    state = {c.name: {e["key"]: e["value"] for e in row[c.name]} if c.is_map else row[c.name] for c in metric.agg.state}
    match metric.agg.name:
        case "distinct":
            assert state["registers"] == cell.registers
        case "quantile":
            assert state["buckets"] == cell.buckets
        case "top":
            ordered = sorted(state["counts"].items(), key=lambda item: (-item[1], item[0].encode()))
            assert ordered[:2] == cell.value
        case "level":
            at = max(state["levels"], default=-1)
            later = sum(change for time, change in state["changes"].items() if time > at)
            assert state["levels"].get(at, 0) + later == cell.value
        case "mean":
            value = float(state["total"]) / state["number"] if state["number"] else None
            assert near(value, cell.value, 1e-12)
        case "stddev":
            value = math.sqrt(state["squares"] / (state["number"] - 1)) if state["number"] > 1 else None
            assert near(value, cell.value, 1e-9)
        case "sum" if metric.agg.type.kind == "float":
            assert near(state["total"], cell.value, 1e-12)
        case _:
            (value, *_) = state.values()
            assert value == cell.value


cuts = st.lists(st.integers(0, 40), max_size=5)


@settings(max_examples=300)
@given(logs(), cuts)
def test_dispositions_are_those_of_the_reference_whatever_the_chunks(records: list[Record], cuts: list[int]) -> None:
    few = TREE | {"metrics": {"events": TREE["metrics"]["events"]}}
    expected = reference.answer(few, records).dispositions
    got: dict[tuple[int, int], str] = {}
    for chunk in read(records, cuts):
        places = chunk.events.select("topic_partition", "offset", "disposition").rows()
        got |= {(partition, offset): disposition for partition, offset, disposition in places}
        got |= dict.fromkeys(chunk.dead_letters.select("topic_partition", "offset").rows(), "dead_letter")
    assert got == expected


def test_bad_records_among_many_change_nothing_of_the_others() -> None:
    good = [
        Record(0, n, 10_000, b'{"id":"e%d","ts":%d,"kind":"buy","amount":%s}' % (n % 900, n, written))
        for n, written in enumerate([b'"1.50"', b'"7"', b'"-0.00"', b"2.5", b"null", b'"1e1"'] * 300)
    ]
    bad = {17: b"{", 600: b'{"id":"x","ts":1,"kind":"buy","amount":"1.555"}', 601: None, 1500: b"[]\n[]"}
    records = [replace(record, value=bad[n]) if n in bad else record for n, record in enumerate(good)]

    [together] = read(records, [])
    apart = read(records, [*range(len(records))])

    assert_frame_equal(together.events, pl.concat([chunk.events for chunk in apart]))
    assert_frame_equal(together.dead_letters, pl.concat([chunk.dead_letters for chunk in apart]))
    assert together.dead_letters["offset"].to_list() == sorted(bad)


@settings(max_examples=150)
@given(logs(), st.integers(0, 40))
def test_a_reader_that_remembers_the_horizon_resumes_as_if_it_had_never_stopped(records: list[Record], at: int) -> None:
    own = [record for record in records if record.topic_partition == 0]
    whole = PartitionReader(CATALOG).read(*columns(0, own)).events
    resumed = PartitionReader(CATALOG)
    start = own[at].offset if at < len(own) else 10**9
    before = [r for r in own if start - CATALOG.dedup_horizon <= r.offset < start]
    resumed.remember(*columns(0, before))
    rest = resumed.read(*columns(0, [r for r in own if r.offset >= start])).events
    assert_frame_equal(rest, whole.filter(pl.col("offset") >= start))


@settings(max_examples=80)
@given(logs(), cuts)
def test_published_states_are_those_of_the_reference(records: list[Record], cuts: list[int]) -> None:
    expected = reference.answer(TREE, records).expected
    chunks = read(records, cuts)
    for group in GROUPS:
        merged = states(group, chunks)
        for metric in group.metrics:
            width = group.slice_width_ms
            for window in (w for w in metric.windows if w.size_ms == width):
                rows = metric_rows(group, metric, merged)
                own = {key[2:]: cell for key, cell in expected.items() if key[:2] == (metric.name, window.grain)}
                assert {(row[0], row[1 : 1 + len(metric.by)]) for row in rows.rows()} == set(own)
                for row in rows.iter_rows(named=True):
                    cell = own[row["slice_start"], tuple(row[name] for name in metric.by)]
                    assert row["events"] == cell.events
                    assert_state_is_that_of(cell, metric, row)


@settings(max_examples=50)
@given(logs(), cuts, st.randoms(use_true_random=False))
def test_merging_is_associative_commutative_and_has_an_identity(
    records: list[Record], cuts: list[int], chance: random.Random
) -> None:
    chunks = read(records, cuts)
    for group in GROUPS:
        parts = [partial_states(group, chunk.counted) for chunk in chunks] or [states(group, [])]
        whole = merge_states(group, pl.concat(parts))
        shuffled = parts[:]
        chance.shuffle(shuffled)
        assert_frame_equal(merge_states(group, pl.concat(shuffled)), whole)
        folded = parts[0].clear()
        for part in parts:
            folded = merge_states(group, pl.concat([folded, part]))
        assert_frame_equal(folded, whole)
        assert_frame_equal(merge_states(group, whole), whole)


@settings(max_examples=50)
@given(logs(), cuts)
def test_the_ledger_accounts_for_every_record_once(records: list[Record], cuts: list[int]) -> None:
    chunks = read(records, cuts)
    ledger = pl.concat([read([Record(0, 0, 0, None)], [])[0].ledger.clear(), *(chunk.ledger for chunk in chunks)])
    assert ledger["records"].sum() == len(records)
    assert sum(ledger[name].sum() for name in DISPOSITIONS) == len(records)
    exceptions = sum(len(chunk.exceptions) for chunk in chunks)
    assert exceptions == len(records) - ledger["counted"].sum()


def test_a_sketch_of_many_values_fills_its_registers_with_plausible_ranks() -> None:
    group = next(group for group in GROUPS if group.metrics[0].name == "amounts")
    events = PartitionReader(CATALOG).read(
        0,
        list(range(50_000)),
        [0] * 50_000,
        [f'{{"id": "{n}", "ts": 0, "amount": "{n}.00"}}'.encode() for n in range(50_000)],
    )
    registers = partial_states(group, events.counted)["amounts.registers"].to_list()[0]
    assert len(registers) == REGISTERS
    mean_rank = sum(register["value"] for register in registers) / REGISTERS
    # the expected greatest of 12.2 geometric ranks lies near log2(12.2) + 1.33
    assert mean_rank == pytest.approx(4.9, abs=0.2)


@pytest.mark.parametrize(
    ("event_time", "start"), [(0, 0), (59_999, 0), (60_000, 60_000), (NOON := 1_700_000_000_000, NOON - NOON % 60_000)]
)
def test_a_slice_is_half_open(event_time: int, start: int) -> None:
    assert pl.DataFrame({"event_time": [event_time]}).select(slice_start(60_000)).item() == start
