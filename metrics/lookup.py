"""Lookups: what is known of a key, from when on, and the events that are joined with it.

A record of a lookup's topic is a **version** of its key. It is valid from its timestamp, or from that of an earlier
record of the key where that is greater, to the next version of the key. An event is joined with the version that is
valid at its event time; of several from the same moment the last one holds. A record without a value deletes the key.
A record that is no version is a dead letter, and changes nothing.

Both layers join by `joined`. The batch layer knows all versions; the speed layer those that it has read, and what it
had read for which offset is remembered (`Known`), so that anyone can say what it had to publish.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import polars as pl

from metrics.catalog import Field, Lookup
from metrics.event import (
    FIELD_PREFIX,
    LARGEST_EVENT_BYTES,
    VALUE_TYPES,
    DeadLetterError,
    column_of,
    dtype_of,
    judge_value,
)

Join = Callable[[pl.DataFrame], pl.DataFrame]
"""Gives events the fields of their catalog's lookups."""

RECORDS = {
    "topic_partition": pl.Int32(),
    "offset": pl.Int64(),
    "record_time": pl.Int64(),
    "key": pl.Binary(),
    "value": pl.Binary(),
}
"""Records of a lookup's topic; times in ms. A partition's records come in the order of their offsets."""

DEAD_LETTERS = RECORDS | {"reason": pl.String(), "detail": pl.String()}

_PLACE = {"key": pl.String(), "valid_from": pl.Int64(), "topic_partition": pl.Int32(), "offset": pl.Int64()}
_ALL = 2**63 - 1


def version_schema(lookup: Lookup) -> dict[str, pl.DataType]:
    """Names and types of the columns of versions: where each stands, and its fields as events have them."""
    return _PLACE | {"is_deleted": pl.Boolean()} | {FIELD_PREFIX + f.name: dtype_of(f) for f in lookup.joined}


@dataclass(frozen=True)
class Read:
    """What a run of records of a lookup's topic holds: rows of `version_schema`, and of `DEAD_LETTERS`."""

    versions: pl.DataFrame
    dead_letters: pl.DataFrame


class VersionReader:
    """Turns the records of a lookup's topic into versions; it must be given all of a partition, in offset order.

    Args:
        lookup: Whose records they are.
        reached: By topic partition and key, the greatest moment from which a version before these records is valid.
    """

    def __init__(self, lookup: Lookup, reached: Mapping[tuple[int, str], int] | None = None) -> None:
        self._lookup = lookup
        self._reached = dict(reached or {})
        members: list[tuple[Any, ...]] = []
        names = {}
        for number, field in enumerate(lookup.fields):
            kind = VALUE_TYPES[field.type]
            members.append((f"c{number}", kind) if field.required else (f"c{number}", kind | None, None))
            names[f"c{number}"] = field.name
        self._decoder = msgspec.json.Decoder(
            msgspec.defstruct("Version", members, rename=names, kw_only=True, gc=False)
        )

    def read(self, records: pl.DataFrame) -> Read:
        """The versions and dead letters among the next records."""
        places: list[tuple[str, int, int, int, bool]] = []
        values: list[Any] = []
        dead: list[tuple[Any, ...]] = []
        for record in records.select(list(RECORDS)).iter_rows():
            topic_partition, offset, record_time, key, value = record
            try:
                text = _text(key)
                decoded = None if value is None else self._decoded(value)
            except DeadLetterError as error:
                dead.append((*record, error.reason, error.detail))
                continue
            valid_from = max(record_time, self._reached.get((topic_partition, text), record_time))
            self._reached[topic_partition, text] = valid_from
            places.append((text, valid_from, topic_partition, offset, value is None))
            values.append(decoded)
        columns = pl.DataFrame(places, schema=_PLACE | {"is_deleted": pl.Boolean()}, orient="row")
        for number, (field, joined) in enumerate(zip(self._lookup.fields, self._lookup.joined, strict=True)):
            column = column_of(joined, [None if one is None else getattr(one, f"c{number}") for one in values])
            if column is None:
                msg = f"a value of `{field.name}` passed alone that fails in a column"
                raise AssertionError(msg)
            columns = columns.with_columns(column.alias(FIELD_PREFIX + joined.name))
        return Read(columns, pl.DataFrame(dead, schema=DEAD_LETTERS, orient="row"))

    def _decoded(self, value: bytes) -> Any:  # noqa: ANN401 - a struct made at run time
        if len(value) > LARGEST_EVENT_BYTES:
            reason, detail = "too_large", f"{len(value)} bytes; at most {LARGEST_EVENT_BYTES} are read"
            raise DeadLetterError(reason, detail)
        try:
            decoded = self._decoder.decode(value)
        except msgspec.ValidationError as error:
            detail = str(error)
            raise DeadLetterError("missing_field" if "missing required" in detail else "wrong_type", detail) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = "not_json"
            raise DeadLetterError(reason, str(error)) from error
        for number, field in enumerate(self._lookup.fields):
            judge_value(field, getattr(decoded, f"c{number}"))
        return decoded


def joined(
    events: pl.DataFrame, lookup: Lookup, versions: pl.DataFrame, before: Mapping[int, pl.Series] | None = None
) -> pl.DataFrame:
    """Gives events the fields of a lookup; those that it had already are replaced.

    Args:
        events: Rows of `metrics.event.event_schema`, in any order, which is kept.
        lookup: What they are joined with.
        versions: Rows of `version_schema`, in any order.
        before: By topic partition of the lookup, the offset before which versions are known to each event; null: all
            are. None: all versions are known to all events.
    """
    names = [FIELD_PREFIX + field.name for field in lookup.joined]
    wanted = events.select(key=pl.col(FIELD_PREFIX + lookup.key).cast(pl.String), at="event_time").with_row_index("row")
    near = versions.join(wanted.select("key").unique(), on="key", how="semi")
    found = [wanted.clear().select("row").join(near.clear(), how="cross").drop("key", "offset", "is_deleted")]
    for (number,), part in near.partition_by("topic_partition", as_dict=True).items():
        ranked = part.sort("key", "offset").with_row_index("rank")
        hits = _last(wanted, ranked, "at", "valid_from")
        if before is not None:
            known = wanted.with_columns(until=before[number].fill_null(_ALL) - 1)
            # of one key and partition, versions grow by offset and by moment alike: the earlier of both is the answer
            hits = hits.join(_last(known, ranked, "until", "offset"), on="row", suffix="_known")
            hits = hits.select("row", rank=pl.min_horizontal("rank", "rank_known"))
        found.append(hits.join(ranked, on="rank").select(found[0].columns))
    last = (
        pl.concat(found).sort("row", "valid_from", "topic_partition").unique("row", keep="last").select("row", *names)
    )
    matched = wanted.select("row").join(last, on="row", how="left", maintain_order="left").select(names)
    return events.with_columns(_default(matched[FIELD_PREFIX + field.name], field) for field in lookup.joined)


def without_versions(lookups: Sequence[Lookup]) -> dict[str, pl.DataFrame]:
    """No versions of each lookup, by its name."""
    return {lookup.name: pl.DataFrame(schema=version_schema(lookup)) for lookup in lookups}


@dataclass(frozen=True)
class Known:
    """What was known of a lookup when offsets of the events' topic were read.

    Attributes:
        spans: Rows in order of topic_partition and start: topic_partition, start, end (exclusive), and `positions`, by
            topic partition of the lookup the offset before which versions were known. No two overlap.
    """

    spans: tuple[tuple[int, int, int, Mapping[int, int]], ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, int, Mapping[int, int]]]) -> "Known":
        """From what was written, oldest first: for each offset the first row that covers it."""
        spans: dict[int, list[tuple[int, int, Mapping[int, int]]]] = {}
        for topic_partition, start, end, positions in rows:
            spans.setdefault(topic_partition, []).append((start, end, positions))
        return cls(tuple((number, *span) for number in sorted(spans) for span in _first(spans[number])))

    def reach(self, topic_partition: int, start: int) -> int:
        """The first offset, from `start` on, that no span covers."""
        at = max(bisect_right(self.spans, (topic_partition, start), key=lambda span: span[:2]) - 1, 0)
        while at < len(self.spans) and self.spans[at][:2] <= (topic_partition, start):
            if self.spans[at][0] == topic_partition:
                start = max(start, self.spans[at][2])
            at += 1
        return start

    def before(self, events: pl.DataFrame, topic_partitions: Iterable[int]) -> dict[int, pl.Series]:
        """By topic partition of the lookup, the offset before which versions were known to each event; null: unknown.

        A partition of which nothing was known when others were known has no version before offset 0.
        """
        placed = events.select("topic_partition", "offset").with_row_index("row").sort("offset")
        near = placed.join_asof(
            self._frame,
            left_on="offset",
            right_on="start",
            by="topic_partition",
            strategy="backward",
            check_sortedness=False,
        ).sort("row")
        inside = near["offset"] < near["end"]
        found = {}
        for number in set(topic_partitions):
            name = f"p{number}"
            positions = near[name] if name in near.columns else pl.repeat(0, len(near), dtype=pl.Int64, eager=True)
            found[number] = near.select(pl.when(inside).then(positions)).to_series()
        return found

    @cached_property
    def _frame(self) -> pl.DataFrame:
        numbers = sorted({number for *_, positions in self.spans for number in positions})
        schema = {"topic_partition": pl.Int32(), "start": pl.Int64(), "end": pl.Int64()}
        rows = [(number, start, end, *(at.get(n, 0) for n in numbers)) for number, start, end, at in self.spans]
        return pl.DataFrame(rows, schema=schema | {f"p{n}": pl.Int64() for n in numbers}, orient="row").sort("start")


def _first(rows: Sequence[tuple[int, int, Mapping[int, int]]]) -> list[tuple[int, int, Mapping[int, int]]]:
    """Spans without overlap from those of one topic partition, oldest first; neighbours that say the same are one."""
    edges = sorted({edge for start, end, _ in rows for edge in (start, end)})
    place = {edge: index for index, edge in enumerate(edges)}
    # from the oldest row on, each takes what is free; `following` skips what is taken
    owner: list[Mapping[int, int] | None] = [None] * len(edges)
    following = list(range(len(edges) + 1))

    def free(index: int) -> int:
        while following[index] != index:
            following[index] = following[following[index]]
            index = following[index]
        return index

    for start, end, told in rows:
        index = free(place[start])
        while index < place[end]:
            owner[index] = told
            following[index] = index + 1
            index = free(index)
    found: list[tuple[int, int, Mapping[int, int]]] = []
    for index, positions in enumerate(owner):
        if positions is None:
            continue
        start, end = edges[index], edges[index + 1]
        if found and found[-1][1] == start and found[-1][2] == positions:
            start = found.pop()[0]
        found.append((start, end, positions))
    return found


def _last(wanted: pl.DataFrame, ranked: pl.DataFrame, left: str, right: str) -> pl.DataFrame:
    """For each wanted row the rank of its key's last version whose `right` is at most its `left`; those without: none.

    `ranked` is in the order of key and offset, hence of `right` too within a key.
    """
    hits = (
        wanted.filter(pl.col("key").is_not_null())
        .sort(left)
        .join_asof(
            ranked.select("key", "rank", right).sort(right, "rank"),
            left_on=left,
            right_on=right,
            by="key",
            strategy="backward",
            check_sortedness=False,
        )
    )
    return hits.filter(pl.col("rank").is_not_null()).select("row", "rank")


def _default(column: pl.Series, field: Field) -> pl.Series:
    name = FIELD_PREFIX + field.name
    if field.default is None:
        return column.alias(name)
    return column.fill_null(pl.Series([field.default]).cast(column.dtype)[0]).alias(name)


def _text(key: bytes | None) -> str:
    if key is None:
        reason = "no_key"
        raise DeadLetterError(reason, "the record has no key, so it says nothing of anyone")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        reason = "key_is_no_text"
        raise DeadLetterError(reason, str(error)) from error
