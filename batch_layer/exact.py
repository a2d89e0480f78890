"""Exact states: for each slice or session and dimensions, three readings of each metric; see `serving.readings`.

`exact` takes every well-formed event once: the first copy by (event id, event time) over all topic partitions, in the
order of topic partition and offset, and no id_conflict. `with_late` takes what was counted or late, `counted` what the
speed layer counted. The differences between the three are what the causes explain.

Nearly every event is in all three readings. So each task folds these once, and for each reading the others it takes;
`Readings` merges what has come from all tasks, and takes apart only the rows that have an event which not all take.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import pyarrow as pa

from batch_layer.copies import with_exact
from batch_layer.rows import bucket_of, from_bytes, in_spans, neighbourhood, to_bytes
from metrics.by_value import Quantile
from metrics.catalog import Catalog, Metric
from metrics.disposition import COUNTED, LATE
from metrics.fold import Group, groups, merge_states, metric_rows, partial_states, selected, session_rows
from metrics.session import SESSION_COLUMNS, assign_sessions
from serving.readings import ALL, READINGS

SESSION_TIMES = tuple(name for name in SESSION_COLUMNS if name != "chain_events")
"""What names a session besides its key."""

ITEM = "item"
PLAIN = -1
"""Stands for all metrics of a group that keep plain states."""

FOLDED = {
    "topic_partition": "int",
    "group": "int",
    "metric": "int",
    "reading": "string",
    "bucket": "int",
    "payload": "binary",
}
"""Spark types of what a fold yields: payloads of states or items. `metric` is the number of one in its group that is
kept by value, else `PLAIN`."""

_MERGE_AT_ROWS = 100_000

OfRows = Callable[[pl.DataFrame], pl.DataFrame]
"""From rows to rows."""


def flagged(events: pl.DataFrame, copies: pl.Series) -> pl.DataFrame:
    """Events with a Boolean for each reading that says whether it takes the event.

    Args:
        events: Of a payload of `rows.Pass`.
        copies: See `copies.find_copies`.
    """
    disposition = pl.col("disposition")
    return with_exact(events, copies).with_columns(
        with_late=disposition.is_in([COUNTED, LATE]), counted=disposition == COUNTED
    )


def parts(events: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Flagged events that all readings take, under `ALL`; and the others that each takes."""
    alike = pl.all_horizontal(READINGS)
    yield ALL, events.filter(alike)
    others = events.filter(~alike)
    for reading in READINGS:
        yield reading, others.filter(reading)


def plain_part(group: Group) -> Group | None:
    """The group with its metrics that keep plain states alone; None where there are none."""
    metrics = tuple(metric for metric in group.metrics if not metric.agg.by_value)
    return replace(group, metrics=metrics) if metrics else None


def items(group: Group, metric: Metric, events: pl.DataFrame) -> pl.DataFrame:
    """The distinct values of a metric that is kept by value: the group's keys, `ITEM` and `n`, how many events have it.

    A value is of its own type where it is ordered, else its text; NULL is one, too: its events count.
    """
    value = pl.col("argument") if isinstance(metric.agg, Quantile) else pl.col("argument").cast(pl.String)
    chosen = selected(group, metric, events).select(*group.keys, value.alias(ITEM))
    return chosen.group_by(*group.keys, ITEM).agg(n=pl.len().cast(pl.UInt64))


def merged_items(group: Group, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `items` as one for each value."""
    return rows.group_by(*group.keys, ITEM).agg(pl.col("n").sum())


@dataclass(frozen=True)
class Fold:
    """Folds the events of some days into payloads; for `mapInArrow` over rows of `rows.Pass` that hold events.

    Attributes:
        catalog: Of the metrics.
        spans: Milliseconds ``[start, end)`` of the days.
        copies: See `copies.find_copies`.
    """

    catalog: Catalog
    spans: tuple[tuple[int, int], ...]
    copies: pl.Series

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields `FOLDED`."""
        held: dict[int, _Held] = {}
        for batch in batches:
            for number, payload in zip(batch["topic_partition"].to_pylist(), batch["payload"], strict=True):
                events = flagged(from_bytes(payload.as_py()), self.copies)
                held.setdefault(number, _Held(self.catalog, self.spans)).add(events)
        for number, folded in sorted(held.items()):
            yield from folded.batches(number)


class _Held:
    """What is folded of a topic partition; merged now and then, so that it stays as little as there are rows."""

    def __init__(self, catalog: Catalog, spans: tuple[tuple[int, int], ...]) -> None:
        self._groups = groups(catalog)
        self._near, self._spans = neighbourhood(catalog, spans), [*spans]
        self._parts: dict[tuple[int, int, str], list[pl.DataFrame]] = {}
        self._merge_at: dict[tuple[int, int, str], int] = {}

    def add(self, events: pl.DataFrame) -> None:
        """Folds flagged events."""
        near = events.filter(in_spans("event_time", self._near))
        for reading, taken in parts(near):
            inside = taken.filter(in_spans("event_time", self._spans))
            for number, group in enumerate(self._groups):
                chosen = taken if group.session else inside
                if chosen.is_empty():
                    continue
                if plain := plain_part(group):
                    self._keep((number, PLAIN, reading), partial_states(plain, chosen))
                for place, metric in enumerate(group.metrics):
                    if metric.agg.by_value:
                        self._keep((number, place, reading), items(group, metric, chosen))

    def _keep(self, key: tuple[int, int, str], rows: pl.DataFrame) -> None:
        if rows.is_empty():
            return
        held = self._parts.setdefault(key, [])
        held.append(rows)
        height = sum(part.height for part in held)
        if height > self._merge_at.get(key, _MERGE_AT_ROWS):
            self._parts[key] = [merged := self._merged(key)]
            self._merge_at[key] = max(_MERGE_AT_ROWS, 2 * merged.height)

    def _merged(self, key: tuple[int, int, str]) -> pl.DataFrame:
        group, rows = self._groups[key[0]], pl.concat(self._parts[key])
        if key[1] != PLAIN:
            return merged_items(group, rows)
        plain = plain_part(group)
        assert plain is not None
        return merge_states(plain, rows)

    def batches(self, topic_partition: int) -> Iterator[pa.RecordBatch]:
        """The payloads, by bucket."""
        for key in sorted(self._parts):
            number, place, reading = key
            rows = self._merged(key)
            split = rows.with_columns(bucket_of(self._groups[number], rows))
            for (bucket,), part in sorted(split.partition_by("bucket", as_dict=True, include_key=False).items()):
                yield pa.record_batch(
                    {
                        "topic_partition": pa.array([topic_partition], pa.int32()),
                        "group": pa.array([number], pa.int32()),
                        "metric": pa.array([place], pa.int32()),
                        "reading": [reading],
                        "bucket": pa.array([bucket], pa.int32()),
                        "payload": pa.array([to_bytes(part, compressed=True)], pa.binary()),
                    }
                )


@dataclass(frozen=True)
class Readings:
    """Rows of `batch_<m>` from payloads of a fold; all of a group's bucket must be in one task.

    Attributes:
        catalog: Of the metrics.
        spans: Milliseconds ``[start, end)`` of the days.
    """

    catalog: Catalog
    spans: tuple[tuple[int, int], ...]

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """For each metric a frame with `reading`, the group's times in ms, its dimensions, and the states or items."""
        ordered = rows.sort("group", "metric", "reading", "topic_partition", "bucket")
        for (number, place), part in ordered.partition_by("group", "metric", as_dict=True, maintain_order=True).items():
            group = groups(self.catalog)[number]
            payloads = {
                reading: pl.concat([from_bytes(each) for each in of["payload"]])
                for (reading,), of in part.partition_by("reading", as_dict=True, maintain_order=True).items()
            }
            if place != PLAIN:
                yield self._by_value(group, group.metrics[place], payloads)
                continue
            plain = plain_part(group)
            assert plain is not None
            common, apart = taken_apart(group, payloads, partial(merge_states, plain))
            for metric in plain.metrics:
                yield metric.name, self._read(common, apart, partial(self._states, group, metric))

    def _states(self, group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
        if group.session:
            return session_rows(group, metric, states).drop("chain_events").filter(of_days(self.spans))
        return metric_rows(group, metric, states)

    def _by_value(self, group: Group, metric: Metric, payloads: Mapping[str, pl.DataFrame]) -> tuple[str, pl.DataFrame]:
        common, apart = taken_apart(group, payloads, partial(merged_items, group))
        return metric.name, self._read(common, apart, partial(self._items, group))

    def _items(self, group: Group, rows: pl.DataFrame) -> pl.DataFrame:
        if group.session is None:
            return rows
        instants = rows.rename({"slice_start": "event_time"}).with_columns(events=pl.col("n"))
        sessions = assign_sessions(instants, group.dimensions, group.session).filter(of_days(self.spans))
        return sessions.group_by(*SESSION_TIMES, *group.dimensions, ITEM).agg(pl.col("n").sum())

    def _read(self, common: pl.DataFrame, apart: Mapping[str, pl.DataFrame], shown: OfRows) -> pl.DataFrame:
        others = pl.concat([shown(rows).with_columns(reading=pl.lit(reading)) for reading, rows in apart.items()])
        return pl.concat([shown(common).with_columns(reading=pl.lit(ALL)), brought_together(others)])


def taken_apart(
    group: Group, payloads: Mapping[str, pl.DataFrame], merged: OfRows
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """What is the same in all readings; and by reading the rest, of keys that have an event which not all take.

    Args:
        group: Of the rows.
        payloads: By reading, or `ALL`, the rows of all tasks.
        merged: Merges rows of the same keys.
    """
    some = next(iter(payloads.values())).clear()
    common = merged(payloads.get(ALL, some))
    others = {reading: payloads.get(reading, some) for reading in READINGS}
    # of sessions all instants of a key belong together
    keys = group.dimensions if group.session else group.keys
    touched = pl.concat([rows.select(keys) for rows in others.values()]).unique()
    mixed = common.join(touched, on=keys, how="semi")
    apart = {reading: merged(pl.concat([mixed, rows])) for reading, rows in others.items()}
    return common.join(touched, on=keys, how="anti"), apart


def brought_together(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that are the same in all readings, once.

    A key whose events not all readings take has rows that these events do not touch; how many depends on what else was
    computed, and the rows of a day must not.
    """
    marked = rows.with_columns(_row=rows.drop("reading").hash_rows())
    alike = marked.group_by("_row").len().filter(pl.col("len") == len(READINGS))
    once = marked.join(alike, on="_row", how="semi").filter(pl.col("reading") == READINGS[0])
    apart = marked.join(alike, on="_row", how="anti")
    return pl.concat([once.with_columns(reading=pl.lit(ALL)), apart]).drop("_row")


def of_days(spans: Sequence[tuple[int, int]]) -> pl.Expr:
    """Whether a session belongs to the days of these spans: where its last millisecond lies."""
    return in_spans(pl.col("window_end") - 1, spans)
