"""The command line's contract: exit codes, one JSON object on stdout, one sentence on stderr."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from orchestration.cli.common import Failed, days_between, guarded
from orchestration.cli.main import main
from orchestration.sources import DEMO_CATALOGS

SHOP = DEMO_CATALOGS / "shop.yaml"
COMMANDS = (
    "demo", "up", "down", "status", "validate", "generate", "ingest", "speed", "batch", "reconcile", "query", "report",
    "bench", "repair",
)  # fmt: skip
BROKEN = """\
source: shop
topic: events.shop
event_id: id
event_time: {field: ts}
fields:
  country: {type: string}
  amount: {type: money}
metrics:
  sales: {agg: sum(amount), window: tumbling 1m}
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        return json.loads(self.out)


@pytest.fixture
def lockstep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ended]:
    monkeypatch.setenv("LOCKSTEP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LOCKSTEP_CLICKHOUSE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("LOCKSTEP_CATALOG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_says_what_it_does(lockstep: Callable[..., Ended], command: str) -> None:
    ended = lockstep(command, "--help")
    assert ended.code == 0
    assert f"lockstep {command}" in ended.out


def test_validate_lists_metrics_and_grains(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("validate", str(SHOP), "--json")
    assert ended.code == 0
    assert ended.document["ok"] is True
    assert {"events", "revenue", "unique_visitors"} <= {each["name"] for each in ended.document["metrics"]}
    assert {each["source"] for each in ended.document["metrics"]} == {"shop"}
    assert all(set(each) == {"source", "name", "grain", "metric_version"} for each in ended.document["metrics"])


def test_validate_checks_every_source_of_a_directory_or_the_one_that_is_named(lockstep: Callable[..., Ended]) -> None:
    both = lockstep("validate", "--json").document["metrics"]
    assert {each["source"] for each in both} == {"devices", "shop"}
    one = lockstep("validate", "--source", "devices", "--json").document["metrics"]
    assert one == [each for each in both if each["source"] == "devices"]


def test_validate_names_line_rule_value_and_way_out(lockstep: Callable[..., Ended], broken: Path) -> None:
    ended = lockstep("validate", str(broken), "--json")
    assert ended.code == 1
    assert ended.document["ok"] is False
    (problem,) = [each for each in ended.document["errors"] if each["line"] == 7]
    assert problem["file"] == str(broken)
    assert "money" in problem["value"]
    assert problem["rule"]
    assert problem["hint"]


def test_validate_of_a_missing_file_is_wrong_usage(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("validate", "/nowhere.yaml")
    assert ended.code == 2
    assert "there is no catalog `/nowhere.yaml`" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("up",),
        ("demo",),
        ("speed",),
        ("generate",),
        ("ingest", "file.csv"),
        ("query", "sales"),
        ("report",),
        ("batch", "--from", "2026-01-01", "--to", "2026-01-01"),
        ("reconcile", "--from", "2026-01-01", "--to", "2026-01-01"),
    ],
)
def test_a_bad_catalog_is_refused_before_anything_starts(
    lockstep: Callable[..., Ended], broken: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = lockstep("--catalog", str(broken), *arguments)
    assert ended.code == 2
    assert f"{broken}:7: " in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "data").exists()


def test_a_refused_catalog_is_json_where_json_was_asked_for(lockstep: Callable[..., Ended], broken: Path) -> None:
    ended = lockstep("query", "sales", "--catalog", str(broken), "--json")
    assert ended.code == 2
    assert [each["line"] for each in ended.document["errors"]] == [7]


def test_the_catalog_of_a_command_wins_over_the_global_one(lockstep: Callable[..., Ended], broken: Path) -> None:
    assert lockstep("--catalog", str(broken), "query", "nothing", "--catalog", str(SHOP)).code == 2
    ended = lockstep("--catalog", str(broken), "query", "nothing", "--catalog", str(SHOP))
    assert "`nothing`" in ended.err


def test_a_directory_with_a_broken_catalog_is_refused_whole(lockstep: Callable[..., Ended], broken: Path) -> None:
    (broken.parent / "good.yaml").write_text(SHOP.read_text())
    ended = lockstep("--catalog", str(broken.parent), "--source", "shop", "speed")
    assert ended.code == 2
    assert f"{broken}:7: " in ended.err


@pytest.mark.parametrize("arguments", [("speed",), ("generate",)])
def test_what_is_about_one_source_lists_them_and_the_way_out(
    lockstep: Callable[..., Ended], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    ended = lockstep(*arguments)
    assert ended.code == 2
    assert f"`lockstep {arguments[0]}` is about one source; there are `devices`, `shop`" in ended.err
    assert "--source devices" in ended.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("place", [0, 2])
def test_a_source_may_be_named_before_or_after_the_command(lockstep: Callable[..., Ended], place: int) -> None:
    arguments = ["query", "readings", "--json"]
    arguments[place:place] = ["--source", "shop"]
    ended = lockstep(*arguments)
    assert ended.code == 2
    assert "the metrics of source `shop` are: events" in ended.document["error"]


def test_a_source_that_is_not_there_lists_those_that_are(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("--source", "shops", "report")
    assert ended.code == 2
    assert "`--source` must be one of `devices`, `shop`; got `shops`" in ended.err


def test_a_metric_tells_its_source(lockstep: Callable[..., Ended]) -> None:
    for metric in ("revenue", "readings"):
        assert "no ClickHouse answered" in lockstep("query", metric).err
    ended = lockstep("query", "profit")
    assert ended.code == 2
    assert "unknown metric `profit`" in ended.err
    assert "devices: readings" in ended.err
    assert "shop: events, " in ended.err


def test_the_columns_of_a_file_tell_its_source(lockstep: Callable[..., Ended], tmp_path: Path) -> None:
    file = tmp_path / "file.csv"
    file.write_text("event_id,note\n1,neither\n")
    ended = lockstep("ingest", str(file))
    assert ended.code == 2
    assert "`file.csv` is about one source; there are `devices`, `shop`" in ended.err


def test_an_unknown_metric_names_the_known_ones(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("query", "profit")
    assert ended.code == 2
    assert "revenue" in ended.err


def test_a_server_that_is_away_is_a_sentence(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("query", "revenue", "--json")
    assert ended.code == 2
    assert "no ClickHouse answered at `http://127.0.0.1:9`" in ended.document["error"]
    assert "Traceback" not in ended.err


def test_status_of_a_stack_that_is_down_is_no_error(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("status", "--json")
    assert ended.code == 0
    assert ended.document == {"services": []}


@pytest.mark.parametrize(
    "arguments", [("query",), ("batch", "--from", "2026-01-01"), ("reconcile", "--from", "soon", "--to", "2026-01-01")]
)
def test_wrong_usage_is_exit_code_2(lockstep: Callable[..., Ended], arguments: tuple[str, ...]) -> None:
    assert lockstep(*arguments).code == 2


def test_days_the_wrong_way_round_say_so(lockstep: Callable[..., Ended]) -> None:
    ended = lockstep("batch", "--from", "2026-01-02", "--to", "2026-01-01")
    assert ended.code == 2
    assert "swap them" in ended.err


def test_a_wrong_setting_is_named(lockstep: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KAFKA_PORT", "many")
    ended = lockstep("status")
    assert ended.code == 2
    assert "LOCKSTEP_KAFKA_PORT" in ended.err
    assert "many" in ended.err


def test_a_problem_that_the_work_found_is_exit_code_1() -> None:
    def work() -> None:
        raise Failed

    with pytest.raises(SystemExit) as ended:
        guarded(work)
    assert ended.value.code == 1


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_both_ends_of_a_range_of_days_are_included() -> None:
    assert days_between(date(2026, 2, 27), date(2026, 3, 1))[1:] == [date(2026, 2, 28), date(2026, 3, 1)]
