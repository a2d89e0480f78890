"""Every bad catalog of a directory is refused for what is wrong with it, with the way out."""

import json
from pathlib import Path

import pytest
import yaml

from infra.catalog_file import load_catalogs
from metrics.catalog import CatalogError, Problem
from orchestration.cli.main import main

DIRECTORY = Path(__file__).parents[2] / "data" / "bad_catalogs"
EXPECTED = yaml.safe_load((DIRECTORY.parent / "bad_catalogs_expected.yaml").read_text())


def refused(path: Path) -> list[Problem]:
    with pytest.raises(CatalogError) as raised:
        load_catalogs(path)
    return raised.value.problems


def test_there_are_more_than_forty_bad_catalogs_each_with_its_expected_texts() -> None:
    assert len(EXPECTED) > 40
    assert {path.stem for path in DIRECTORY.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_catalog_is_refused_with_file_line_rule_value_and_way_out(name: str) -> None:
    path = DIRECTORY / f"{name}.yaml"
    found = [{key: getattr(problem, key) for key in ("line", "rule", "value", "hint")} for problem in refused(path)]
    assert found == EXPECTED[name]


def test_the_directory_is_refused_with_the_problems_of_every_file() -> None:
    problems = refused(DIRECTORY)
    assert {Path(problem.file).stem for problem in problems} == set(EXPECTED)


def test_validate_prints_them_all_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCKSTEP_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(SystemExit) as exit_:
        main(["validate", str(DIRECTORY), "--json"])
    assert exit_.value.code == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    assert len(answer["errors"]) == sum(map(len, EXPECTED.values()))
    assert set(answer["errors"][0]) == {"file", "line", "rule", "value", "hint"}
    assert not list(tmp_path.iterdir())


def test_two_files_of_a_directory_must_not_name_the_same_thing(tmp_path: Path) -> None:
    text = (
        "source: {0}\ntopic: events.{0}\nevent_id: id\nevent_time: {{field: ts}}\nfields: {{a: string}}\n"
        "metrics: {{events: {{agg: count, window: tumbling 1m}}}}\n"
    )
    for name in ("clinic", "harbour"):
        (tmp_path / f"{name}.yaml").write_text(text.format(name))
    (problem,) = refused(tmp_path)
    assert problem.rule == "a metric belongs to one catalog of a directory"
    assert problem.value == "events"
    assert problem.hint == "rename it; `clinic.yaml` has it too"
