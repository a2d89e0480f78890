"""An expression has the same value in polars, Spark, ClickHouse and the reference."""

import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from chdb.session import Session
from engines import KINDS, TYPES, Engines, spark_of_one_thread
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark import cloudpickle

from metrics import polars_dialect, sql_dialects
from metrics.expression import Condition, Expression

LARGEST = Decimal(10**18) - 1
TEXTS = ["", "a", "A", "b", "ab", "a%", "'", "\\", "\n", "\0", "a\0b", "$", "${x}", "{x:Int8}", "é", "e\u0301", "日本"]
TEXTS += ["\uffff", "\U0001f600", "\U0010ffff", "\ufeff", "\x7f", " ", '"', "`", "\u2028", "x" * 5_000, "\\u0041", "?"]
INTS = [0, 1, -1, 2, 7, 10**9, 10**17, 10**18 - 1, 10**18, -(10**18), 2**63 - 1, -(2**63)]
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1,
    3.0,
    1e308,
    -1e308,
    1.7976931348623157e308,
    5e-324,
    2.2250738585072014e-308,
    1e-200,
]


def decimals(scale: int) -> list[Decimal]:
    step = Decimal(1).scaleb(-scale)
    top = LARGEST + 1 - step
    return [Decimal(n) for n in (0, 1, -1, 2, 10**9, 10**17)] + [
        step,
        -step,
        7 * step,
        top,
        -top,
        Decimal(10**9) + step,
    ]


VALUES: dict[str, list[Any]] = {
    name: {"string": TEXTS, "int": INTS, "float": FLOATS, "bool": [True, False]}.get(kind) or decimals(scale)
    for name, (kind, scale) in KINDS.items()
}


def rows(source: random.Random, count: int) -> list[dict[str, Any]]:
    """Rows of special and of random values, NULL among them."""

    def value(name: str) -> Any:  # noqa: PLR0911 - a return a kind
        kind, scale = KINDS[name]
        if source.random() < 0.15:
            return None
        if source.random() < 0.6:
            return source.choice(VALUES[name])
        match kind:
            case "string":
                return "".join(
                    chr(source.choice([97, 98, 37, 0xE9, 0xFFFF, 0x1F600])) for _ in range(source.randint(0, 4))
                )
            case "int":
                return source.randint(-(10 ** source.randint(0, 18)), 10 ** source.randint(0, 18))
            case "float":
                return source.uniform(-10, 10) * 10.0 ** source.randint(-300, 300)
            case "decimal":
                digits = source.randint(0, 17 + scale)
                return Decimal(source.randint(-(10**digits), 10**digits)).scaleb(-scale)
        return source.random() < 0.5

    return [{name: value(name) for name in TYPES} for _ in range(count)]


class Writer:
    """Writes random expressions of a kind; what comes out may still be refused for its scale."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def write(self, kind: str, depth: int) -> str:
        if depth <= 0 or self._source.random() < 0.1:
            return self._leaf(kind)
        forms = [self._case, self._coalesce, self._nullif]
        forms += {"bool": [self._condition] * 12, "string": []}.get(kind, [self._arithmetic] * 6)
        return self._source.choice(forms)(kind, depth - 1)

    def _leaf(self, kind: str) -> str:
        name = self._field(kind)
        if kind != "bool" and self._source.random() < 0.3:
            return self._literal(kind)
        return name

    def _field(self, kind: str) -> str:
        names = [name for name, (own, _) in KINDS.items() if own == kind or (kind == "decimal" and own == "int")]
        return '"' + self._source.choice(names) + '"'

    def _literal(self, kind: str) -> str:
        if kind == "string":
            return "'" + self._source.choice(TEXTS).replace("'", "''") + "'"
        if kind == "float":
            return self._source.choice(["0", "1", "-1.5", "0.1", "1e300", "5e-324", "3", "-0.0", "123456789.123456789"])
        if kind == "bool":
            return self._source.choice(["TRUE", "false"])
        whole = ["0", "1", "-1", "2", "1000000", "999999999999999999", "9223372036854775807", "-9223372036854775808"]
        return self._source.choice(whole + (["0.5", "-1.50", "0.000001", "2.00", "12.34"] if kind == "decimal" else []))

    def _case(self, kind: str, depth: int) -> str:
        branches = "".join(
            f" when {self.write('bool', depth - 1)} then {self._source.choice([self.write(kind, depth), 'null'])}"
            for _ in range(self._source.randint(1, 2))
        )
        otherwise = self._source.choice(["", f" ELSE {self.write(kind, depth)}"])
        return f"(CASE{branches} when false then {self._field(kind)}{otherwise} END)"

    def _coalesce(self, kind: str, depth: int) -> str:
        return f"coalesce({self.write(kind, depth)}, {self.write(kind, depth)})"

    def _nullif(self, kind: str, depth: int) -> str:
        return f"NULLIF({self.write(kind, depth)}, {self.write(kind, depth)})"

    def _arithmetic(self, kind: str, depth: int) -> str:
        left, right = self.write(kind, depth), self.write(kind, depth)
        return self._source.choice(
            [f"({left} + {right})", f"({left} - {right})", f"({left} * {right})"] * 2 + [f"(- {left})", f"abs({left})"]
        )

    def _condition(self, kind: str, depth: int) -> str:
        of = self._source.choice(["string", "int", "decimal", "float"])
        left, right = self.write(of, depth), self.write(of, depth)
        first, second = self.write("bool", depth), self.write("bool", depth)
        items = ", ".join(self._literal(of) for _ in range(self._source.randint(1, 3)))
        pattern = self._source.choice(["%a", "a%", "%b%", "%\U0001f600", "é%", "''%", "%{x:Int8}%", "%$%", "ab"])
        return self._source.choice(
            [
                *(f"({left} {sign} {right})" for sign in ("=", "<>", "<", "<=", ">", ">=")),
                f"({left} {self._source.choice(['in', 'NOT IN'])} ({items}))",
                f"({left} BETWEEN {right} AND {self.write(of, depth)})",
                f"({left} IS {self._source.choice(['', 'NOT '])}NULL)",
                f"({self.write('string', depth)} {self._source.choice(['LIKE', 'not like'])} '{pattern}')",
                f"({first} AND {second})",
                f"({first} OR {second})",
                f"(NOT {first})",
                f"({first} = {second})",
            ]
        )


def expressions(source: random.Random, count: int) -> dict[str, Expression]:
    """Expressions that are not refused, by their texts."""
    writer = Writer(source)
    found: dict[str, Expression] = {}
    while len(found) < count:
        kind = source.choice(["string", "int", "decimal", "decimal", "float", "bool", "bool"])
        text = writer.write(kind, source.randint(1, 3))
        try:
            found[text] = Expression(text, TYPES)
        except ValueError as error:
            message = str(error)
            expected = ("digits after the point", "names no field", "too long", "has too many digits", "mixes a float")
            assert any(reason in message for reason in expected), message
    return found


SPECIAL = [
    "items * items",
    "items + items",
    'items - "a`b"',
    "-items",
    "abs(items)",
    "amount * items",
    "amount * amount * amount",
    "amount * rate",
    "rate * rate * rate",
    "fine * whole",
    "fine * items - fine",
    "fine + whole",
    "-fine",
    "-(fine + whole)",
    "abs(fine)",
    "abs(fine - whole)",
    "fine * 1",
    "whole * whole * whole * whole",
    "(amount * amount) * 0",
    "fine = whole",
    "items < fine",
    "size",
    "-size",
    "size * size",
    "size * size - size * size",
    'size * "a.b" + 1',
    "coalesce(size * size, 0) * 0.1",
    "size = 0",
    "size in (0.0, 1)",
    "size not in (0.0)",
    "size in (0, 1, 1e300, 3)",
    "size not in (0, 1, 1e300, 3)",
    "size <> 0 and size <> 1 and size <> 3 and size <> 0.1",
    "nullif(size, 0)",
    "case when member then size end",
    "case items when 1 then 'one' when 2 then 'two' else \"select\" end",
    'kind < "select"',
    "kind >= '\uffff'",
    "items in (1, 2, 9223372036854775807)",
    "items in (1, 2.5)",
    "kind in ('a', '', '\U0001f600')",
    "member or new",
    "not (member and new)",
    "member <> new",
    *("kind = '{}'".format(text.replace("'", "''")) for text in TEXTS),
    *("kind like '%{}%'".format(text.replace("'", "''")) for text in TEXTS if text and not {*text} & {*"%_\\"}),
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    clickhouse = Session(str(tmp_path_factory.mktemp("clickhouse")))
    try:
        with spark_of_one_thread(tmp_path_factory.mktemp("spark")) as spark:
            yield Engines(spark, clickhouse)
    finally:
        clickhouse.close()


def special_rows() -> list[dict[str, Any]]:
    """Each special value of each field at least once."""
    longest = max(map(len, VALUES.values()))
    return [{name: values[place % len(values)] for name, values in VALUES.items()} for place in range(longest)] + [
        dict.fromkeys(TYPES)
    ]


def test_special_values_and_literals_are_the_same_in_every_engine(engines: Engines) -> None:
    assert engines.differences({text: Expression(text, TYPES) for text in SPECIAL}, special_rows()) == []


@settings(
    max_examples=4,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # the differences name the expression and the row
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 2**64))
def test_every_engine_gives_the_same_value(engines: Engines, seed: int) -> None:
    source = random.Random(seed)
    assert engines.differences(expressions(source, 20), rows(source, 25)) == []


@settings(max_examples=50)
@given(st.integers(0, 2**64))
def test_the_canonical_text_is_the_same_expression(seed: int) -> None:
    for expression in expressions(random.Random(seed), 5).values():
        again = Expression(expression.canonical, TYPES)
        assert (again.canonical, again.spark, again.clickhouse, again.type) == (
            expression.canonical,
            expression.spark,
            expression.clickhouse,
            expression.type,
        )


def test_a_condition_holds_alike_and_is_never_null(engines: Engines) -> None:
    given_rows = special_rows()
    condition = cloudpickle.loads(cloudpickle.dumps(Condition("member and size * size > 1", TYPES)))
    frame = pl.DataFrame(
        {f"f_{n}": pl.Series([r[n] for r in given_rows], dtype=polars_dialect.polars_type(t)) for n, t in TYPES.items()}
    )
    assert engines.differences({condition.canonical: condition}, given_rows) == []
    spark = [row[0] for row in engines.spark_session.sql(f"select {condition.spark_holds} from events").collect()]
    query = f"select {condition.clickhouse_holds} from events order by place"
    clickhouse = [line == "true" for line in str(engines.clickhouse_session.query(query, "TSV")).split()]
    assert frame.select(condition.holds).to_series().to_list() == spark == clickhouse


@pytest.mark.parametrize(
    ("where", "name", "planted", "text", "engine"),
    [
        (polars_dialect, "_operation", lambda op, parts: parts[0], "amount + 1", "polars"),
        (polars_dialect, "_like", lambda value, pattern: value == pattern[1], "kind like 'a%'", "polars"),
        (sql_dialects._Spark, "settle", lambda text: text, "size * 10", "spark"),
        (sql_dialects._Spark, "_EXACT", None, "rate * rate", "spark"),
        (sql_dialects._ClickHouse, "settle", lambda text: text, "size * 10", "clickhouse"),
        (sql_dialects._ClickHouse, "_bound", lambda condition, value, text: text, "items * items", "clickhouse"),
    ],
)
def test_a_difference_in_one_engine_is_seen(
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    planted: Callable[..., Any] | None,
    text: str,
    engine: str,
) -> None:
    if planted is None:
        monkeypatch.setattr(sql_dialects, "_SPARK_EXACT_SCALE", 38)
    else:
        monkeypatch.setattr(where, name, staticmethod(planted) if isinstance(where, type) else planted)
    found = engines.differences({text: Expression(text, TYPES)}, special_rows())
    assert found
    for difference in found:
        others = {repr(value) for name, value in difference.values.items() if name != engine}
        assert len(others) == 1
