"""What commands say: numbers with their nouns, and options with what they do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.cli.common import counted
from orchestration.cli.main import main

CATALOG = """\
source: shop
topic: events.shop.v1
event_id: id
event_time: {field: ts}
fields: {user: string}
metrics:
  events: {agg: count, window: tumbling 1m}
alerts:
  burst: {when: count > 100, within: 1m}
"""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.delenv("LOCKSTEP_CATALOG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(list(arguments))
        return " ".join("".join(capsys.readouterr()).replace("│", " ").split())

    return run


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 alerts"), (1, "1 alert"), (2, "2 alerts"), (1_024, "1,024 alerts")]
)
def test_one_thing_is_not_several(number: int, text: str) -> None:
    assert counted(number, "alert") == text


def test_validate_counts_metrics_and_alerts(said: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(CATALOG)
    assert "ok: 1 metric, 1 alert, catalog version" in said("validate", str(path))


def test_a_bench_without_events_refuses_a_number_of_them_and_names_those_that_have_one(
    said: Callable[..., str],
) -> None:
    takers = "`bench speed`, `bench batch`, `bench batch-range`, `bench batch-growth`"
    rule = f"only {takers} may be told --events; got --events 5000 for `sketches`. leave it out"
    assert rule in said("bench", "sketches", "--events", "5000")
    assert "of `bench speed` (in the backlog, 4,000,000), `bench batch`" in said("bench", "--help")


def test_the_help_of_a_forced_switch_says_what_is_shown_for_the_days_that_are_lacking(said: Callable[..., str]) -> None:
    help_ = said("switch", "--help")
    assert "its speed layer's provisional values are shown, and no row where that has none" in help_
