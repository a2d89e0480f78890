"""Where the data of an INSERT start, and which words of a statement are clauses."""

import pytest

from infra.clickhouse_statement import read_statement


@pytest.mark.parametrize(
    ("body", "expected", "data"),
    [
        (
            b"INSERT INTO t (a, b) FORMAT Native\n\x00\x01",
            "INSERT INTO t (a, b) FROM INFILE 'f' FORMAT Native",
            b"\x00\x01",
        ),
        (b"insert into t format CSV 1,2", "insert into t FROM INFILE 'f' format CSV", b"1,2"),
        (
            b"INSERT INTO t SETTINGS a = 1 FORMAT CSV\r\n1",
            "INSERT INTO t FROM INFILE 'f' SETTINGS a = 1 FORMAT CSV",
            b"1",
        ),
        (
            b"INSERT INTO t (`format`, `x y`) /* FORMAT x */ FORMAT TSV\n\n",
            "INSERT INTO t (`format`, `x y`) /* FORMAT x */ FROM INFILE 'f' FORMAT TSV",
            b"\n",
        ),
        (b"INSERT INTO t FORMAT Arrow\n SELECT 1", "INSERT INTO t FROM INFILE 'f' FORMAT Arrow", b" SELECT 1"),
    ],
)
def test_inline_data_start_after_the_format(body: bytes, expected: str, data: bytes) -> None:
    statement = read_statement(body)
    assert " ".join(statement.reading("f").split()) == expected
    assert body[statement.data_at :] == data
    assert not statement.returns_rows


@pytest.mark.parametrize(
    "body",
    [
        b"INSERT INTO t VALUES (1, 'FORMAT CSV')",
        b"INSERT INTO t FORMAT Values (1)",
        b"INSERT INTO t SELECT 1 AS format FROM u",
        b"WITH 1 AS x SELECT x",
    ],
)
def test_statements_without_inline_data_are_left_alone(body: bytes) -> None:
    statement = read_statement(body)
    assert (statement.sql, statement.data_at) == (body.decode(), None)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (b"SELECT 1 FORMAT JSON", "JSON"),
        (b"SELECT 'FORMAT CSV'", None),
        (b"SELECT * FROM (SELECT 1 FORMAT TSV)", None),
        (b"-- FORMAT CSV\nSELECT 1 -- FORMAT CSV", None),
        (b"(SELECT 1) FORMAT CSV;", "CSV"),
    ],
)
def test_the_format_clause_is_the_one_outside_of_everything(body: bytes, output: str | None) -> None:
    assert read_statement(body).format == output


@pytest.mark.parametrize("body", [b"SELECT 1", b"  (SELECT 1)", b"/* x */ show tables", b"with 1 as x select x"])
def test_queries_return_rows(body: bytes) -> None:
    assert read_statement(body).returns_rows


@pytest.mark.parametrize("body", [b"CREATE TABLE t (a Int8)", b"SYSTEM FLUSH LOGS", b""])
def test_commands_return_none(body: bytes) -> None:
    assert not read_statement(body).returns_rows


@pytest.mark.parametrize(
    ("body", "touches"),
    [
        (b"SELECT 1 INTO OUTFILE '/tmp/x'", True),
        (b"INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV", True),
        (b"SELECT 'INTO OUTFILE'", False),
        (b"INSERT INTO t FORMAT CSV\nFROM INFILE", False),
    ],
)
def test_files_of_the_server_are_noticed(body: bytes, touches: bool) -> None:
    assert read_statement(body).touches_files is touches


def test_a_statement_must_be_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        read_statement(b"SELECT '\xff'")
