"""The walk-through in docs/ does what it says, from its own two files, for a source that is no shop."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-source.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = ("window_start", "window_end", "dimensions", "value")


@pytest.fixture
def run(lockstep: Callable[[Path], Lockstep], tmp_path: Path, unique: str) -> Lockstep:
    """The command line with the page's catalog, under a source and a topic of this test's own."""
    for _, name, text in BLOCK.findall(PAGE):
        if name:
            (tmp_path / name).write_text(text)
    catalog = tmp_path / "bikes.yaml"
    text = catalog.read_text()
    assert "source: bikes\ntopic: events.bikes.v1\n" in text
    catalog.write_text(text.replace("source: bikes\ntopic: events.bikes.v1\n", f"source: {unique}\ntopic: {unique}\n"))
    return lockstep(catalog)


def commands() -> list[str]:
    """Every command of the page, in order, without the program and the catalog."""
    lines = [line for kind, _, text in BLOCK.findall(PAGE) if kind == "sh" for line in text.splitlines()]
    return [line.removeprefix("lockstep ").removeprefix("--catalog bikes.yaml ") for line in lines]


def answers() -> list[dict[str, Any]]:
    """Every answer that the page shows, in order."""
    return [json.loads(text) for kind, name, text in BLOCK.findall(PAGE) if kind == "json" and not name]


def test_the_walk_through_gives_the_answers_that_it_shows(run: Lockstep, stack: Settings, tmp_path: Path) -> None:
    shown = iter(answers())
    for command in commands():
        words = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in command.split()]
        if command == "up":  # the stack is there; what `up` adds for a new catalog is its speed layer, begun here later
            continue
        if "--against" in words:
            new = tmp_path / "bikes-new.yaml"
            new.write_text(run.catalog.read_text().replace("tumbling 1h, ", "tumbling 1h, tumbling 1d, "))
            words = [str(new) if word == "bikes-new.yaml" else word for word in words]
            assert run.json(*words)["impact"] == "compatible"
        elif words[0] == "query":
            answer = run.json(*words[:-1])
            rows = [{name: row[name] for name in SHOWN} for row in answer["rows"]]
            assert {**answer, "rows": rows} == next(shown)
            assert all(row["layer"] == "batch" and row["is_final"] for row in answer["rows"])
        elif words[0] == "alerts":
            (alert,) = run.json(*words[:-1])["alerts"]
            assert (alert["alert"], alert["dims"], alert["breached_at"]) == (
                "station_empty",
                {"station": "castle"},
                "2024-03-31T08:00:00Z",
            )
            assert alert["evidence"] == ["r7"]
        else:
            run(*words)
            if words[0] == "ingest":
                run("speed", "--until-drained")
    assert next(shown, None) is None

    live = run.json("query", "parked", "--layer", "speed")["rows"]
    assert {row["dimensions"]["station"]: row["value"] for row in live} == {"castle": "4", "harbour": "12"}
    causes = run.json("reconcile", "--from", "2024-03-30", "--to", "2024-03-31")["partitions"]
    assert sum(day["causes"]["duplicate"] for day in causes) == 1
    assert all(day["certified"] and not day["residual"] for day in causes)
