"""The table of settings in docs/operations.md is that of the code."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import infra.settings
from infra.settings import Settings, setting_name

ROOT = Path(__file__).parents[3]
PACKAGES = ("infra", "serving", "speed_layer", "batch_layer", "reconciliation", "orchestration")
SECTION = (ROOT / "docs" / "operations.md").read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in SECTION.splitlines() if line.startswith("| `")]
ON_THE_PAGE = [name for variables, _, _ in ROWS for name in re.findall(r"`([^`]+)`", variables)]
READ_APART = {
    name
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    for name in re.findall(r"(?:envvar=|_VARIABLE = |environ(?:\.get\(|\[))\"(LOCKSTEP_\w+)\"", path.read_text())
}
"""What is read besides the settings."""


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_in_the_table(field: str) -> None:
    assert any(fnmatch(setting_name(field), name) for name in ON_THE_PAGE)


def test_the_table_names_nothing_that_is_not_read() -> None:
    known = {*map(setting_name, Settings.model_fields), *READ_APART}
    assert [name for name in ON_THE_PAGE if not any(fnmatch(one, name) for one in known)] == []


def test_a_default_in_the_table_is_that_of_the_setting() -> None:
    defaults = {setting_name(name): str(field.default) for name, field in Settings.model_fields.items()}
    for variables, _, shown in ROWS:
        names, values = (re.findall(r"`([^`]+)`", cell) for cell in (variables, shown))
        if len(names) == len(values):
            assert values == [defaults[name] for name in names]


def test_what_is_read_besides_the_settings_is_in_the_table_and_said_in_their_module() -> None:
    assert {"LOCKSTEP_CATALOG"} == READ_APART
    assert set(ON_THE_PAGE) >= READ_APART
    assert all(name in (infra.settings.__doc__ or "") for name in READ_APART)
