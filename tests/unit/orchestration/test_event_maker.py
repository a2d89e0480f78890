"""Rows into events: times, types, ids, keys and what is rejected."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog, Field
from orchestration.event_maker import EventMaker, Moment, parse_time
from orchestration.external_sort import Row
from orchestration.row_files import IngestError, Line, Rejected, RowFile

NOW = 1_750_000_000_000
AT = 1_704_067_200_000  # 2024-01-01T00:00:00Z
CATALOG = replace(
    load_catalog(Path(__file__).parents[2] / "data" / "clickstream.yaml"),
    event_time_field="ts",
    key="user",
    fields={field.name: field for field in (Field("user", "string", required=True), Field("n", "int", default=0))},
)


def made(tmp_path: Path, content: str, catalog: Catalog = CATALOG, arrival: str | None = None, name: str = "a.csv"):  # noqa: ANN201
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with RowFile(path) as file:
        maker = EventMaker(catalog, file, NOW, arrival)
        return [maker.make(row) for row in file.rows() if isinstance(row, Line)]


def values(rows: list[Row | Rejected]) -> list[dict[str, object]]:
    return [json.loads(row.value) for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    "value",
    [
        "2024-01-01 00:00:00", "2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00", "2024-01-01 00:00:00 UTC",
        "2024-01-01", "1704067200000", 1704067200000, 1704067200000.0, Decimal(1704067200000), date(2024, 1, 1),
        datetime(2024, 1, 1), datetime(2024, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5.5))),  # noqa: DTZ001
    ],
)  # fmt: skip
def test_a_time_is_read_in_every_common_notation(value: object) -> None:
    assert parse_time(value, "ms", "ts") == Moment(AT, AT)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1704067200, "s", Moment(AT, 1704067200)),
        ("1704067200.75", "s", Moment(AT, 1704067200)),
        (1704067200000999, "us", Moment(AT, 1704067200000999)),
        ("2024-01-01T00:00:00.250", "s", Moment(AT, 1704067200)),
        ("2024-01-01T00:00:00.250", "ms", Moment(AT + 250, AT + 250)),
        ("2024-01-01T01:00:00.25+01:00", "iso", Moment(AT + 250, "2024-01-01T00:00:00.250000Z")),
        ("1969-12-31T23:59:59.999", "ms", Moment(-1, -1)),
    ],
)
def test_a_time_is_written_in_the_unit_of_the_catalog(value: object, unit: str, expected: Moment) -> None:
    assert parse_time(value, unit, "ts") == expected


@pytest.mark.parametrize("value", ["yesterday", "", True, None, float("nan"), float("inf"), [1], "2024-13-01", "."])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="`ts` must be a time; got"):
        parse_time(value, "ms", "ts")


def test_a_number_is_no_iso_time() -> None:
    with pytest.raises(ValueError, match="must be an ISO 8601 time"):
        parse_time(17, "iso", "ts")


def test_the_id_of_a_row_is_its_content_where_the_file_has_none(tmp_path: Path) -> None:
    rows = made(tmp_path, "user,ts\nu1,2024-01-01\nu1,2024-01-01\nu2,2024-01-01\n")
    first, copy, other = (event["event_id"] for event in values(rows))
    assert first == copy != other
    assert len(str(first)) == 32


def test_the_same_content_has_the_same_id_whatever_the_format_or_the_order_of_columns(tmp_path: Path) -> None:
    pl.DataFrame({"n": [7], "ts": [datetime(2024, 1, 1, tzinfo=UTC)], "user": ["u1"]}).write_parquet(tmp_path / "a.pq")
    with RowFile(tmp_path / "a.pq") as file:
        maker = EventMaker(CATALOG, file, NOW)
        parquet = [maker.make(row) for row in file.rows() if isinstance(row, Line)]
    table = made(tmp_path, "user,ts,n\nu1,2024-01-01,7\n")
    objects = made(tmp_path, '{"ts": 1704067200000, "user":"u1", "n":7}\n', name="a.ndjson")
    assert values(parquet) == values(table) == values(objects)


def test_the_id_is_taken_from_the_field_where_the_file_has_one(tmp_path: Path) -> None:
    rows = made(tmp_path, "event_id,user,ts\n17,u1,2024-01-01\n")
    assert values(rows) == [{"event_id": "17", "user": "u1", "ts": AT}]
    rows = made(tmp_path, '{"event_id": 17, "user": "u1", "ts": 1704067200000}\n', name="a.ndjson")
    assert values(rows) == [{"event_id": "17", "user": "u1", "ts": AT}]


def test_cells_get_the_type_of_their_field_and_stay_as_they_are_where_they_do_not_fit(tmp_path: Path) -> None:
    rows = made(tmp_path, "event_id,user,ts,n,extra\na,1,2024-01-01,5,6\nb,1,2024-01-01,many,\n")
    assert values(rows) == [
        {"event_id": "a", "user": "1", "ts": AT, "n": 5, "extra": "6"},
        {"event_id": "b", "user": "1", "ts": AT, "n": "many"},
    ]


def test_rows_are_keyed_as_the_catalog_says(tmp_path: Path) -> None:
    content = "event_id,user,ts\na,u1,2024-01-01\n"
    (by_user,) = made(tmp_path, content)
    (by_id,) = made(tmp_path, content, replace(CATALOG, key="event_id"))
    assert (by_user.key, by_user.partition) == (b"u1", -1)
    assert by_id.key == b"a"


def test_copies_without_a_key_share_a_partition(tmp_path: Path) -> None:
    content = "event_id,user,ts\n" + "".join(f"{n % 20},u,2024-01-01\n" for n in range(40))
    rows = made(tmp_path, content, replace(CATALOG, key=None))
    places = [row.partition for row in rows if isinstance(row, Row)]
    assert places[:20] == places[20:]
    assert set(places) == {0, 1, 2, 3}
    assert all(row.key is None for row in rows if isinstance(row, Row))


def test_the_arrival_is_a_column_or_else_the_event_time(tmp_path: Path) -> None:
    content = "user,ts,got\nu1,2024-01-01,2024-01-02\n"
    assert [row.at for row in made(tmp_path, content)] == [AT]
    assert [row.at for row in made(tmp_path, content, arrival="got")] == [AT + 86_400_000]


def test_rows_without_a_readable_time_are_rejected_with_their_line(tmp_path: Path) -> None:
    rows = made(tmp_path, "user,ts\nu1,soon\nu2,\nu3,2024-01-01\n")
    assert rows[0] == Rejected(2, "`ts` must be a time; got 'soon'", '{"user":"u1","ts":"soon"}')
    assert rows[1] == Rejected(3, "`ts` must be a time; the row has none", '{"user":"u2"}')
    assert isinstance(rows[2], Row)


def test_an_arrival_in_the_future_or_before_1970_is_rejected(tmp_path: Path) -> None:
    rows = made(tmp_path, "user,ts\nu1,2999-01-01\nu2,1960-01-01\n")
    assert all(isinstance(row, Rejected) and "must lie between 1970 and now" in row.reason for row in rows)


def test_text_that_is_not_utf8_is_rejected_and_kept(tmp_path: Path) -> None:
    (row,) = made(tmp_path, "user,ts\nu\udcff,2024-01-01\n")
    assert isinstance(row, Rejected)
    assert "must be UTF-8" in row.reason


@pytest.mark.parametrize(
    ("content", "arrival", "message"),
    [
        ("user,n\nu,1\n", None, "the event time needs the column `ts`; `.*a.csv` has user, n"),
        ("ts,n\n1,1\n", None, "needs the column `user`"),
        ("user,ts\nu,1\n", "got", "the arrival needs the column `got`; .* or by --arrival"),
    ],
)
def test_a_file_without_a_needed_column_is_refused(
    tmp_path: Path, content: str, arrival: str | None, message: str
) -> None:
    with pytest.raises(IngestError, match=message):
        made(tmp_path, content, arrival=arrival)
