"""Makes events of rows: times in the catalog's unit, fields in its types, an id where there is none, and the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import xxhash

from metrics.catalog import Catalog
from metrics.event import DeadLetterError
from orchestration.external_sort import Row
from orchestration.row_files import IngestError, Line, Rejected, RowFile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = _EPOCH.replace(tzinfo=None)
_MILLISECOND = timedelta(milliseconds=1)
_CLOCKS_DIFFER_MS = 300_000
_PER_UNIT = {"us": (1, 1_000), "ms": (1, 1), "s": (1_000, 1)}
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class Moment(NamedTuple):
    """A time as milliseconds since the epoch, and as the event is to say it."""

    ms: int
    written: int | str


class EventMaker:
    """Turns the rows of one file into events of a catalog's topic.

    An arrival in the future would drag the watermark, and a broker refuses it, so such a row is rejected.

    The event id is the file's `event_id` field; a file without that column gets ids made from the content: the xxh3
    hash (128 bits, hex) of the row's fields as JSON with sorted names, so that a copy of a row is a duplicate of it.

    Args:
        catalog: of the source.
        file: its columns are checked.
        now: milliseconds since the epoch; nothing can have arrived after it.
        arrival: column of the arrival; None: the event time is the arrival.
        encode: makes an event in JSON one of the catalog's format; None: it is JSON.

    Raises:
        IngestError: the file lacks a column.
    """

    def __init__(
        self,
        catalog: Catalog,
        file: RowFile,
        now: int,
        arrival: str | None = None,
        encode: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._catalog = catalog
        self._encode = encode
        self._arrival = arrival
        self._latest = now + _CLOCKS_DIFFER_MS
        self._raw_json = file.format == "ndjson"
        self._from_content = catalog.event_id not in file.columns
        named = {"event time": catalog.event_time_field, "arrival": arrival, "key": catalog.key}
        if catalog.key == catalog.event_id:
            del named["key"]
        named |= {f"field `{field.name}`": field.name for field in catalog.fields.values() if field.required}
        if not self._raw_json:  # rows of a table have every field, those of NDJSON only what they need
            named |= {f"field `{field.name}`": field.name for field in catalog.fields.values() if field.default is None}
        made = {catalog.event_id} if self._from_content else set()
        for role, column in named.items():
            if column is not None and column not in file.columns and column not in made:
                message = (
                    f"the {role} needs the column `{column}`; `{file.path}` has {', '.join(file.columns) or 'none'}. "
                    "name one of them in the catalog" + (" or by --arrival" if role == "arrival" else "")
                )
                raise IngestError(message)
        self._encoder = msgspec.json.Encoder(order="sorted" if self._from_content else None)
        self._types = {field.name: field.type for field in catalog.fields.values()}
        self._types |= {catalog.event_id: "string"}
        # The cells of a text file are strings already; raw JSON stays as it is; Parquet holds anything.
        self._typed: tuple[str, ...] | None = {"ndjson": (), "parquet": None}.get(
            file.format, tuple(name for name, kind in self._types.items() if kind not in {"string", "decimal"})
        )

    @property
    def ids_from_content(self) -> bool:
        """Whether event ids are made, as the file has none."""
        return self._from_content

    def make(self, line: Line) -> Row | Rejected:
        """The event of a row, or why there is none: its time cannot be read, or it is not UTF-8.

        A value that is not of its field's type goes into the event as it stands, for the layers to judge; where the
        format has no place for it, there is no event.
        """
        catalog = self._catalog
        values = dict(line.values)
        try:
            moment = self._moment(values, catalog.event_time_field)
            at = self._arrived(moment if self._arrival is None else self._moment(values, self._arrival))
        except ValueError as error:
            return Rejected(line.number, str(error), self._text(line.values))
        for name in self._typed if self._typed is not None else values:
            if name in values:
                values[name] = _typed(values[name], self._types.get(name))
        values[catalog.event_time_field] = moment.written
        try:
            event_id, value = self._identified(values)
        except (UnicodeEncodeError, TypeError) as error:
            return Rejected(line.number, f"a row must be UTF-8 text; {error}", self._text(line.values))
        if self._encode is not None:
            try:
                value = self._encode(value)
            except DeadLetterError as error:
                return Rejected(line.number, error.detail, self._text(line.values))
        key = event_id if catalog.key == catalog.event_id else self._key(values)
        if key is None:  # copies of an event must share a partition, key or not
            return Row(at, line.number, None, value, xxhash.xxh3_64_intdigest(event_id) % catalog.topic_partitions)
        return Row(at, line.number, key, value, -1)

    def _moment(self, values: Mapping[str, Any], column: str) -> Moment:
        if column not in values:
            message = f"`{column}` must be a time; the row has none"
            raise ValueError(message)
        value = values[column]
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value)
        return parse_time(value, self._catalog.event_time_unit, column)

    def _arrived(self, moment: Moment) -> int:
        if 0 <= moment.ms <= self._latest:
            return moment.ms
        message = (
            f"`{self._arrival or self._catalog.event_time_field}` is the arrival and must lie between 1970 and now; "
            f"got {moment.written}"
        )
        raise ValueError(message)

    def _identified(self, values: dict[str, Any]) -> tuple[bytes, bytes]:
        name = self._catalog.event_id
        if self._from_content:
            body = self._encoder.encode(values)
            made = xxhash.xxh3_128_hexdigest(body).encode()
            return made, b'{%s:"%s",%s' % (msgspec.json.encode(name), made, body[1:])
        if self._raw_json and name in values:
            given = msgspec.json.decode(values[name])
            if isinstance(given, int) and not isinstance(given, bool):
                values[name] = str(given)
        return _bytes(values.get(name)) or b"", self._encoder.encode(values)

    def _key(self, values: Mapping[str, Any]) -> bytes | None:
        return None if self._catalog.key is None else _bytes(values.get(self._catalog.key))

    def _text(self, values: Mapping[str, Any]) -> str:
        shown = {
            name: value if isinstance(value, msgspec.Raw) else str(value).encode("utf-8", "replace").decode()
            for name, value in values.items()
        }
        return msgspec.json.encode(shown).decode()


def parse_time(value: object, unit: str, column: str) -> Moment:
    """A time of a file: ISO 8601 or `YYYY-MM-DD HH:MM:SS` (UTC unless it says otherwise), or a number in `unit`.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        text = value.strip()
        if _number(text):
            return _epoch(text, unit, column)
        try:
            moment = datetime.fromisoformat(text.removesuffix(" UTC"))
        except ValueError:
            message = f"`{column}` must be a time; got {value!r}"
            raise ValueError(message) from None
        return _written(moment, unit)
    if isinstance(value, datetime):
        return _written(value, unit)
    if isinstance(value, date):
        return _written(datetime(value.year, value.month, value.day, tzinfo=UTC), unit)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return _epoch(str(value), unit, column)
    message = f"`{column}` must be a time; got {value!r}"
    raise ValueError(message)


def _number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdigit()


def _epoch(text: str, unit: str, column: str) -> Moment:
    if unit not in _PER_UNIT:
        message = f"`{column}` must be an ISO 8601 time, as the catalog says; got {text}"
        raise ValueError(message)
    factor, divisor = _PER_UNIT[unit]
    number = math.floor(Decimal(text))
    return Moment(number * factor // divisor, number)


def _written(moment: datetime, unit: str) -> Moment:
    """A time in the event's unit; cut down to it, and counted as what the event says."""
    since = moment - (_EPOCH if moment.tzinfo else _NAIVE_EPOCH)
    if unit == "iso":
        return Moment(since // _MILLISECOND, (_NAIVE_EPOCH + since).isoformat() + "Z")
    if unit == "us":
        return Moment(since // _MILLISECOND, since // timedelta(microseconds=1))
    if unit == "s":
        seconds = since // timedelta(seconds=1)
        return Moment(seconds * 1000, seconds)
    return Moment(since // _MILLISECOND, since // _MILLISECOND)


def _typed(value: object, kind: str | None) -> object:  # noqa: PLR0911 - a return a type
    """A cell as its field's type has it; as it stands where it does not fit."""
    if isinstance(value, datetime | date):
        return _written(value, "iso").written if isinstance(value, datetime) else value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if kind == "string":
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if not isinstance(value, str):
        return value
    if kind == "bool":
        return _BOOLEANS.get(value.lower(), value)
    try:
        if kind == "int":
            return int(value)
        if kind == "float" and math.isfinite(number := float(value)):
            return number
    except ValueError:
        return value
    return value


def _bytes(value: object) -> bytes | None:
    if isinstance(value, msgspec.Raw):
        value = msgspec.json.decode(value)
    if value is None:
        return None
    return (value if isinstance(value, str) else msgspec.json.encode(value).decode()).encode()
