"""A batch run of several sources: all are planned before one is computed, and all share a Spark session."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import date
from functools import cache

from pyspark.sql import SparkSession

from batch_layer.job import spark_session
from batch_layer.planning import plan_days
from batch_layer.run import PartitionResult, compute
from batch_layer.tasks import Told
from infra.settings import Settings
from metrics.catalog import Catalog


def run_all(
    settings: Settings,
    catalogs: Sequence[Catalog],
    days: Sequence[date],
    *,
    allow_open: bool = False,
    reindex: bool = False,
    session_of: Callable[[Settings, int], AbstractContextManager[SparkSession]] = spark_session,
    told: Told = lambda *_: None,
) -> list[list[PartitionResult]]:
    """Computes and publishes days of each source in turn; a source's days become visible when it is done.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalogs: What is computed.
        days: UTC days, in any order.
        allow_open: Whether a day may be computed before the watermark has passed its end and the lateness.
        reindex: Whether the whole log is read for its index, which is else brought up to date.
        session_of: Opens a Spark session for a number of records.
        told: Told how far the index of the log is, and then the days.

    Returns:
        What `run` returns, per catalog.

    Raises:
        DayRefusedError: The log of a source cannot give one of the days; nothing was written.
        WriteError: ClickHouse lost rows; nothing of that source was published, nor of those after it.
    """
    plans = [
        plan_days(settings, catalog, days, allow_open=allow_open, reindex=reindex, told=told) for catalog in catalogs
    ]
    most = max((plan.records for plan in plans), default=0)
    with ExitStack() as opened:

        @cache
        def session() -> SparkSession:
            return opened.enter_context(session_of(settings, most))

        results = []
        for catalog, plan in zip(catalogs, plans, strict=True):
            shared = lambda *_: nullcontext(session())  # noqa: E731 - opened by the first run that gets so far
            results.append(compute(settings, catalog, plan, session_of=shared, told=told))
            session().catalog.clearCache()  # what was kept for one source is of no use to the next
        return results
