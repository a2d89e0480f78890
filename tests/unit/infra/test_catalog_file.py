"""What is no YAML, or no plain value, is a problem of its file like any other."""

from pathlib import Path

import pytest

from infra.catalog_file import load_catalogs
from metrics.catalog import CatalogError

GOOD = """\
source: {name}
topic: events.{name}
event_id: id
event_time: {{field: ts}}
fields:
  user: {field}
metrics: {{{name}_events: {{agg: count, window: tumbling 1m}}}}
"""
DEEP = "a catalog nests at most 20 levels deep"
TYPE = "a value is one of its type"


def problems(path: Path) -> list[tuple[str, int, str, str, str]]:
    with pytest.raises(CatalogError) as refused:
        load_catalogs(path)
    return [(Path(one.file).name, one.line, one.rule, one.value, one.hint) for one in refused.value.problems]


@pytest.mark.parametrize(
    ("field", "line", "rule", "value", "hint"),
    [
        ("{type: string, default: 2024-02-30}", 6, TYPE, "2024-02-30", "timestamp"),
        ("{type: int, default: !!int abc}", 6, TYPE, "!!int abc", "int"),
        ("{type: int, default: !!int ''}", 6, TYPE, "!!int ''", "int"),
        ("{type: bool, default: !!bool abc}", 6, TYPE, "!!bool abc", "bool"),
        ("{type: string, default: !!timestamp now}", 6, TYPE, "!!timestamp now", "timestamp"),
        ("{type: int, default: " + "9" * 5000 + "}", 6, TYPE, "9" * 40, "int"),
        ("!foo bar", 6, TYPE, "!foo bar", "!foo"),
        ("string\n  a: string\n  ? [a, b]\n  : int", 8, "a name is a text", "[a, b]", ""),
        ("&a [*a]", 6, DEEP, "&a [*a]", ""),
        ("\n    - " + "[" * 100 + "]" * 100, 7, DEEP, "[" * 40, ""),
        ("\n    - " + "[" * 5000 + "]" * 5000, 7, DEEP, "more", ""),
        ("string\n  a: 'x\x07'", 7, "a catalog is YAML", "U+0007", "remove the control character"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_place_and_the_way_out(  # noqa: PLR0913, PLR0917
    tmp_path: Path, field: str, line: int, rule: str, value: str, hint: str
) -> None:
    (tmp_path / "shop.yaml").write_text(GOOD.format(name="shop", field=field))
    hints = {
        TYPE: f"it is read as `{hint}`; put text in quotes, without a tag",
        DEEP: "nest less, and let no value hold itself",
        "a name is a text": "write one name before the colon",
    }
    (found,) = problems(tmp_path / "shop.yaml")
    assert found == ("shop.yaml", line, rule, value, hints.get(rule, hint))


def test_a_file_that_cannot_be_read_hides_no_problem_of_another(tmp_path: Path) -> None:
    for name, field in (("bar", "!foo bar"), ("car", "strin"), ("far", "string")):
        (tmp_path / f"{name}.yaml").write_text(GOOD.format(name=name, field=field))
    assert [(file, line) for file, line, *_ in problems(tmp_path)] == [("bar.yaml", 6), ("car.yaml", 6)]


def test_a_value_may_be_named_and_repeated(tmp_path: Path) -> None:
    text = GOOD.format(name="shop", field="&kind {type: string, default: none}\n  other: *kind")
    (tmp_path / "shop.yaml").write_text(text)
    (shop,) = load_catalogs(tmp_path)
    assert [field.default for field in shop.columns.values()] == ["none", "none"]
