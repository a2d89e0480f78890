"""What `bench speed` runs: the backlogs, and each system over its own."""

import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infra import kafka
from infra.catalog_file import load_catalog
from infra.settings import Settings
from metrics.catalog import Catalog
from speed_layer.bench.backlog import Backlog, Body, body_a, body_b, fill, of_events
from speed_layer.bench.ceiling import ceiling
from speed_layer.bench.drain import drain
from speed_layer.bench.flink_sql import flink_sql
from speed_layer.bench.per_element import per_element
from speed_layer.bench.run import Run
from speed_layer.bench.throughput import (
    CEILING,
    FLINK_SQL,
    FLINK_SQL_PLAIN,
    PER_ELEMENT,
    PER_ELEMENT_PLAIN,
    SHORT_EVENTS,
    TITLES,
    A,
    B,
)

HEAVIEST = (
    "sessions", "unique_visitors", "top_pages", "stock", "latency_p95", "views", "order_value_p50", "order_value_p95",
    "order_value_p99", "events_by_type",
)  # fmt: skip
"""The ten metrics of the shop whose folding takes longest, or makes the largest states, as measured on a chunk."""

JOB_A = Path(__file__).with_name("job_a.yaml")


@dataclass(frozen=True)
class Means:
    """What the systems need.

    Attributes:
        settings: Of a stack that is up.
        shop: The shop's catalog file, of which job B is a part.
        cluster: Settings of the cluster for Flink SQL: a data directory and ports of its own.
        flink_home: Gives Flink's home; asked if Flink SQL is to run.
        report: Told what goes on.
    """

    settings: Settings
    shop: Path
    cluster: Settings
    flink_home: Callable[[], Path]
    report: Callable[[str], None]


@contextmanager
def prepared(means: Means, wanted: Collection[str], events: int) -> Iterator[Mapping[str, Callable[[], Run]]]:
    """Writes the backlogs that the wanted systems read, and gives what runs each of these; cleans up at the end."""
    settings = means.settings
    name = f"lockstep.bench_{uuid.uuid4().hex[:8]}"
    catalog = replace(load_catalog(JOB_A), topic=f"{name}.a")
    shop = replace(load_catalog(means.shop).only(HEAVIEST), topic=f"{name}.b")
    short = of_events(catalog.topic, min(events, SHORT_EVENTS), catalog.topic_partitions, body_a)
    with ExitStack() as stack:
        runs: dict[str, Callable[[], Run]] = {}
        if set(wanted) - {B}:
            whole = stack.enter_context(_filled(means, catalog, events, body_a))
            runs |= {
                A: partial(drain, settings, catalog, whole),
                PER_ELEMENT: partial(per_element, settings, catalog, short),
                PER_ELEMENT_PLAIN: partial(per_element, settings, catalog, short, dedup=False),
                CEILING: partial(ceiling, settings, whole),
            }
        if B in wanted:
            runs[B] = partial(drain, settings, shop, stack.enter_context(_filled(means, shop, events, body_b)))
        if {FLINK_SQL, FLINK_SQL_PLAIN} & set(wanted):
            means.report("starting a Flink cluster")
            flink = stack.enter_context(flink_sql(settings, means.cluster, means.flink_home(), os.getpid()))
            runs |= {FLINK_SQL: partial(flink.run, whole), FLINK_SQL_PLAIN: partial(flink.run, whole, dedup=False)}
        yield {system: runs[system] for system in TITLES if system in wanted}


@contextmanager
def _filled(means: Means, catalog: Catalog, events: int, body: Body) -> Iterator[Backlog]:
    topics = [catalog.topic, catalog.dlq_topic, catalog.late_topic]
    try:
        report = lambda written: means.report(f"{catalog.topic}: {written:,} of {events:,} events written")  # noqa: E731
        yield fill(means.settings, catalog, events, body, report)
    finally:
        for future in kafka.admin(means.settings).delete_topics(topics).values():
            future.exception()
