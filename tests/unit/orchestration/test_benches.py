import re
from pathlib import Path

import pytest

from orchestration.benches import BENCHES, refusal, taking, words

ROOT = Path(__file__).parents[3]


def test_make_runs_every_bench() -> None:
    rule = re.search(r"^bench: .*?(?=^\.PHONY)", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert rule
    commands = rule[0].split("for name in", 1)[1]
    assert all(re.search(rf"[ \"]{name}[ ;]", commands) for name in BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_that_is_told_nothing_is_run(name: str) -> None:
    left_out = {"events": None, "runs": None, "only": None, "resume": False, "profile": False, "outage": None}
    assert refusal(name, left_out) is None
    assert words(left_out) == []


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("growth", {"runs": 3}, "got --runs 3 for `growth`. leave it out"),
        ("batch-growth", {"runs": 3}, "got --runs 3 for `batch-growth`. leave it out"),
        ("batch-range", {"only": ["plain"]}, "got --only plain for `batch-range`. leave it out"),
        ("batch", {"outage": 3.0}, "only `bench backpressure` may be told --outage; got --outage 3 for `batch`"),
        ("batch", {"profile": True}, "only `bench speed` may be told --profile; got --profile for `batch`"),
        ("freshness", {"resume": True}, "only `bench speed`, `bench batch` may be told --resume; got --resume for"),
        (
            "batch",
            {"only": ["plain", "flink_sql"]},
            "there is no system `flink_sql` in `bench batch`. there are: batch,",
        ),
        ("speed", {"only": ["polars"]}, "there is no system `polars` in `bench speed`. there are: a, b,"),
        ("fast", {}, "there is no bench `fast`. there are: speed, freshness,"),
    ],
)
def test_what_a_bench_cannot_be_told_is_refused_with_those_that_can(
    name: str, given: dict[str, object], text: str
) -> None:
    assert text in (refusal(name, given) or "")


def test_what_is_told_is_handed_on() -> None:
    given = {"events": 5000, "runs": None, "only": ["batch", "plain"], "resume": True, "profile": False, "outage": 2.5}
    assert words(given) == [
        *("--events", "5000", "--only", "batch", "--only", "plain"),
        *("--resume", "--outage", "2.5"),
    ]


def test_each_bench_with_systems_has_its_own() -> None:
    assert taking("only") == ["speed", "batch"]
    assert not BENCHES["speed"].systems.keys() & BENCHES["batch"].systems.keys()
