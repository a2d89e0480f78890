"""The main job: a shop with a known truth through both layers, with and without a killed speed layer."""

import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from lockstep_shell import Lockstep

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.settings import Settings
from infra.stack import status
from orchestration.generator import GenerateOptions, Generation
from orchestration.produce import AtRate, LogWriter, ensure_event_topic
from orchestration.services import prepare_source

DISPOSITIONS = ("late", "duplicate", "id_conflict", "dead_letter")


def test_the_report_names_exactly_what_the_generator_made_wrong(
    lockstep: Callable[[Path], Lockstep], shop: Path, tmp_path: Path
) -> None:
    run, truth_file = lockstep(shop), tmp_path / "truth.json"
    run("generate", "--events", "40000", "--days", "2", "--seed", "11", "--id-conflicts", "5", "--oversized", "3",
        "--truth", str(truth_file))  # fmt: skip
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
    known = [truth["by_day"][day] for day in days]
    assert [day["partition"] for day in batch] == days
    assert [day["events"] for day in batch] == [day["exact"]["events"] for day in known]
    assert [day["dead_letters"] for day in batch] == [day["dispositions"]["dead_letter"] for day in known]

    reconciled = run.json("reconcile", "--from", days[0], "--to", days[-1])["partitions"]
    for found, made in zip(reconciled, known, strict=True):
        assert found["certified"], found
        assert found["residual"] == 0
        assert found["causes"]["not_yet_closed"] == 0
        assert {name: found["causes"][name] for name in DISPOSITIONS} == {
            name: made["dispositions"][name] for name in DISPOSITIONS
        }
    for day, made in zip(days, known, strict=True):
        _report_names(run, day, truth)
        _values_are(run, day, made["exact"])


def _report_names(run: Lockstep, day: str, truth: dict[str, Any]) -> None:
    """The report's exceptions are the truth's, record by record."""
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


def _values_are(run: Lockstep, day: str, exact: dict[str, Any]) -> None:
    def served(metric: str) -> list[dict[str, Any]]:
        end = datetime.fromisoformat(day).replace(hour=1, tzinfo=UTC).isoformat()
        return run.json("query", metric, "--grain", "1d", "--from", day, "--to", end)["rows"]

    assert [row["value"] for row in served("events")] == [exact["events"]]
    assert {row["dimensions"]["event_type"]: row["value"] for row in served("events_by_type")} == exact[
        "events_by_type"
    ]
    assert {row["dimensions"]["country"]: row["value"] for row in served("revenue")} == exact["revenue_by_country"]
    (visitors,) = served("unique_visitors")
    assert (visitors["value"], visitors["layer"]) == (exact["distinct_users"], "batch")


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
