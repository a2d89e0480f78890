"""A catalog changes while its source runs: old and new events together, new versions beside the old, one switch."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings
from infra.stack import stop
from orchestration.services import BESIDE

OLD = """
source: {source}
topic: {source}
format: avro
event_id: id
event_time: {{field: at, unit: iso}}
fields:
  kind: string
  cost: {{type: decimal, scale: 2}}
metrics:
  visits: {{agg: count, window: tumbling 1d}}
  costs: {{agg: sum(cost), where: kind = 'bill', window: tumbling 1d}}
"""
NEW = OLD.replace("fields:\n", "fields:\n  channel: {{type: string, default: desk}}\n").replace(
    "where: kind = 'bill'", "where: kind = 'bill' OR kind = 'fee'"
) + ("  by_channel: {{agg: count, by: [channel], window: tumbling 1d}}\n")
DAY = "2024-05-02"
PATIENCE_S = 120.0


def event(number: int, kind: str, cost: str, **more: str) -> dict[str, Any]:
    return {"id": f"e{number}", "at": f"{DAY}T10:{number:02d}:00Z", "kind": kind, "cost": cost, **more}


def values(run: Lockstep, metric: str, *options: str) -> dict[str, Any]:
    rows = run.json("query", metric, *options)["rows"]
    return {"/".join(row["dimensions"].values()): row["value"] for row in rows}


@pytest.fixture
def catalogs(stack: Settings, registry: Settings, tmp_path: Path, unique: str) -> Iterator[tuple[Path, Path]]:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(OLD.format(source=unique))
    new.write_text(NEW.format(source=unique))
    yield old, new
    stop(stack, [f"{BESIDE}{unique}"])


def test_new_versions_are_filled_beside_the_old_and_switched_to_at_once(
    lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path, catalogs: tuple[Path, Path]
) -> None:
    old, new = map(lockstep, catalogs)
    file = tmp_path / "events.ndjson"
    written = [event(1, "bill", "10.00"), event(2, "fee", "2.50"), event(3, "visit", "0.00")]
    file.write_text("\n".join(map(json.dumps, written)))
    old("ingest", str(file))
    old("speed", "--until-drained")
    old("batch", "--from", DAY, "--to", DAY)
    old("reconcile", "--from", DAY, "--to", DAY)
    assert values(old, "costs") == {"": "10.00"}

    judged = new.json("validate", str(catalogs[1]), "--against", str(catalogs[0]))
    assert judged["impact"] == "needs backfill"
    file.write_text(json.dumps(event(4, "bill", "1.00", channel="online")))
    new("ingest", str(file))

    adopted = new.json("adopt")
    assert set(adopted["started"]) == {"visits", "costs", "by_channel"}
    assert set(adopted["waiting"]) == {"visits", "costs"}
    _await(lambda: values(new, "by_channel") == {"desk": 3, "online": 1})
    assert values(new, "costs") == {"": "10.00"}, "the name shows the old version, its day certified"

    version = next(row["catalog"] for row in new.json("versions")["metrics"] if row["metric"] == "costs")
    before = next(row["active"] for row in new.json("versions")["metrics"] if row["metric"] == "costs")
    assert values(new, "costs", "--metric-version", version[:8]) == {"": "13.50"}
    refused = new("switch", "--json", code=2)
    assert f"lacks 1 days, {DAY} to {DAY}" in json.loads(refused)["error"]

    new("batch", "--from", DAY, "--to", DAY)
    reconciled = new.json("reconcile", "--from", DAY, "--to", DAY)["partitions"]
    assert all(day["certified"] and not day["residual"] for day in reconciled)
    assert new.json("switch")["switched"] == ["visits", "costs"]
    assert values(new, "costs") == {"": "13.50"}
    assert values(new, "visits") == {"": 4}
    assert values(new, "costs", "--metric-version", before) == {"": "10.00"}


def _await(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)
