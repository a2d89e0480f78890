"""Expressions over the same rows in polars, Spark, ClickHouse and the reference."""

import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import sqlglot
from chdb.session import Session
from pyspark import SparkContext
from pyspark.sql import SparkSession
from pyspark.sql import types as spark_types

from infra.java import find_java
from infra.settings import Settings
from metrics.expression import Expression, FieldType
from metrics.polars_dialect import polars_type
from metrics.reference_expression import evaluate

Row = Mapping[str, Any]

TYPES = {
    "kind": FieldType("string"),
    "select": FieldType("string"),
    "items": FieldType("int"),
    "a`b": FieldType("int"),
    "amount": FieldType("decimal", 2),
    "rate": FieldType("decimal", 6),
    "fine": FieldType("decimal", 18),
    "whole": FieldType("decimal", 0),
    "size": FieldType("float"),
    "a.b": FieldType("float"),
    "member": FieldType("bool"),
    "new": FieldType("bool"),
}
KINDS = {name: (kind.kind, kind.scale) for name, kind in TYPES.items()}

_CLICKHOUSE = {"string": "String", "int": "Int64", "float": "Float64", "bool": "Bool"}
_SPARK = {
    "string": spark_types.StringType(),
    "int": spark_types.LongType(),
    "float": spark_types.DoubleType(),
    "bool": spark_types.BooleanType(),
}


@dataclass(frozen=True)
class Difference:
    """An expression, a row, and what each engine makes of it."""

    text: str
    row: Row
    values: Mapping[str, Any]


@contextmanager
def spark_of_one_thread(scratch: Path) -> Iterator[SparkSession]:
    """A session as the batch layer opens it, without Kafka; its JVM ends with it, for a later session needs another."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["JAVA_HOME"] = str(find_java(Settings(), os.environ).home)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder = SparkSession.builder.appName("lockstep-test").master("local[1]")
    options = {
        "spark.sql.ansi.enabled": "true",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    gateway = session.sparkContext._gateway
    try:
        yield session
    finally:
        session.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()
        SparkContext._gateway = SparkContext._jvm = None


@dataclass(frozen=True)
class Engines:
    """The engines over rows of `TYPES`; each method gives a column of plain values for each expression."""

    spark_session: SparkSession
    clickhouse_session: Session

    def differences(self, expressions: Mapping[str, Expression], rows: Sequence[Row]) -> list[Difference]:
        """Where not all four say the same."""
        said = {
            "reference": self.reference(expressions, rows),
            "polars": self.polars(expressions, rows),
            "spark": self.spark(expressions, rows),
            "clickhouse": self.clickhouse(expressions, rows),
        }
        found = []
        for number, (text, expression) in enumerate(expressions.items()):
            for place, row in enumerate(rows):
                values = {name: _plain(columns[number][place], expression.type) for name, columns in said.items()}
                if len({repr(value) for value in values.values()}) > 1:
                    found.append(Difference(text, {name: row[name] for name in expression.fields}, values))
        return found

    @staticmethod
    def reference(expressions: Mapping[str, Expression], rows: Sequence[Row]) -> list[list[Any]]:
        trees = map(sqlglot.parse_one, expressions)
        return [[evaluate(tree, row, KINDS) for row in rows] for tree in trees]

    @staticmethod
    def polars(expressions: Mapping[str, Expression], rows: Sequence[Row]) -> list[list[Any]]:
        frame = pl.DataFrame(
            {f"f_{n}": pl.Series([row[n] for row in rows], dtype=polars_type(t)) for n, t in TYPES.items()}
        )
        columns = [e.polars.alias(f"e{number}") for number, e in enumerate(expressions.values())]
        got = frame.select(columns)
        assert got.dtypes == [polars_type(e.type) for e in expressions.values()]
        return [column.to_list() for column in got]

    def spark(self, expressions: Mapping[str, Expression], rows: Sequence[Row]) -> list[list[Any]]:
        schema = spark_types.StructType(
            [
                spark_types.StructField(
                    f"f_{n}", spark_types.DecimalType(38, t.scale) if t.kind == "decimal" else _SPARK[t.kind]
                )
                for n, t in TYPES.items()
            ]
        )
        frame = self.spark_session.createDataFrame([tuple(row[n] for n in TYPES) for row in rows], schema, False)
        frame.createOrReplaceTempView("events")
        columns = ", ".join(f"{e.spark} as e{number}" for number, e in enumerate(expressions.values()))
        got = self.spark_session.sql(f"select {columns} from events")
        for field, expression in zip(got.schema.fields, expressions.values(), strict=True):
            kind = expression.type
            expected = spark_types.DecimalType(38, kind.scale) if kind.kind == "decimal" else _SPARK[kind.kind]
            assert field.dataType == expected
        return [list(column) for column in zip(*got.collect(), strict=True)]

    def clickhouse(self, expressions: Mapping[str, Expression], rows: Sequence[Row]) -> list[list[Any]]:
        columns = ", ".join(f"`f_{n.replace('`', chr(92) + '`')}` {_clickhouse_type(t)}" for n, t in TYPES.items())
        self.clickhouse_session.query(f"create or replace table events (place UInt32, {columns}) engine Memory")
        selects = [
            f"select {place}, " + ", ".join(_clickhouse_value(row[n], t) for n, t in TYPES.items())
            for place, row in enumerate(rows)
        ]
        self.clickhouse_session.query("insert into events " + " union all ".join(selects))
        names = [f"e{number}" for number in range(len(expressions))]
        selected = ", ".join(f"{e.clickhouse} as {n}" for n, e in zip(names, expressions.values(), strict=True))
        settings = "output_format_json_quote_decimals = 1, output_format_json_quote_denormals = 1"
        query = f"select {selected} from events order by place settings {settings}"
        lines = str(self.clickhouse_session.query(query, "JSONEachRow")).splitlines()
        got = [json.loads(line) for line in lines]
        return [[row[name] for row in got] for name in names]


def _plain(value: Any, kind: FieldType) -> Any:
    """The value with nothing left that only an engine's client gave it."""
    if value is None:
        return None
    if kind.kind == "decimal":
        return f"{Decimal(value):.{kind.scale}f}"
    return {"int": int, "float": float, "string": str, "bool": bool}[kind.kind](value)


def _clickhouse_type(kind: FieldType) -> str:
    return f"Nullable({f'Decimal(38, {kind.scale})' if kind.kind == 'decimal' else _CLICKHOUSE[kind.kind]})"


def _clickhouse_value(value: Any, kind: FieldType) -> str:
    if value is None:
        return f"CAST(NULL, '{_clickhouse_type(kind)}')"
    if kind.kind == "string":
        return f"CAST(unhex('{value.encode().hex()}'), 'Nullable(String)')"
    if kind.kind == "float":
        return f"CAST(reinterpretAsFloat64(unhex('{_bytes(value)}')), 'Nullable(Float64)')"
    return (
        f"CAST('{value:f}', '{_clickhouse_type(kind)}')"
        if kind.kind == "decimal"
        else (f"CAST('{str(value).lower()}', '{_clickhouse_type(kind)}')")
    )


def _bytes(value: float) -> str:
    return struct.pack("<d", value).hex()
