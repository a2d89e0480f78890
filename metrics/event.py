"""Events: from the bytes of a topic partition to typed columns, and the dead letters that cannot become such.

Every record is judged alone: whether it is an event, and which, never depends on the records it was read with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import polars as pl

from metrics.catalog import Catalog, Field
from metrics.window import milliseconds, parse_duration, to_epoch_ms

LARGEST_EVENT_BYTES = 1_000_000
FURTHEST_AHEAD_MS = milliseconds(parse_duration("5m"))
"""How far an event's time may be after its record's timestamp, before a clock that runs ahead is assumed."""

LATEST_EVENT_TIME = to_epoch_ms(datetime(2200, 1, 1, tzinfo=UTC))
INTEGER_DIGITS = 18
"""Digits that a decimal may have before its point; `metrics.totals` says how many such values add up exactly."""

LARGEST_FLOAT = 1e100
"""The greatest magnitude of a float: sums of 10**18 such values, and of their squares, stay finite."""

FIELD_PREFIX = "f_"
DTYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
}
DEAD_LETTERS = {
    "topic_partition": pl.Int32(),
    "offset": pl.Int64(),
    "record_time": pl.Int64(),
    "reason": pl.String(),
    "detail": pl.String(),
}

VALUE_TYPES: dict[str, Any] = {
    "string": str,
    "int": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "float": float,
    "bool": bool,
    "decimal": Decimal,
}
"""What a value of each type is read as."""

_WIDE = Context(prec=INTEGER_DIGITS + 40, Emax=10_000, Emin=-10_000)
_FEW, _PARTS = 256, 8
"""More records than so few are taken apart around a bad one, into so many parts, before each is looked at."""

_TOGETHER = 16_384
"""Records that are decoded at once at most, so that a bad one costs its neighbours little."""

_SAFE_TIME = 2**53
"""Times beyond it, in any unit, are looked at one by one: here they could overflow."""

_JUDGED = ("decimal", "float")
"""Types of which not every value fits a field."""

_EVENT_ID = attrgetter("event_id")
_TEXTS = {Decimal: str, Decimal | None: str | None}
_TIME_SCALE = {"us": (1, 1_000), "ms": (1, 1), "s": (1_000, 1)}


class DeadLetterError(Exception):
    """Why a record is no event: a reason for machines and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


Unframe = Callable[[bytes], Mapping[str, Any]]
"""Takes a record's bytes apart into its fields, for a format other than JSON.

It gives values as they were written: text, int, float, bool, Decimal or None, the event time in the catalog's unit;
whether they are what the catalog asks for is judged here, as for JSON. It raises `DeadLetterError` for bytes that hold
no such record, whenever they are read; for what keeps it from knowing (a registry that is away), any other error.
"""


@dataclass(frozen=True)
class Decoded:
    """What a run of records holds.

    Attributes:
        events: Rows in offset order: the columns of `event_schema`.
        dead_letters: Rows in offset order: topic_partition, offset, record_time, reason, detail.
        event_ids: The ids of `events`.
    """

    events: pl.DataFrame
    dead_letters: pl.DataFrame
    event_ids: list[str]


def dtype_of(field: Field) -> pl.DataType:
    """The polars type of a field's column."""
    return pl.Decimal(38, field.scale) if field.type == "decimal" else DTYPES[field.type]


def event_schema(catalog: Catalog) -> dict[str, pl.DataType]:
    """Names and types of the columns of decoded events; of the fields, those that something is computed from."""
    used = catalog.used | {lookup.key for lookup in catalog.lookups}
    return {
        "topic_partition": pl.Int32(),
        "offset": pl.Int64(),
        "record_time": pl.Int64(),
        "event_id": pl.String(),
        "event_time": pl.Int64(),
    } | {FIELD_PREFIX + field.name: dtype_of(field) for field in catalog.fields.values() if field.name in used}


class Decoder:
    """Decodes the records of a source as its catalog describes them.

    Args:
        catalog: Of the source.
        unframe: How records are read whose format is not JSON.

    Raises:
        ValueError: The catalog's format needs `unframe`, and there is none.
    """

    def __init__(self, catalog: Catalog, unframe: Unframe | None = None) -> None:
        if (unframe is None) != (catalog.format == "json"):
            msg = f"`unframe` reads every format but json; got {unframe} for `{catalog.format}`. pass what infra makes"
            raise ValueError(msg)
        self._catalog = catalog
        self._unframe = unframe
        self._schema = event_schema(catalog)
        self._fields = tuple(catalog.fields.values())
        time_type = str if catalog.event_time_unit == "iso" else VALUE_TYPES["int"]
        members: list[tuple[Any, ...]] = [("event_id", str), ("event_time", time_type)]
        names = {"event_id": catalog.event_id, "event_time": catalog.event_time_field}
        self._attributes: dict[str, str] = {}
        for number, field in enumerate(self._fields):
            if field.name == catalog.event_id:
                self._attributes[field.name] = "event_id"
                continue
            if field.name == catalog.event_time_field:
                self._attributes[field.name] = "event_time"
                continue
            attribute = f"c{number}"
            self._attributes[field.name] = attribute
            names[attribute] = field.name
            kind = VALUE_TYPES[field.type]
            members.append((attribute, kind) if field.required else (attribute, kind | None, None))
        self._envelope = _struct(members, names)
        self._decoder = msgspec.json.Decoder(self._envelope)
        # Most write a decimal as text; read as such it takes half the time of a `Decimal`.
        texts = [(name, _TEXTS.get(kind, kind), *default) for name, kind, *default in members]
        self._together = [msgspec.json.Decoder(_struct(texts, names)), self._decoder]

    def fields(self, value: bytes) -> dict[str, Any]:
        """The typed fields of one event, its id and time among them, as they stand in it: without defaults.

        Raises:
            DeadLetterError: The bytes hold no event, whenever it was sent.
        """
        envelope = self._decode_value(value)
        self._judge_time(envelope, LATEST_EVENT_TIME)
        self._judge_fields(envelope)
        named = {self._catalog.event_id: "event_id", self._catalog.event_time_field: "event_time"} | self._attributes
        return {name: getattr(envelope, attribute) for name, attribute in named.items()}

    def decode(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> Decoded:
        """Decodes records of one topic partition, given in offset order; times in milliseconds since the epoch."""
        step = _TOGETHER
        if len(values) <= step:
            for envelopes in self._decode_together(values):
                columns = self._columns(envelopes, topic_partition, offsets, record_times)
                if columns is not None:
                    return Decoded(columns, pl.DataFrame(schema=DEAD_LETTERS), [*map(_EVENT_ID, envelopes)])
            if len(values) <= _FEW:
                return self._decode_one_by_one(topic_partition, offsets, record_times, values)
            step = -(-len(values) // _PARTS)
        cuts = [slice(start, start + step) for start in range(0, len(values), step)]
        parts = [self.decode(topic_partition, offsets[cut], record_times[cut], values[cut]) for cut in cuts]
        return Decoded(
            pl.concat([part.events for part in parts]),
            pl.concat([part.dead_letters for part in parts]),
            [event_id for part in parts for event_id in part.event_ids],
        )

    def _decode_together(self, values: Sequence[bytes | None]) -> Iterator[list[Any]]:
        """All envelopes by one call, in the ways that may do; nothing where a record may be bad."""
        if not values or None in values or max(map(len, values)) > LARGEST_EVENT_BYTES:  # type: ignore[arg-type]
            return
        if self._unframe is not None:
            with suppress(DeadLetterError, msgspec.ValidationError):
                yield msgspec.convert([*map(self._unframe, values)], list[self._envelope])  # type: ignore[arg-type, name-defined]
            return
        lines = b"\n".join(values)  # type: ignore[arg-type]
        if lines.count(b"\n") != len(values) - 1:
            return
        for decoder in tuple(self._together):
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                envelopes = decoder.decode_lines(lines)
                if len(envelopes) == len(values):
                    yield envelopes
            # not taken: the other way is tried first from now on
            self._together.reverse()

    def _decode_one_by_one(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> Decoded:
        envelopes: list[Any] = []
        good: list[int] = []
        dead: list[tuple[int, int, int, str, str]] = []
        for index, value in enumerate(values):
            try:
                envelope = self._decode_value(value)
                self._judge_time(envelope, record_times[index])
                self._judge_fields(envelope)
            except DeadLetterError as error:
                dead.append((topic_partition, offsets[index], record_times[index], error.reason, error.detail))
                continue
            envelopes.append(envelope)
            good.append(index)
        events = self._columns(envelopes, topic_partition, [offsets[i] for i in good], [record_times[i] for i in good])
        if events is None:
            msg = "a record passed alone that fails in columns; the two checks of `Decoder` disagree"
            raise AssertionError(msg)
        ids = [*map(_EVENT_ID, envelopes)]
        return Decoded(events, pl.DataFrame(dead, schema=DEAD_LETTERS, orient="row"), ids)

    def _decode_value(self, value: bytes | None) -> Any:  # noqa: ANN401 - a struct made at run time
        if value is None:
            reason = "no_value"
            raise DeadLetterError(reason, "the record has no value")
        if len(value) > LARGEST_EVENT_BYTES:
            reason, detail = "too_large", f"{len(value)} bytes; at most {LARGEST_EVENT_BYTES} are read"
            raise DeadLetterError(reason, detail)
        try:
            if self._unframe is not None:
                return msgspec.convert(self._unframe(value), self._envelope)
            return self._decoder.decode(value)
        except msgspec.ValidationError as error:
            detail = str(error)
            raise DeadLetterError("missing_field" if "missing required" in detail else "wrong_type", detail) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = "not_json"
            raise DeadLetterError(reason, str(error)) from error

    def _judge_time(self, envelope: Any, record_time: int) -> None:  # noqa: ANN401
        try:
            event_time = self._event_time(envelope.event_time)
        except ValueError as error:
            reason = "wrong_type"
            raise DeadLetterError(reason, str(error)) from error
        if not 0 <= event_time < LATEST_EVENT_TIME:
            reason, detail = "event_time_out_of_range", f"{envelope.event_time} is not between 1970 and 2200"
            raise DeadLetterError(reason, detail)
        if event_time - record_time > FURTHEST_AHEAD_MS:
            reason = "event_time_in_future"
            detail = (
                f"{event_time - record_time} ms after the record's timestamp; at most {FURTHEST_AHEAD_MS} are allowed"
            )
            raise DeadLetterError(reason, detail)

    def _judge_fields(self, envelope: Any) -> None:  # noqa: ANN401
        for field in self._fields:
            judge_value(field, getattr(envelope, self._attributes[field.name]))

    def _event_time(self, value: Any) -> int:  # noqa: ANN401
        if self._catalog.event_time_unit == "iso":
            moment = datetime.fromisoformat(value)
            return to_epoch_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        factor, divisor = _TIME_SCALE[self._catalog.event_time_unit]
        return int(value) * factor // divisor

    def _event_times(self, written: list[Any]) -> pl.Series | None:
        """Event times in ms, or None where one of them needs a closer look."""
        try:
            if self._catalog.event_time_unit == "iso":
                return pl.Series([*map(self._event_time, written)], dtype=pl.Int64)
            factor, divisor = _TIME_SCALE[self._catalog.event_time_unit]
            times = pl.Series(written, dtype=pl.Int64)
            if not times.is_between(-_SAFE_TIME, _SAFE_TIME).all():
                return None
            return times if factor == divisor else times * factor // divisor
        except (ValueError, OverflowError, TypeError):
            return None

    def _columns(
        self, envelopes: list[Any], topic_partition: int, offsets: Sequence[int], record_times: Sequence[int]
    ) -> pl.DataFrame | None:
        """The events in columns, or None where one of them needs a closer look."""
        event_time = self._event_times([*map(attrgetter("event_time"), envelopes)])
        if event_time is None:
            return None
        record_time = pl.Series(record_times, dtype=pl.Int64)
        plausible = (
            (event_time >= 0) & (event_time < LATEST_EVENT_TIME) & (event_time - record_time <= FURTHEST_AHEAD_MS)
        )
        if not plausible.all():
            return None
        columns: dict[str, pl.Series] = {
            "topic_partition": pl.repeat(topic_partition, len(envelopes), dtype=pl.Int32, eager=True),
            "offset": pl.Series(offsets, dtype=pl.Int64),
            "record_time": record_time,
            "event_id": pl.Series([*map(_EVENT_ID, envelopes)], dtype=pl.String),
            "event_time": event_time,
        }
        for field in self._fields:
            name = FIELD_PREFIX + field.name
            if name not in self._schema and field.type not in _JUDGED:
                continue
            column = column_of(field, [*map(attrgetter(self._attributes[field.name]), envelopes)])
            if column is None:
                return None
            if name in self._schema:
                columns[name] = column
        return pl.DataFrame(columns, schema=self._schema)


def judge_value(field: Field, value: Any) -> None:  # noqa: ANN401 - any value
    """Judges what a type alone does not say: digits and magnitude.

    Raises:
        DeadLetterError: The value does not fit the field.
    """
    if field.type == "decimal" and value is not None and _exact_text(value, field.scale) is None:
        reason = "wrong_type"
        detail = f"`{field.name}` must have at most {INTEGER_DIGITS} digits and {field.scale} decimals; got {value}"
        raise DeadLetterError(reason, detail)
    if field.type == "float" and value is not None and not abs(value) <= LARGEST_FLOAT:
        reason, detail = "wrong_type", f"`{field.name}` must lie within 1e100 of zero; got {value}"
        raise DeadLetterError(reason, detail)


def default_of(field: Field) -> str | int | float | bool | None:
    """A field's default as an event could have it: a decimal with all decimals of its scale, zero without a sign.

    Raises:
        DeadLetterError: An event with this value would be a dead letter.
    """
    if field.default is None:
        return None
    if field.type == "decimal" and isinstance(field.default, float):
        reason = "wrong_type"
        raise DeadLetterError(reason, f"a float has not the digits of a decimal; got {field.default}")
    try:
        value = msgspec.convert(field.default, VALUE_TYPES[field.type])
    except msgspec.ValidationError as error:
        reason = "wrong_type"
        raise DeadLetterError(reason, str(error)) from error
    judge_value(field, value)
    if field.type == "decimal":
        return f"{value or Decimal(0):.{field.scale}f}"
    return value + 0.0 if field.type == "float" else value  # type: ignore[no-any-return]


def column_of(field: Field, values: list[Any]) -> pl.Series | None:
    """The values of a field as a column with its default, or None where one of them does not fit."""
    if field.type == "decimal":
        text = (
            values if all(type(value) is str for value in values) else [None if v is None else str(v) for v in values]
        )
        texts = pl.Series(text, dtype=pl.String)
        if not texts.str.contains(_plain_decimal(field.scale)).fill_null(value=True).all():
            if any(isinstance(value, str) for value in values):
                return None
            exact = [None if value is None else _exact_text(value, field.scale) for value in values]
            if any(text is None and value is not None for text, value in zip(exact, values, strict=True)):
                return None
            texts = pl.Series(exact, dtype=pl.String)
        column = texts.cast(dtype_of(field))
    else:
        column = pl.Series(values, dtype=dtype_of(field), strict=field.type != "float")
        if field.type == "float":
            if not (column.abs() <= LARGEST_FLOAT).fill_null(value=True).all():
                return None
            column = column.set(column == 0, 0.0)  # the negative zero is the positive one
    if field.default is not None:
        return column.fill_null(pl.Series([field.default]).cast(column.dtype)[0])
    return column


def _plain_decimal(scale: int) -> str:
    fraction = rf"(\.[0-9]{{1,{scale}}})?" if scale else ""
    return rf"^-?[0-9]{{1,{INTEGER_DIGITS}}}{fraction}$"


def _struct(members: Sequence[tuple[Any, ...]], names: Mapping[str, str]) -> type[msgspec.Struct]:
    return msgspec.defstruct("Envelope", members, rename=dict(names), kw_only=True, gc=False)


def _exact_text(value: Decimal, scale: int) -> str | None:
    """The value in plain digits, or None where it does not fit the field without rounding."""
    if not value.is_finite() or (value and value.adjusted() >= INTEGER_DIGITS):
        return None
    if value != value.quantize(Decimal(1).scaleb(-scale), context=_WIDE):
        return None
    return f"{value:.{scale}f}"
