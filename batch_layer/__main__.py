"""`python -m batch_layer --catalog PATH --from DAY --to DAY`: one batch run, by hand or as a Dagster Pipes target."""

import argparse
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import NoReturn

from clickhouse_connect.driver.exceptions import ClickHouseError
from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

from batch_layer.archive import ArchiveError
from batch_layer.job import SparkUnavailableError
from batch_layer.manifest import Plan
from batch_layer.planning import plan_days
from batch_layer.publish import WriteError
from batch_layer.refusals import REFUSED, DayRefusedError
from batch_layer.run import PartitionResult, run
from batch_layer.tasks import Told
from infra.catalog_file import load_catalog
from infra.clickhouse import ClickHouseUnavailableError
from infra.jars import JarError
from infra.java import JavaError
from infra.kafka import KafkaUnavailableError, TopicError
from infra.registry import RegistryUnavailableError
from infra.settings import SettingsError, load_settings
from metrics.catalog import Catalog, CatalogError

DONE, FAILED, AWAY = 0, 1, 75
_LINES = 20
_REFUSALS = (*(CatalogError, SettingsError, DayRefusedError, ArchiveError, JavaError, JarError, TopicError),)
_AWAY = (KafkaUnavailableError, RegistryUnavailableError, ClickHouseUnavailableError, SparkUnavailableError)


def days_between(first: date, last: date) -> list[date]:
    """The days from the first to the last, both included.

    Raises:
        DayRefusedError: The last day lies before the first.
    """
    if last < first:
        msg = f"`--to` must not lie before `--from`; got {first} to {last}. give the earlier day to --from"
        raise DayRefusedError(msg)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the batch layer.

    Returns:
        0 when all days were published, 1 when writing failed, 2 when it was refused (wrong usage or set-up, or days
        that cannot be computed), 75 when a service does not answer, so that it may go well another time.
    """
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    try:
        settings = load_settings()
        catalog = load_catalog(arguments.catalog)
        days = days_between(getattr(arguments, "from"), arguments.to)
        if arguments.dry_run:
            _show_plan(catalog, plan_days(settings, catalog, days, allow_open=arguments.allow_open), arguments.json)
            return DONE
        if DAGSTER_PIPES_CONTEXT_ENV_VAR in os.environ:
            with open_dagster_pipes() as pipes:
                told, each = _logged(pipes), _reported(pipes)
                results = run(settings, catalog, days, allow_open=arguments.allow_open, told=told, each=each)
                _report(pipes, results)
        else:
            results = run(settings, catalog, days, allow_open=arguments.allow_open)
    except _REFUSALS as error:
        print(error, file=sys.stderr)
        return REFUSED
    except _AWAY as error:
        print(error, file=sys.stderr)
        return AWAY
    except (WriteError, ClickHouseError) as error:
        print(error, file=sys.stderr)
        return FAILED
    _show(results, arguments.json)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batch_layer", description="Recompute UTC days exactly from the log and publish them."
    )
    parser.add_argument("--catalog", type=Path, required=True, help="catalog file")
    parser.add_argument("--from", type=date.fromisoformat, required=True, metavar="DAY", help="first day, 2026-01-31")
    parser.add_argument("--to", type=date.fromisoformat, required=True, metavar="DAY", help="last day, included")
    parser.add_argument("--dry-run", action="store_true", help="say which offsets would be read, then stop")
    parser.add_argument("--allow-open", action="store_true", help="accept days for which events may still come")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _end(signum: int, _frame: object) -> NoReturn:
    """Ends as an exception does, so that the run is recorded as failed and Spark is stopped."""
    raise SystemExit(128 + signum)


def _show_plan(catalog: Catalog, planned: Plan, as_json: bool) -> None:  # noqa: FBT001 - a flag of the command line
    if not as_json:
        print("\n".join(planned.lines(catalog)))
        return
    ranges = [asdict(each) for each in planned.ranges]
    unknown = {"run_id": None, "events": None, "duplicates": None, "dead_letters": None, "published": False}
    partitions = [{"partition": day.isoformat(), **unknown} for day in planned.days]
    print(json.dumps({"partitions": partitions, "ranges": ranges}))


def _show(results: Sequence[PartitionResult], as_json: bool) -> None:  # noqa: FBT001 - a flag of the command line
    if as_json:
        print(json.dumps({"partitions": [result.as_json() for result in results]}))
        return
    for result in results:
        print(
            f"{result.partition}: published run {result.run_id}, {result.events} events, "
            f"{result.duplicates} duplicates, {result.dead_letters} dead letters"
        )


def _logged(pipes: PipesContext) -> Told:
    """Tells Dagster's run log how far the run is, a line for each twentieth of a phase."""
    done: Counter[str] = Counter()

    def told(phase: str, more: int, total: int) -> None:
        before = done[phase] * _LINES // max(total, 1)
        done[phase] += more
        if done[phase] * _LINES // max(total, 1) > before:
            pipes.log.info(f"{phase}: {done[phase]:,} of {total:,}")

    return told


def _reported(pipes: PipesContext) -> Callable[[PartitionResult], None]:
    """Tells Dagster of a day as it is published: a line in the run log, and its manifest."""

    def each(result: PartitionResult) -> None:
        pipes.log.info(f"{result.partition} is published by run {result.run_id}: {result.events:,} events")
        pipes.report_custom_message(dict(result.manifest))

    return each


def _report(pipes: PipesContext, results: Sequence[PartitionResult]) -> None:
    """Tells Dagster what was made of each day; `batch_metrics` where the step makes several assets."""
    keys = pipes.asset_keys if pipes.is_asset_step else []
    if not keys:
        return
    pipes.report_asset_materialization(
        asset_key=next((key for key in keys if key.endswith("batch_metrics")), keys[0]),
        metadata={
            "run_id": results[0].run_id,
            "days": len(results),
            "events": sum(result.events for result in results),
            "duplicates": sum(result.duplicates for result in results),
            "dead_letters": sum(result.dead_letters for result in results),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
