"""What `infra.clickhouse` promises, against a real engine, and that the embedded one speaks ClickHouse's HTTP."""

import datetime as dt
import gzip
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import lz4.frame
import polars as pl
import pytest
import urllib3
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError

from infra.clickhouse import ClickHouseUnavailableError, connect, insert_frame, query_frame, quote
from infra.settings import Settings

ENTRIES = pl.List(pl.Struct({"key": pl.UInt16, "value": pl.UInt8}))
NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def database(clickhouse: Settings, unique: str) -> str:
    connect(clickhouse).command(f"CREATE DATABASE {unique}")
    return unique


def _post(settings: Settings, query: str, body: bytes = b"", **headers: str) -> urllib3.BaseHTTPResponse:
    address = f"{settings.clickhouse_address}/?{query}"
    return urllib3.request("POST", address, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_frames_come_back_as_they_went_in(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command(
        "CREATE TABLE t (id Int64, at DateTime64(3, 'UTC'), name LowCardinality(String), registers Map(UInt16, UInt8), "
        "amount Decimal(38, 2), maybe Nullable(Int64), day Date) ENGINE = MergeTree ORDER BY id"
    )
    frame = pl.DataFrame(
        {
            "id": [1, 2, 3],
            "at": [NOON, NOON + dt.timedelta(milliseconds=1), NOON],
            "name": ["", "naïve 'quoted'\n", "c"],
            "registers": [[{"key": 1, "value": 2}], [], [{"key": 3, "value": 4}, {"key": 5, "value": 6}]],
            "amount": [Decimal("1.25"), Decimal("-2.00"), Decimal("12345678901234567890.12")],
            "maybe": [None, 5, 6],
            "day": [dt.date(2024, 5, 1)] * 3,
        },
        schema_overrides={"at": pl.Datetime("ms", "UTC"), "registers": ENTRIES, "amount": pl.Decimal(38, 2)},
    )
    assert insert_frame(client, "t", frame) == 3
    back = query_frame(client, "SELECT * FROM t ORDER BY id")
    assert back.equals(frame)
    assert back.schema == frame.schema


def test_sliced_frames_with_maps_keep_their_rows_apart(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command("CREATE TABLE t (id Int64, m Map(UInt16, UInt8)) ENGINE = MergeTree ORDER BY id")
    rows = [[{"key": k, "value": i} for k in range(i)] for i in range(10)]
    frame = pl.DataFrame({"id": range(10), "m": rows}, schema={"id": pl.Int64, "m": ENTRIES})
    for part in (frame[:3], pl.concat([frame[3:5], frame[5:9]], rechunk=False), frame[9:]):
        insert_frame(client, "t", part)
    assert query_frame(client, "SELECT * FROM t ORDER BY id").equals(frame)


def test_an_empty_frame_sends_nothing_and_an_empty_result_has_its_columns(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id")
    assert insert_frame(client, "t", pl.DataFrame({"id": []}, schema={"id": pl.Int64})) == 0
    assert query_frame(client, "SELECT id FROM t").schema == {"id": pl.Int64}


def test_parameters_are_values_never_sql(clickhouse: Settings) -> None:
    hostile = "x' OR 1=1 --\\\n\t`"
    frame = query_frame(
        connect(clickhouse),
        "SELECT {text:String} AS text, {days:Array(Date)} AS days, {n:Nullable(Int64)} AS n",
        {"text": hostile, "days": [dt.date(2024, 1, 2)], "n": None},
    )
    assert frame.row(0) == (hostile, [dt.date(2024, 1, 2)], None)


def test_quoted_names_may_hold_anything(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    name = quote("odd `name` with \\ and .dots")
    client.command(f"CREATE TABLE {name} (`revenue.total` Int64) ENGINE = MergeTree ORDER BY tuple()")
    insert_frame(client, name, pl.DataFrame({"revenue.total": [7]}))
    assert client.command(f"SELECT sum(`revenue.total`) FROM {name}") == 7


def test_a_repeated_token_inserts_once(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command(
        "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100"
    )
    for _ in range(2):
        insert_frame(client, "t", pl.DataFrame({"id": [1]}), token="chunk 1")
    assert client.command("SELECT count() FROM t") == 1


def test_the_same_rows_without_a_token_are_inserted_each_time(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command(
        "CREATE TABLE t (id Int64, at DateTime64(6) DEFAULT now64(6)) ENGINE = MergeTree ORDER BY id "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    for _ in range(2):
        insert_frame(client, "t", pl.DataFrame({"id": [1]}))
    assert client.command("SELECT count() FROM t") == 2


def test_refusals_carry_the_engines_code_and_text(clickhouse: Settings) -> None:
    client = connect(clickhouse)
    for sql, code in (("SELECT * FROM missing", 60), ("SELEC 1", 62), ("SELECT 1; SELECT 2", 62)):
        with pytest.raises(DatabaseError) as refusal:
            client.query(sql)
        assert refusal.value.code == code
    answer = _post(clickhouse, "", b"SELECT * FROM missing")
    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "60")


def test_a_reader_may_not_write(clickhouse: Settings, database: str) -> None:
    connect(clickhouse, database).command("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id")
    reader = connect(clickhouse, database, options={"readonly": 1})
    assert reader.command("SELECT count() FROM t") == 0
    with pytest.raises(DatabaseError, match="READONLY"):
        reader.command("INSERT INTO t VALUES (1)")
    refused = urllib3.request("GET", f"{clickhouse.clickhouse_address}/?query=DROP+TABLE+{database}.t")
    assert b"READONLY" in refused.data


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("lz4", lz4.frame.compress), ("zstd", zstandard.compress), ("identity", bytes)],
)
def test_bodies_may_be_compressed(clickhouse: Settings, database: str, encoding: str, encode: type[bytes]) -> None:
    client = connect(clickhouse, database)
    client.command("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id")
    body = encode(b"1\n2\n")
    answer = _post(clickhouse, f"database={database}&query=INSERT+INTO+t+FORMAT+CSV", body, content_encoding=encoding)
    assert answer.status == 200, answer.data
    assert client.command("SELECT sum(id) FROM t") == 3


def test_inline_data_that_looks_like_sql_is_data(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command("CREATE TABLE t (`format` String) ENGINE = MergeTree ORDER BY tuple()")
    body = b'INSERT INTO t (`format`) SETTINGS max_threads = 1 FORMAT JSONEachRow\n{"format": "FORMAT \' ( ; SELECT"}\n'
    assert _post(clickhouse, f"database={database}", body).status == 200
    assert client.query("SELECT * FROM t").result_rows == [("FORMAT ' ( ; SELECT",)]


def test_settings_of_a_request_end_with_it_in_a_session_too(clickhouse: Settings, unique: str) -> None:
    session = f"session_id={unique}"
    assert _post(clickhouse, session, b"CREATE TEMPORARY TABLE q AS SELECT 5 AS x").status == 200
    sql = b"SELECT x, getSetting('max_block_size') FROM q"
    before = _post(clickhouse, session, sql).data
    assert _post(clickhouse, f"{session}&max_block_size=77", sql).data == b"5\t77\n"
    assert _post(clickhouse, session, sql).data == before


def test_nothing_of_a_request_is_left_to_the_next(clickhouse: Settings, database: str) -> None:
    told = b"SELECT currentDatabase(), getSetting('max_block_size'), getSetting('readonly')"
    asked = [
        (f"database={database}", f"{database}\t65409\t0\n"),
        (f"database={database}&max_block_size=77", f"{database}\t77\t0\n"),
        ("max_block_size=77&readonly=2", "default\t77\t2\n"),
        ("", "default\t65409\t0\n"),
    ]
    changing = (
        b"SET max_block_size = 5",
        f"USE {database}".encode(),
        b"CREATE TEMPORARY TABLE left_over AS SELECT 1 AS x",
        b"SELECT throwIf(1)",
        b"SELECT getSetting('max_block_size') SETTINGS max_block_size = 6",
    )
    for change in changing:
        for query, answer in (*asked, *reversed(asked)):
            assert _post(clickhouse, query, told).data.decode() == answer
            _post(clickhouse, query, change)
    assert _post(clickhouse, "", b"SELECT * FROM left_over").status == 404


def test_pages_of_other_sites_are_refused(clickhouse: Settings) -> None:
    assert _post(clickhouse, "", b"SELECT 1", origin="http://elsewhere.example").status == 403
    assert _post(clickhouse, "", b"SELECT 1", host="rebound.example").status == 403
    assert _post(clickhouse, "", b"SELECT 1").data == b"1\n"


def test_readers_and_writers_work_at_once(clickhouse: Settings, database: str) -> None:
    client = connect(clickhouse, database)
    client.command("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id")

    def work(number: int) -> int:
        insert_frame(client, "t", pl.DataFrame({"id": range(number * 1000, (number + 1) * 1000)}))
        return int(client.command("SELECT count() FROM t"))

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(16)))
    assert max(counts) == 16_000
    assert client.command("SELECT uniqExact(id) FROM t") == 16_000


def test_a_server_that_is_away_is_named_with_the_way_out(settings: Settings) -> None:
    nobody = settings.model_copy(update={"clickhouse_url": "http://127.0.0.1:1"})
    with pytest.raises(ClickHouseUnavailableError, match=r"no ClickHouse answered at `http://127.0.0.1:1` within 0 s"):
        connect(nobody, wait_seconds=0)
