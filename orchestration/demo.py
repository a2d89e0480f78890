"""The main job, in one go: stack, events, both layers, reconciliation. Whatever is already right is left as it is."""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.kafka import log_offsets, offsets_at
from infra.service import Service
from infra.services import flink_services
from infra.settings import Settings
from infra.stack import ServiceStatus, status
from orchestration import services
from orchestration.dagster_client import DagsterClient, RunState
from orchestration.generator import GenerateOptions, generate
from orchestration.steps import Step, Steps
from reconciliation.reconcile import examine, reader
from reconciliation.result import PartitionReconciliation
from serving.status import read_status

HISTORY_DAYS = 3
_LIVE_SECONDS = 86_400
_LIVE_USERS = 2_000
_POLL_S = 0.25
_PATIENCE_S = 180.0
_MORE_RECONCILIATIONS = 3


class DemoError(RuntimeError):
    """The demo cannot go on; the text says what did not come and where to look."""


@dataclass(frozen=True)
class DemoOptions:
    """How large a shop: records of history, live events a second, and the seed."""

    events: int = 200_000
    rate: float = 50.0
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What the demo ended with.

    Attributes:
        days: every closed day, reconciled.
        truth: the ground truth of the history; None where the events came from elsewhere.
        lag_s: seconds from the newest event to what the speed layer has published, at the end.
        services: the stack as it is left.
        seconds: how long it took.
    """

    catalog_path: Path
    days: tuple[PartitionReconciliation, ...]
    truth: dict[str, Any] | None
    lag_s: float | None
    services: tuple[ServiceStatus, ...]
    seconds: float

    @property
    def problem(self) -> bool:
        """Whether a day is not certified, or has a residual."""
        return any(day.problem for day in self.days)


@dataclass
class Demo:
    """One run of the demo.

    Raises (from `run`):
        CatalogError: The catalog breaks a rule; nothing was started.
        TrafficError: The catalog is not the shop's.
        StackError: A service could not be started.
        DagsterError: The batch run failed.
        DemoError: A layer did not get on.
    """

    settings: Settings
    catalog_path: Path
    options: DemoOptions
    steps: Steps
    client: Client = field(init=False)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.catalog = load_catalog(self.catalog_path)
        self.database = self.settings.database(self.catalog.source)
        self.home = self.settings.data_dir.absolute() / "demo"
        self.truth_file = self.home / f"{self.catalog.source}.truth.json"

    def run(self) -> Outcome:
        """Do all of it; steps that need not wait for each other run side by side."""
        above = services.layers(self.settings, self.catalog_path)
        with self.steps.step("Kafka and ClickHouse") as step:
            services.start(self.settings, services.stores(self.settings), step.say)
        with self.steps.step("topics, tables and views of the catalog") as step:
            services.prepare_source(self.settings, self.catalog)
            self.client = connect(self.settings)
            step.done(f"{len(self.catalog.metrics)} metrics of `{self.catalog.source}`")
        self._together(self._history, lambda: self._start([*flink_services(self.settings), *above]))
        self._together(self._published, self._closed)
        days = self._days()
        with self.steps.step("what is served") as step:
            results = self._reconciled(days, step)
            lag = self._lag()
        stack = tuple(status(self.settings))
        return Outcome(self.catalog_path, results, self._truth(), lag, stack, self.steps.seconds)

    def _together(self, *steps: Callable[[], None]) -> None:
        """Run steps side by side; when one fails, the others need not wait any longer."""
        with ThreadPoolExecutor(len(steps)) as pool:
            try:
                running = [pool.submit(step) for step in steps]
                for future in as_completed(running):
                    future.result()
            except BaseException:
                self._stopped.set()
                raise

    def _start(self, wanted: Sequence[Service]) -> None:
        with self.steps.step("Flink, speed layer, Dagster, API and dashboard") as step:
            services.start(self.settings, [*services.stores(self.settings), *wanted], step.say)

    def _history(self) -> None:
        """Three closed days and today so far, once. After an interruption it is sent again: copies do not count."""
        begun = self.home / f"{self.catalog.source}.begun"
        if begun.exists():
            now, truth = datetime.fromisoformat(begun.read_text()), None
        elif any(end for _, end in log_offsets(self.settings, self.catalog.topic).values()):
            with self.steps.step("history") as step:
                step.done("the log has events already, so none are made")
            return
        else:
            now, truth = datetime.now(UTC), self.truth_file
            self.home.mkdir(parents=True, exist_ok=True)
            begun.write_text(now.isoformat())
        with self.steps.step(f"history of {HISTORY_DAYS} days and today") as step:
            options = GenerateOptions(events=self.options.events, seed=self.options.seed, days=HISTORY_DAYS, now=now)
            made = generate(self.settings, self.catalog, options, truth, lambda _, more, all_: step.advance(more, all_))
            begun.unlink()
            step.done(f"{made.sent:,} events into `{made.topic}`")

    def _live(self) -> Service:
        # fmt: off
        return Service(
            name="shop",
            argv=(sys.executable, "-m", "orchestration.cli.main", "--catalog", str(self.catalog_path), "generate",
                  "--events", "0", "--days", "0", "--users", str(_LIVE_USERS), "--seed", str(self.options.seed),
                  "--rate", f"{self.options.rate:g}", "--live", str(_LIVE_SECONDS)),
            address=self.catalog.topic,
            ready=lambda: True,
            needs=("kafka",),
        )
        # fmt: on

    def _published(self) -> None:
        """Live events, and the speed layer's windows of them."""
        with self.steps.step("live events, and the speed layer's windows of them") as step:
            services.start(self.settings, [self._live()], lambda _: None)
            begun = datetime.now(UTC)
            target = {number: end for number, (_, end) in log_offsets(self.settings, self.catalog.topic).items()}
            self._await(lambda: self._positions(step, target), "the speed layer did not publish", "speed")
            self._await(lambda: self._newest() >= begun, "no live event was published", "speed")
            step.done(f"published {self._lag():.1f} s after they happened")

    def _positions(self, step: Step, target: dict[int, int]) -> bool:
        rows = self.client.query(
            f"SELECT topic_partition, next_offset FROM {quote(self.database)}.watermarks FINAL"
            " WHERE topic = {name:String}",
            parameters={"name": self.catalog.topic},
        ).result_rows
        reached = {number: offset for number, offset in rows}  # noqa: C416 - typed rows
        done = sum(min(reached.get(number, 0), end) for number, end in target.items())
        step.say(f"{done:,} of {sum(target.values()):,} events")
        return all(reached.get(number, 0) >= end for number, end in target.items())

    def _newest(self) -> datetime:
        """The newest record time published; the watermark trails it by the out-of-orderness."""
        ((found, newest),) = self.client.query(
            f"SELECT count(), max(watermark) FROM {quote(self.database)}.watermarks FINAL"
        ).result_rows
        return newest + self.catalog.out_of_orderness if found else datetime.fromtimestamp(0, UTC)

    def _lag(self) -> float:
        return max(0.0, (datetime.now(UTC) - self._newest()).total_seconds())

    def _closed(self) -> None:
        """Dagster runs the batch layer and reconciliation for the closed days that are not certified."""
        days = self._days()
        wanted = [day for day in days if day not in self._certified()]
        if not wanted:
            with self.steps.step("Dagster: closed days") as step:
                step.done(f"{len(days)} days are certified already")
            return
        dagster = DagsterClient(self.settings)
        with self.steps.step("Dagster: Spark batch layer, reconciliation, certificates") as step:
            self._await(lambda: self._log_reaches(days[-1]), "the last closed day is not closed in the log", "shop")
            for first, last in ranges(wanted):
                run = dagster.launch(first, last)
                dagster.wait(run, lambda state: self._follow(step, state))
            step.done(f"{len(wanted)} days in {dagster.address}/runs")

    def _reconciled(self, days: Sequence[date], step: Step) -> tuple[PartitionReconciliation, ...]:
        """The days as they stand; days that the speed layer had not closed when Dagster looked are looked at again."""
        dagster = DagsterClient(self.settings)
        for attempt in range(_MORE_RECONCILIATIONS + 1):
            results = examine(reader(self.client), self.catalog, self.database, days)
            waiting = [each.partition for each in results if each.causes.get("not_yet_closed")]
            early = [each.partition for each in results if each.partition not in self._certified()]
            again = sorted({*waiting, *early})
            if not again or attempt == _MORE_RECONCILIATIONS:
                break
            for first, last in ranges(again):
                run = dagster.launch(first, last, ("reconciliation", "certificates"))
                dagster.wait(run, lambda state: self._follow(step, state))
        return results

    def _days(self) -> list[date]:
        """Every closed day from the first in the log to the last to which nothing that counts can be added any more."""
        late_after = self.catalog.out_of_orderness + self.catalog.allowed_lateness
        last = (datetime.now(UTC) - late_after).date() - timedelta(days=1)
        truth = self._truth()
        if truth and truth["closed_days"]:
            first = date.fromisoformat(truth["closed_days"][0])
        else:
            first = last - timedelta(days=HISTORY_DAYS - 1)
        return [first + timedelta(days=number) for number in range((last - first).days + 1)]

    def _certified(self) -> set[date]:
        """Days whose published run is certified, clean, and of the metrics as they are defined now."""
        versions = {metric.metric_version for metric in self.catalog.metrics}
        rows = self.client.query(
            f"SELECT partition, argMax(metric_versions, published_at) FROM {quote(self.database)}.publications"
            " GROUP BY partition"
        ).result_rows
        current = {day for day, published in rows if versions <= set(published)}
        return {
            day.partition
            for day in read_status(self.client, self.database).days
            if day.certified and day.verdict == "clean" and day.partition in current
        }

    def _log_reaches(self, day: date) -> bool:
        """Whether the log has a record from after the day's lateness, which closes the day."""
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        closed = end + self.catalog.allowed_lateness + self.catalog.out_of_orderness
        found = offsets_at(self.settings, self.catalog.topic, round(closed.timestamp() * 1000))
        ends = log_offsets(self.settings, self.catalog.topic)
        return any(found[number] < stop for number, (_, stop) in ends.items())

    def _await(self, reached: Callable[[], bool], otherwise: str, service: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not reached():
            self._go_on()
            if time.monotonic() > deadline:
                log = self.settings.log_dir / f"{service}.log"
                msg = f"{otherwise} within {_PATIENCE_S:.0f} s. read {log}, then run the demo again"
                raise DemoError(msg)
            time.sleep(_POLL_S)

    def _follow(self, step: Step, state: RunState) -> None:
        self._go_on()
        working = [name for name, status in state.steps.items() if status == "IN_PROGRESS"]
        step.say(", ".join(working) or state.status.lower())

    def _go_on(self) -> None:
        if self._stopped.is_set():
            msg = "another step failed"
            raise DemoError(msg)

    def _truth(self) -> dict[str, Any] | None:
        return json.loads(self.truth_file.read_text()) if self.truth_file.exists() else None


def ranges(days: Sequence[date]) -> list[tuple[date, date]]:
    """Ascending days as ranges without gaps, both ends included."""
    found: list[tuple[date, date]] = []
    for day in days:
        if found and day - found[-1][1] == timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
