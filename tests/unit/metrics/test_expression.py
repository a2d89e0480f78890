"""Expressions: their types, their canonical text, and every refusal with its way out."""

import pickle

import polars as pl
import pytest

from metrics.expression import Condition, Expression, FieldType

TYPES = {
    "kind": FieldType("string"),
    "items": FieldType("int"),
    "amount": FieldType("decimal", 2),
    "rate": FieldType("decimal", 6),
    "size": FieldType("float"),
    "member": FieldType("bool"),
    "from": FieldType("int"),
}
ALLOWED = (
    "allowed are fields, literals, + - *, = <> < <= > >=, IN (literals), BETWEEN, LIKE, IS NULL, AND, OR, NOT, CASE, "
    "COALESCE, NULLIF, ABS"
)
DIVISION = "division rounds differently in each engine. multiply by a literal, or define a `ratio` of two metrics"
CASING = "letters change case differently in each engine. compare with each spelling by IN (...)"
CASTING = "conversions round and read texts differently in each engine. declare the field with the type you need"
ALIKE = "write a literal of the field's type, or declare the fields alike"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("amount +", "`amount +` is not an expression that parses. write it as in SQL, for example price * quantity"),
        ("", "`` is not an expression that parses. write it as in SQL, for example price * quantity"),
        (
            "items; items",
            "`items; items` is not an expression that parses. write it as in SQL, for example price * quantity",
        ),
        (
            "amout",
            "unknown field `amout`. did you mean `amount`? "
            "the fields are: kind, items, amount, rate, size, member, from",
        ),
        ("1 + 1", "`1 + 1` names no field. the fields are: kind, items, amount, rate, size, member, from"),
        ("items / 2", f"`items / 2` is not allowed; {DIVISION}"),
        (
            "items % 2",
            "`items % 2` is not allowed; the remainder of negative numbers differs between engines. "
            "send the remainder as a field of its own",
        ),
        ("lower(kind)", f"`LOWER(kind)` is not allowed; {CASING}"),
        ("kind ilike 'a%'", f"`kind ILIKE 'a%'` is not allowed; {CASING}"),
        ("cast(items as string)", f"`CAST(items AS TEXT)` is not allowed; {CASTING}"),
        (
            "items in (select 1)",
            f"`items IN (SELECT 1)` is not allowed. {ALLOWED}",
        ),
        (
            "(select 1)",
            "`(SELECT 1)` is not allowed; an expression sees one event; it has no subqueries. "
            "send what it needs as a field of the event",
        ),
        (
            "sum(items)",
            "`SUM(items)` is not allowed; an expression sees one event; it aggregates nothing. "
            "write the aggregation as `agg`",
        ),
        ("foo(items)", f"`FOO(items)` is not allowed. {ALLOWED}"),
        ("kind || 'a'", f"`kind || 'a'` is not allowed. {ALLOWED}"),
        ("items as x", f"`items AS x` is not allowed. {ALLOWED}"),
        (
            "items between symmetric 1 and 2",
            f"`(items BETWEEN 1 AND 2 OR items BETWEEN 2 AND 1)` is not allowed. {ALLOWED}",
        ),
        ("t.kind", "`t.kind` is no field; a field has no table. quote a name that has a point"),
        ("kind = 1", f"`kind = 1` mixes int and string. {ALIKE}"),
        ("coalesce(member, kind)", f"`COALESCE(member, kind)` mixes bool and string. {ALIKE}"),
        (
            "size * amount",
            "`size * amount` mixes a float with an exact number. declare the fields all float, or all int and decimal",
        ),
        ("kind + 1", "`kind` is a string; arithmetic needs a number. declare the field a number"),
        ("items and member", "`items` is an int, no condition. compare it, for example by = or IS NOT NULL"),
        ("member < true", "`member < TRUE` orders bools. compare them with = or <>"),
        (
            "amount * rate * rate * rate",
            "`amount * rate * rate * rate` has 20 digits after the point; at most 18 are kept exactly. "
            "declare the fields with a smaller scale",
        ),
        (
            "amount > 1000000000000000000.5",
            "`1000000000000000000.5` has too many digits; exact numbers have at most 18 before the point and 18 "
            "after it. write fewer digits",
        ),
        ("size < 1e400", "`1E+400` is too large for a float. write a smaller number"),
        ("items < 1e99999", "`1e99999` is no number that can be computed with. write fewer digits"),
        ("items = null", "NULL is no operand in `items = NULL`; the result would be NULL. write IS NULL"),
        (
            "items in (1, null)",
            "NULL in a list is never found in it, and hides what is not in `items IN (1, NULL)`. write IS NULL",
        ),
        ('items in (1, "from")', '`"from"` must be a literal. compare fields by = and OR'),
        ("member is true", "`member IS TRUE` asks for more than NULL. write = TRUE"),
        (
            "items is distinct from 1",
            "`items IS DISTINCT FROM 1` is not allowed; NULL equals nothing here. write IS NULL",
        ),
        (
            "kind like 'a_'",
            "a pattern is 'text%', '%text' or '%text%', without _ and \\; got 'a_'. "
            "use such a pattern, or = and IS NOT NULL",
        ),
        (
            "kind like '%'",
            "a pattern is 'text%', '%text' or '%text%', without _ and \\; got '%'. "
            "use such a pattern, or = and IS NOT NULL",
        ),
        (
            "items like 'a%'",
            "LIKE takes a string field and a literal pattern; got `items LIKE 'a%'`. compare with = or IN (...)",
        ),
        (
            "kind like 'a' escape '!'",
            "`kind LIKE 'a' ESCAPE '!'` is not allowed; an escaped pattern means different things in each engine. "
            "use = or IN (...)",
        ),
        (
            "case when member then null end",
            "every value of `CASE WHEN member THEN NULL END` is NULL. give one of them a value",
        ),
        (
            "items + " * 3_000 + "items",
            f"`{('items + ' * 10)[:60]}...` is too long to be computed. send what it computes as a field of the event",
        ),
        (
            "nullif(" * 10 + "items" + ", 1)" * 10,
            "`nullif(nullif(nullif(nullif(nullif(nullif(nullif(nullif(null...` is too long to be computed. "
            "send what it computes as a field of the event",
        ),
    ],
)
def test_what_the_engines_cannot_compute_alike_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        Expression(text, TYPES)
    assert str(refused.value) == message


def test_a_condition_must_be_one() -> None:
    with pytest.raises(ValueError) as refused:
        Condition("items + 1", TYPES)
    assert str(refused.value) == "`items + 1` is an int, no condition. compare it, for example by = or IS NOT NULL"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("items + 1", FieldType("int")),
        ("items + 1.50", FieldType("decimal", 1)),
        ("amount - rate", FieldType("decimal", 6)),
        ("amount * rate", FieldType("decimal", 8)),
        ("amount * items", FieldType("decimal", 2)),
        ("case when member then 1 else amount end", FieldType("decimal", 2)),
        ("coalesce(size, 0)", FieldType("float")),
        ("nullif(kind, '')", FieldType("string")),
        ("kind is null", FieldType("bool")),
    ],
)
def test_an_expression_has_a_type(text: str, kind: FieldType) -> None:
    assert Expression(text, TYPES).type == kind


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("  kind='buy'and(amount>1.50 or member) ", "kind = 'buy' AND (amount > 1.5 OR member)"),
        ("((items)) * ((amount) + 1)", "items * (amount + 1)"),
        ("(member and (member and member))", "member AND member AND member"),
        ("items - (items - 1)", "items - (items - 1)"),
        ('"from" != - 1', '"from" <> -1'),
        ("kind not in ('b', 'a', 'b')", "NOT (kind IN ('a', 'b'))"),
        ("items between 1 and 2", "items >= 1 AND items <= 2"),
        ("Case When member Then 1 End", "CASE WHEN member THEN 1 ELSE NULL END"),
        ("kind like '%it''s'", "kind LIKE '%it''s'"),
        ("size < 1e300", "size < 1E+300"),
    ],
)
def test_every_spelling_has_one_canonical_text(text: str, canonical: str) -> None:
    expression = Expression(text, TYPES)
    assert expression.canonical == canonical
    assert Expression(canonical, TYPES).canonical == canonical


def test_a_condition_that_is_null_does_not_hold_and_is_picklable() -> None:
    condition = pickle.loads(pickle.dumps(Condition("amount > 1.5", TYPES)))
    frame = pl.DataFrame({"f_amount": [None, "1.50", "1.51"]}).cast(pl.Decimal(38, 2))
    assert frame.select(condition.polars).to_series().to_list() == [None, False, True]
    assert frame.select(condition.holds).to_series().to_list() == [False, False, True]
    assert condition.fields == {"amount"}


def test_a_decimal_given_without_its_scale_is_compared_exactly() -> None:
    frame = pl.DataFrame({"f_amount": ["1.25", "1.30"]}).cast(pl.Decimal(38, 2))
    assert frame.select(Condition("amount < 1.3", {"amount": "decimal"}).holds).to_series().to_list() == [True, False]
