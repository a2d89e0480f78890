"""What `lockstep repair dlq` says of a plan."""

import json
from datetime import UTC, datetime

import pytest

from metrics.catalog_build import parse_catalog
from metrics.window import to_epoch_ms
from orchestration.cli.repair import _document, _show
from speed_layer.dead_letters import Letter, Place
from speed_layer.repair import Plan, Record, Refusal, Repair

AT = to_epoch_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts"},
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    },
    {},
    "test",
)


def letter(offset: int, reason: str = "wrong_type") -> Letter:
    return Letter(Place(0, offset), AT, reason, b"[bold]\xff" + b"x" * 200)


PLAN = Plan(
    AT,
    {0: 9},
    (Repair(Place(0, 1), letter(1), Record(b"k", b'{"id": 1}'), AT + 86_400_000),),
    ((letter(2), 7), (letter(3, "not_json"), 8)),
    (Refusal(Place(0, 4), "wrong_type", "wrong_type", "Expected `int`, got `str` - at `$[...]`"),),
)


def test_a_person_sees_reasons_samples_and_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    _show(CATALOG, PLAN)
    told = capsys.readouterr()
    lines = [line.replace("│", " ").split() for line in told.out.splitlines()]
    assert ["not_json", "0", "1", "0"] in lines
    assert ["wrong_type", "1", "1", "1"] in lines
    assert "0:1 [bold]\\xff" + "x" * 110 + "…\n  becomes {" in told.out
    assert "0:4 refused: wrong_type, Expected `int`, got `str` - at `$[...]`" in told.err


def test_the_json_object_adds_up() -> None:
    told = _document(CATALOG, PLAN, 1)
    assert json.loads(json.dumps(told)) == told
    assert told["chosen"] == told["repairable"] + told["already_repaired"] + len(told["refused"]) == 4
    assert sum(sum(counts.values()) for counts in told["reasons"].values()) == 4
    assert told["days"] == ["2026-03-01", "2026-03-02"]
    assert (told["topic"], told["dlq"], told["produced"]) == ("events", "events.dlq", 1)
