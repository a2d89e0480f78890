"""The main job, in one go: stack, events, both layers, reconciliation. Whatever is already right is left as it is."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from infra.service import Service
from infra.services import flink_services
from infra.settings import Settings
from infra.stack import ServiceStatus, status
from metrics.catalog import Catalog
from orchestration import services
from orchestration.backfill_plan import ranges
from orchestration.dagster_client import DagsterClient, RunState
from orchestration.demo_source import HISTORY_DAYS, DemoOptions, DemoSource
from orchestration.sources import load_sources
from orchestration.steps import Step, Steps
from orchestration.worlds import kind_of
from reconciliation.reconcile import examine, reader
from reconciliation.result import PartitionReconciliation

_POLL_S = 0.25
_PATIENCE_S = 600.0
_MORE_RECONCILIATIONS = 3


class DemoError(RuntimeError):
    """The demo cannot go on; the text says what did not come and where to look."""


@dataclass(frozen=True)
class SourceOutcome:
    """What the demo ended with for one source.

    Attributes:
        days: every closed day, reconciled.
        truth: the ground truth of the history; None where the events came from elsewhere.
        lag_s: seconds from the newest event to what the speed layer has published, at the end.
    """

    catalog: Catalog
    days: tuple[PartitionReconciliation, ...]
    truth: dict[str, Any] | None
    lag_s: float


@dataclass(frozen=True)
class Outcome:
    """What the demo ended with: its sources, the stack as it is left, and how long it took."""

    sources: tuple[SourceOutcome, ...]
    services: tuple[ServiceStatus, ...]
    seconds: float

    @property
    def problem(self) -> bool:
        """Whether a day is not certified, or has a residual."""
        return any(day.problem for source in self.sources for day in source.days)


@dataclass
class Demo:
    """One run of the demo.

    Raises (from `run`):
        CatalogError: A catalog breaks a rule; nothing was started.
        TrafficError: A catalog describes events that the generator does not make.
        StackError: A service could not be started.
        DagsterError: A batch run failed.
        DemoError: A layer did not get on.
    """

    settings: Settings
    catalog_path: Path
    options: DemoOptions
    steps: Steps
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> Outcome:
        """Do all of it; steps that need not wait for each other run side by side."""
        files = load_sources(self.catalog_path)
        sources = [DemoSource(self.settings, file, self.options) for file in files]
        # Those of which most is made come first: everything else waits for them.
        sources.sort(key=lambda source: -kind_of(source.file.catalog).events)
        below = services.stores_of(self.settings, files)
        above = services.layers(self.settings, self.catalog_path)
        with self.steps.step("Kafka and ClickHouse") as step:
            services.start(self.settings, below, step.say)
        with self.steps.step("topics, tables and views of the catalogs") as step:
            for source in sources:
                services.prepare_source(self.settings, source.file.catalog)
            services.stop_others(self.settings, files, step.say)
            step.done(", ".join(f"{len(each.file.catalog.shown)} metrics of `{each.name}`" for each in sources))
        self._together(
            lambda: self._history(sources),
            lambda: self._start([*below, *flink_services(self.settings), *above]),
        )
        self._together(lambda: self._published(sources), lambda: self._closed(sources))
        with self.steps.step("what is served") as step:
            outcomes = tuple(self._outcome(source, step) for source in sources)
        return Outcome(outcomes, tuple(status(self.settings)), self.steps.seconds)

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
        with self.steps.step("Flink, speed layers, Dagster, API and dashboard") as step:
            services.start(self.settings, wanted, step.say)

    def _history(self, sources: Sequence[DemoSource]) -> None:
        for source in sources:
            with self.steps.step(f"{source.name}: history of {HISTORY_DAYS} days and today") as step:
                step.done(source.history(step))

    def _published(self, sources: Sequence[DemoSource]) -> None:
        """Live events, and the speed layers' windows of them."""
        services.start(self.settings, [source.live() for source in sources], lambda _: None)
        begun = datetime.now(UTC)
        self._together(*(lambda source=source: self._published_of(source, begun) for source in sources))

    def _published_of(self, source: DemoSource, begun: datetime) -> None:
        with self.steps.step(f"{source.name}: live events, and the speed layer's windows of them") as step:
            target = source.log_end()

            def reached() -> bool:
                done, all_ = source.published(target), sum(target.values())
                step.say(f"{done:,} of {all_:,} events")
                return done >= all_

            log = f"{services.SPEED}{source.name}"
            self._await(reached, f"the speed layer of `{source.name}` did not publish", log)
            self._await(lambda: source.newest() >= begun, f"no live event of `{source.name}` was published", log)
            step.done(f"published {source.lag_s():.1f} s after they happened")

    def _closed(self, sources: Sequence[DemoSource]) -> None:
        """One source after the other: Spark takes all cores of a small machine."""
        for source in sources:
            self._closed_of(source)

    def _closed_of(self, source: DemoSource) -> None:
        """Dagster runs the batch layer and reconciliation for the closed days that are not certified."""
        days = source.days()
        wanted = [day for day in days if day not in source.certified()]
        if not wanted:
            with self.steps.step(f"{source.name}: Dagster, closed days") as step:
                step.done(f"{len(days)} days are certified already")
            return
        dagster = DagsterClient(self.settings)
        with self.steps.step(f"{source.name}: Dagster, Spark batch layer, reconciliation, certificates") as step:
            late = f"the last closed day of `{source.name}` is not closed in the log"
            self._await(lambda: source.log_reaches(days[-1]), late, f"{services.LIVE}{source.name}")
            for first, last in ranges(wanted):
                self._follow(dagster, dagster.launch(source.name, first, last), step)
            step.done(f"{len(wanted)} days in {dagster.address}/runs")

    def _outcome(self, source: DemoSource, step: Step) -> SourceOutcome:
        """The days as they stand; days that the speed layer had not closed when Dagster looked are looked at again."""
        dagster, days = DagsterClient(self.settings), source.days()
        for attempt in range(_MORE_RECONCILIATIONS + 1):
            results = examine(reader(source.client), source.file.catalog, source.database, days)
            again = self._to_reconcile_again(source, results)
            if not again or attempt == _MORE_RECONCILIATIONS:
                break
            for first, last in ranges(again):
                run = dagster.launch(source.name, first, last, ("reconciliation", "certificates"))
                self._follow(dagster, run, step)
        return SourceOutcome(source.file.catalog, results, source.truth(), source.lag_s())

    def _to_reconcile_again(self, source: DemoSource, results: Sequence[PartitionReconciliation]) -> list[date]:
        certified = source.certified()
        return [
            each.partition for each in results if each.causes.get("not_yet_closed") or each.partition not in certified
        ]

    def _await(self, reached: Callable[[], bool], otherwise: str, service: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not reached():
            self._go_on()
            if time.monotonic() > deadline:
                log = self.settings.log_dir / f"{service}.log"
                msg = f"{otherwise} within {_PATIENCE_S:.0f} s. read {log}, then run the demo again"
                raise DemoError(msg)
            time.sleep(_POLL_S)

    def _follow(self, dagster: DagsterClient, run: str, step: Step) -> None:
        """Wait for the end of a run, saying what it is at."""

        def told(state: RunState) -> None:
            self._go_on()
            working = [name.rpartition("__")[2] for name, status in state.steps.items() if status == "IN_PROGRESS"]
            step.say(", ".join(working) or state.status.lower())

        dagster.wait(run, told)

    def _go_on(self) -> None:
        if self._stopped.is_set():
            msg = "another step failed"
            raise DemoError(msg)
