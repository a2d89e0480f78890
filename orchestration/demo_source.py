"""One source of the demo: its history, its live events, how far the layers have come with it."""

import json
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect, quote
from infra.kafka import log_offsets, offsets_at
from infra.service import Service
from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.generator import GenerateOptions, generate
from orchestration.services import LIVE
from orchestration.sources import SourceFile
from orchestration.steps import Step
from orchestration.worlds import SHOP, kind_of
from serving.status import read_status

HISTORY_DAYS = 3
FEWEST_EVENTS = 1_000
FEWEST_PER_SECOND = 1.0
_LIVE_SECONDS = 86_400


@dataclass(frozen=True)
class DemoOptions:
    """How much is made: the shop's records of history and live events a second, and the seed; devices make a tenth."""

    events: int = 200_000
    rate: float = 50.0
    seed: int = 1


@dataclass(frozen=True)
class DemoSource:
    """What the demo does with one source, and what it asks of the log and the tables."""

    settings: Settings
    file: SourceFile
    options: DemoOptions

    @property
    def name(self) -> str:
        """The source's name."""
        return self.file.name

    @property
    def database(self) -> str:
        """The source's database in ClickHouse."""
        return self.settings.database(self.name)

    @cached_property
    def client(self) -> Client:
        """A connection of this source's own: sources are asked for side by side."""
        return connect(self.settings)

    def history(self, step: Step) -> str:
        """Make three closed days and today so far, once; says what was made.

        After an interruption it is sent again: copies do not count.
        """
        begun = self._home / f"{self.name}.begun"
        if begun.exists():
            now, truth = datetime.fromisoformat(begun.read_text()), None
        elif any(end for _, end in log_offsets(self.settings, self._catalog.topic).values()):
            return f"`{self._catalog.topic}` has events already, so none are made"
        else:
            now, truth = datetime.now(UTC), self._truth_file
            self._home.mkdir(parents=True, exist_ok=True)
            begun.write_text(now.isoformat())
        events = max(FEWEST_EVENTS, round(self.options.events * self._share))
        options = GenerateOptions(events=events, seed=self.options.seed, days=HISTORY_DAYS, now=now)
        made = generate(self.settings, self._catalog, options, truth, lambda _, more, all_: step.advance(more, all_))
        begun.unlink()
        return f"{made.sent:,} events into `{made.topic}`"

    def live(self) -> Service:
        """The service that goes on making events."""
        rate = max(FEWEST_PER_SECOND, self.options.rate * self._share)
        actors = kind_of(self._catalog).live_actors
        # fmt: off
        return Service(
            name=f"{LIVE}{self.name}",
            argv=(sys.executable, "-m", "orchestration.cli.main", "--catalog", str(self.file.path), "generate",
                  "--events", "0", "--days", "0", "--users", str(actors), "--seed", str(self.options.seed),
                  "--rate", f"{rate:g}", "--live", str(_LIVE_SECONDS)),
            address=self._catalog.topic,
            ready=lambda: True,
            needs=("kafka",),
        )
        # fmt: on

    def log_end(self) -> dict[int, int]:
        """The offsets at which the log ends now, by topic partition."""
        return {number: end for number, (_, end) in log_offsets(self.settings, self._catalog.topic).items()}

    def published(self, target: dict[int, int]) -> int:
        """How many of the offsets before a target the speed layer has published."""
        rows = self.client.query(
            f"SELECT topic_partition, next_offset FROM {quote(self.database)}.watermarks FINAL"
            " WHERE topic = {name:String}",
            parameters={"name": self._catalog.topic},
        ).result_rows
        reached = dict(rows)
        return sum(min(reached.get(number, 0), end) for number, end in target.items())

    def newest(self) -> datetime:
        """The newest record time published; the watermark trails it by the out-of-orderness."""
        ((found, newest),) = self.client.query(
            f"SELECT count(), max(watermark) FROM {quote(self.database)}.watermarks FINAL"
        ).result_rows
        return newest + self._catalog.out_of_orderness if found else datetime.fromtimestamp(0, UTC)

    def lag_s(self) -> float:
        """Seconds from the newest event that is published until now."""
        return max(0.0, (datetime.now(UTC) - self.newest()).total_seconds())

    def days(self) -> list[date]:
        """Every closed day from the first in the log to the last to which nothing that counts can be added any more."""
        late_after = self._catalog.out_of_orderness + self._catalog.allowed_lateness
        last = (datetime.now(UTC) - late_after).date() - timedelta(days=1)
        truth = self.truth()
        if truth and truth["closed_days"]:
            first = date.fromisoformat(truth["closed_days"][0])
        else:
            first = last - timedelta(days=HISTORY_DAYS - 1)
        return [first + timedelta(days=number) for number in range((last - first).days + 1)]

    def certified(self) -> set[date]:
        """Days whose published run is certified, clean, and of the metrics as they are defined now."""
        versions = {metric.metric_version for metric in self._catalog.metrics}
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

    def log_reaches(self, day: date) -> bool:
        """Whether the log has a record from after the day's lateness, which closes the day."""
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        closed = end + self._catalog.allowed_lateness + self._catalog.out_of_orderness
        found = offsets_at(self.settings, self._catalog.topic, round(closed.timestamp() * 1000))
        return any(found[number] < stop for number, stop in self.log_end().items())

    @property
    def _catalog(self) -> Catalog:
        return self.file.catalog

    @property
    def _share(self) -> float:
        """How much is made of this source for each event of the shop.

        Raises:
            TrafficError: The generator does not make events of this kind.
        """
        return kind_of(self._catalog).events / SHOP.events

    @property
    def _home(self) -> Path:
        return self.settings.data_dir.absolute() / "demo"

    @property
    def _truth_file(self) -> Path:
        return self._home / f"{self.name}.truth.json"

    def truth(self) -> dict[str, Any] | None:
        """The ground truth of the history; None where the events came from elsewhere."""
        return json.loads(self._truth_file.read_text()) if self._truth_file.exists() else None
