"""The walk-through in docs/ does what it says, from its own two files, for a source that is no shop."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings
from infra.stack import status, stop

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-source.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE_S = 240.0


@pytest.fixture
def run(lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path) -> Iterator[Lockstep]:
    """The command line with the page's catalog; what `up` starts above the engines is stopped again."""
    for _, name, text in BLOCK.findall(PAGE):
        if name:
            (tmp_path / name).write_text(text)
    ran = {service.name for service in status(stack)}
    try:
        yield lockstep(tmp_path / "bikes.yaml")
    finally:
        stop(stack, [service.name for service in status(stack) if service.name not in ran])


def commands() -> list[str]:
    """Every command of the page, in order, without the program and the catalog."""
    lines = [line for kind, _, text in BLOCK.findall(PAGE) if kind == "sh" for line in text.splitlines()]
    return [line.removeprefix("lockstep ").removeprefix("--catalog bikes.yaml ") for line in lines]


def answers() -> list[dict[str, Any]]:
    """Every answer that the page shows, in order."""
    return [json.loads(text) for kind, name, text in BLOCK.findall(PAGE) if kind == "json" and not name]


def test_the_walk_through_gives_the_answers_that_it_shows(run: Lockstep, tmp_path: Path) -> None:
    shown = iter(answers())
    for command in commands():
        words = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in command.split()]
        if "--against" in words:
            new = tmp_path / "bikes-new.yaml"
            new.write_text(run.catalog.read_text().replace("tumbling 1h, ", "tumbling 1h, tumbling 1d, "))
            words = [str(new) if word == "bikes-new.yaml" else word for word in words]
            assert run.json(*words)["impact"] == "compatible"
        elif words[-1] == "--json":
            _await_answer(run, words[:-1], next(shown))
        else:
            run(*words)
    assert next(shown, None) is None

    assert {row["layer"] for row in run.json("query", "income")["rows"]} == {"batch"}
    assert all(row["is_final"] for row in run.json("query", "income")["rows"])
    causes = run.json("reconcile", "--from", "2024-03-30", "--to", "2024-03-31")["partitions"]
    assert sum(day["causes"]["duplicate"] for day in causes) == 1
    assert all(day["certified"] and not day["residual"] for day in causes)


def _await_answer(run: Lockstep, words: list[str], wanted: dict[str, Any]) -> None:
    """Ask until the answer is the page's; it shows only some columns of each row."""
    (name,) = (name for name, part in wanted.items() if isinstance(part, list))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = run.json(*words)
        rows = [{column: row[column] for column in wanted[name][0]} for row in answer[name]]
        said = {part: answer[part] for part in wanted} | {name: rows}
        if said == wanted or time.monotonic() > deadline:
            break
    assert said == wanted, words
