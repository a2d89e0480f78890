"""The main job: a source with a known truth through both layers, with and without a killed speed layer."""

import contextlib
import io
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from known_values import DAY, HOUR, TOLD, Known, known, midnight, milliseconds, moment
from lockstep_shell import Lockstep

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.settings import Settings
from infra.stack import status
from metrics.catalog import Metric, ShownMetric
from orchestration.cli.main import main
from orchestration.generator import GenerateOptions, Generation
from orchestration.produce import AtRate, LogWriter, ensure_event_topic
from orchestration.services import prepare_source

DISPOSITIONS = ("late", "duplicate", "id_conflict", "dead_letter")
READINGS = {"served": "exact", "batch": "exact", "speed": "counted"}
"""By layer, the reading of the truth that it gives on closed days."""

EVENTS = {"shop": 40_000, "devices": 10_000}
MOST = "1000000"  # rows, so that none is left out
MOST_UNLIKELY = 2
"""Distinct counts that may lie beyond bounds of three standard errors; more do in fewer than one run of 5,000."""

IDENTICAL_ALERTS = 0.9
"""Live alerts that are the truth's to the last digit, at least: of the others an event was sent out of order."""


@pytest.mark.parametrize("source", EVENTS)
def test_both_layers_say_exactly_what_the_generator_made(
    lockstep: Callable[[Path], Lockstep], request: pytest.FixtureRequest, source: str, tmp_path: Path
) -> None:
    run, truth_file = lockstep(request.getfixturevalue(source)), tmp_path / "truth.json"
    run("generate", "--events", str(EVENTS[source]), "--days", "2", "--seed", "11", "--id-conflicts", "5",
        "--oversized", "3", "--truth", str(truth_file))  # fmt: skip
    run("speed", "--until-drained")
    assert_both_layers_match(run, json.loads(truth_file.read_text()))


def test_a_speed_layer_killed_on_its_way_ends_in_the_same_numbers(
    lockstep: Callable[[Path], Lockstep], shop: Path, stack: Settings
) -> None:
    run, catalog = lockstep(shop), load_catalog(shop)
    prepare_source(stack, catalog)
    total, seed = 60_000, random.SystemRandom().randrange(1_000_000)
    kill_at = random.Random(seed).randint(total // 10, total // 2)
    generation = Generation(catalog, GenerateOptions(events=total, days=2, seed=seed), round(time.time() * 1000))
    killed = threading.Event()
    written = threading.Thread(target=_write_slowly, args=(stack, catalog, generation, total * 2 // 3, killed))
    written.start()
    speed = run.start("speed")
    try:
        published = _await_published(stack, catalog, kill_at)
        _kill_everything(stack, speed.pid)
    finally:
        killed.set()
        speed.wait()
    assert kill_at <= published < total, f"seed {seed}"

    written.join()
    run("speed", "--until-drained")
    assert_both_layers_match(run, generation.document(catalog.topic))


def assert_both_layers_match(run: Lockstep, truth: dict[str, Any]) -> None:
    """Batch and reconcile the closed days: every number and exception is the truth's, and nothing is left over."""
    days = truth["closed_days"]
    batch = run.json("batch", "--from", days[0], "--to", days[-1])["partitions"]
    made = [truth["by_day"][day] for day in days]
    assert [day["partition"] for day in batch] == days
    assert [day["events"] for day in batch] == [day["exact"]["events"] for day in made]
    assert [day["dead_letters"] for day in batch] == [day["dispositions"]["dead_letter"] for day in made]

    reconciled = run.json("reconcile", "--from", days[0], "--to", days[-1])["partitions"]
    for found, day in zip(reconciled, made, strict=True):
        assert found["certified"], found
        assert found["residual"] == 0
        assert found["causes"]["not_yet_closed"] == 0
        assert {name: found["causes"][name] for name in DISPOSITIONS} == {
            name: day["dispositions"][name] for name in DISPOSITIONS
        }
    for day in days:
        _report_names(run, day, truth)
    _values_are(run, truth)
    _alerts_are(run, truth)


def _report_names(run: Lockstep, day: str, truth: dict[str, Any]) -> None:
    """The report's exceptions are the truth's, record by record, and its alerts as many as were due."""
    report = run.json("report", "--date", day)
    named = Counter(
        (each["topic_partition"], each["offset"], each["disposition"])
        for each in report["partitions"][0]["exceptions"]["records"]
    )
    made = Counter(
        (each["topic_partition"], each["offset"], each["disposition"])
        for each in truth["exceptions"]
        if each["day"] == day
    )
    assert named == made
    due = {name: len(raised) for name, raised in truth["by_day"][day]["exact"]["alerts"].items()}
    assert {each["alert"]: each["due"] for each in report["alerts"]} == due


def _values_are(run: Lockstep, truth: dict[str, Any]) -> None:
    """Every metric of the catalog has the truth's values, in each layer."""
    unlikely = []
    for metric in load_catalog(run.catalog).shown:
        for layer, reading in READINGS.items():
            if metric.session:
                _sessions_are(run, metric, truth, layer)
                continue
            assert metric.name in TOLD, f"the truth says nothing of `{metric.name}`"
            for part in known(metric, truth, reading):
                outside = _outside(run, metric, part, layer)
                certain = layer != "speed" or not isinstance(metric, Metric) or metric.agg.name != "distinct"
                assert not (certain and outside), outside
                unlikely += outside
    assert len(unlikely) <= MOST_UNLIKELY, unlikely


def _outside(run: Lockstep, metric: ShownMetric, part: Known, layer: str) -> list[Any]:
    """Windows whose true value lies beyond their bounds; those without bounds have it to the last digit."""
    rows = _ask(
        run, "query", metric.name, "--grain", part.grain, "--layer", layer, "--limit", MOST,
        "--from", part.start.isoformat(), "--to", part.end.isoformat(),
    )["rows"]  # fmt: skip
    found = {(row["window_start"], *row["dimensions"].values()): row for row in rows}
    assert len(found) == len(rows)
    assert {row["layer"] for row in rows} <= {"speed" if layer == "speed" else "batch"}
    sketched = {key for key, row in found.items() if row["lower"] is not None}
    assert not sketched or (layer == "speed" and not metric.exact)
    values = {key: part.values.get(key) if key in sketched else row["value"] for key, row in found.items()}
    assert values == part.values, (metric.name, part.grain, layer)
    return [
        (metric.name, found[key], values[key])
        for key in sketched
        if not Decimal(str(found[key]["lower"])) <= Decimal(str(values[key])) <= Decimal(str(found[key]["upper"]))
    ]


def _sessions_are(run: Lockstep, metric: ShownMetric, truth: dict[str, Any], layer: str) -> None:
    """Sessions of the closed days are as many and as long as the truth's, those of an hour each by itself."""
    rows = _ask(run, "query", metric.name, "--layer", layer, "--limit", MOST)["rows"]
    ended = [(moment(milliseconds(row["window_end"]) - 1), row) for row in rows]
    for day in truth["closed_days"]:
        known_of_day, begin = truth["by_day"][day][READINGS[layer]], midnight(day)
        today = [row for end, row in ended if begin <= end < begin + DAY]
        assert {
            "number": len(today),
            "events": sum(row["value"] for row in today),
            "length_ms": sum(row["length_ms"] for row in today),
        } == known_of_day["sessions"]
        assert {row["layer"] for row in today} == {"speed" if layer == "speed" else "batch"}
        found = [
            [row["dimensions"]["session_key"], milliseconds(row["window_start"]), row["length_ms"], row["value"]]
            for end, row in ended
            if begin - HOUR / 2 <= end < begin + HOUR / 2
        ]
        assert sorted(found) == known_of_day["hour"]["sessions"]


def _alerts_are(run: Lockstep, truth: dict[str, Any]) -> None:
    """Those due are the truth's; live ones, judged before all events had come, lie each in a breach and miss none."""
    client, database = connect(run.settings), quote(run.settings.database(load_catalog(run.catalog).source))
    due = client.query(
        f"SELECT alert, dims, toUnixTimestamp64Milli(breached_at), value FROM {database}.batch_alerts"
    ).result_rows
    raised = [raised for day in truth["closed_days"] for raised in _breaches(truth["by_day"][day]["exact"])]
    assert sorted((name, sorted(dims.items()), at, value) for name, dims, at, value in due) == sorted(
        (*key, at, value) for key, at, _, value in raised
    )

    live = [
        ((each["alert"], sorted(each["dims"].items())), milliseconds(each["breached_at"]), each["value"])
        for each in _ask(run, "alerts", "--limit", MOST)["alerts"]
    ]
    breaches = _breaches(truth["total"]["counted"])
    for key, at, _ in live:
        assert any(key == of and begin <= at <= until for of, begin, until, _ in breaches), (key, at)
    for key, begin, until, _ in breaches:
        assert any(key == of and begin <= at <= until for of, at, _ in live), (key, begin)
    identical = sum((key, begin, value) in live for key, begin, _, value in breaches)
    assert identical >= IDENTICAL_ALERTS * len(breaches)


def _breaches(answers: dict[str, Any]) -> list[tuple[tuple[str, list[tuple[str, str]]], int, int, float]]:
    """The truth's alerts: name and dimensions, when they were breached and until when, and the value."""
    besides = {"breached_at", "until", "value"}
    return [
        (
            (name, sorted((key, text) for key, text in each.items() if key not in besides)),
            each["breached_at"],
            each["until"],
            float(each["value"]),
        )
        for name, raised in answers["alerts"].items()
        for each in raised
    ]


def _ask(run: Lockstep, *arguments: str) -> dict[str, Any]:
    """What a command that only reads prints, in this process: there are hundreds of them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        for name, value in run.settings.environ().items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(["--catalog", str(run.catalog), *arguments, "--json"])
    assert not ended.value.code, said.getvalue()
    return json.loads(said.getvalue())


def _write_slowly(
    settings: Settings, catalog: Any, generation: Generation, held_from: int, killed: threading.Event
) -> None:
    """Write the history; what comes from record `held_from` on waits until the speed layer has been killed."""
    ensure_event_topic(settings, catalog.topic, catalog.topic_partitions, generation.floor)
    with LogWriter(settings, catalog.topic, time.time) as writer:
        pace = AtRate(time.time(), per_second=6_000.0)
        history = (each for records in generation.history() for each in generation.outgoing(records))
        writer.send_all(itertools.islice(history, held_from), pace)
        killed.wait()
        writer.send_all(history)


def _await_published(settings: Settings, catalog: Any, offsets: int) -> int:
    """Wait until the speed layer has published so many offsets; returns how many it has."""
    client, database = connect(settings), quote(settings.database(catalog.source))
    pause, patience_s, poll_s = threading.Event(), 120, 0.05
    for _ in range(int(patience_s / poll_s)):
        ((published,),) = client.query(f"SELECT sum(next_offset) FROM {database}.watermarks FINAL").result_rows
        if published >= offsets:
            return int(published)
        pause.wait(poll_s)
    pytest.fail(f"the speed layer has published {published} of {offsets} offsets after {patience_s} s")


def _kill_everything(settings: Settings, submitter: int) -> None:
    """Kill -9: the submitter, every worker, and Flink with its job; their supervisors start them again."""
    os.kill(submitter, signal.SIGKILL)
    for service in status(settings):
        if service.name in {"beam-workers", "flink-jobserver"} and service.pid is not None:
            process = psutil.Process(service.pid)
            for each in (*process.children(recursive=True), process):
                each.kill()
