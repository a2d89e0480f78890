"""`publish`: what the batch layer has published of a day, and an older run made current again."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from infra.clickhouse import connect
from orchestration.cli.common import (
    FOUND,
    CatalogOption,
    JsonOption,
    SourceOption,
    counted,
    err,
    fail,
    load_one,
    out,
    parse_day,
    print_json,
    settings,
)
from orchestration.progress import progress_bar

_Day = Annotated[str, typer.Option("--partition", metavar="DAY", help="The UTC day, YYYY-MM-DD.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Runs of the batch layer that a day has shown.")
    family.command(name="list")(listed)
    family.command()(revert)
    family.command()(verify)
    family.command()(prune)
    app.add_typer(family, name="publish", rich_help_panel="Layers")


def listed(
    partition: _Day, catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False
) -> None:
    """List what a day has shown, and since when."""
    from batch_layer.history import editions  # noqa: PLC0415 - Spark takes a second to import

    definition = load_one("what a day has shown", catalog, source).catalog
    where = settings()
    client = connect(where, where.database(definition.source))
    known = editions(client, parse_day(partition))
    if as_json:
        shown = [
            {"run_id": one.run_id, "published_at": one.published_at, "current": one.current, "kept": one.kept}
            for one in known
        ]
        print_json({"partition": partition, "publications": shown})
        return
    table = Table(title=f"{definition.source}, {partition}", title_justify="left")
    for heading in ("published at (UTC)", "run", "shown now", "rows"):
        table.add_column(heading)
    for one in known:
        moment = one.published_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
        table.add_row(moment, one.run_id, "yes" if one.current else "", "kept" if one.kept else "gone")
    out.print(table)


def revert(
    partition: _Day,
    run: Annotated[
        str | None, typer.Option("--run", help="The run to show again.", show_default="the one before the current one")
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an older run of a day current again, all its metrics at once."""
    from batch_layer.history import revert as make_current  # noqa: PLC0415 - as above

    definition = load_one("a revert", catalog, source).catalog
    where = settings()
    client = connect(where, where.database(definition.source))
    before, now = make_current(client, parse_day(partition), run)
    if as_json:
        print_json({"partition": partition, "before": before, "now": now})
        return
    out.print(f"{partition} of {definition.source} shows run {now} again, and no longer {before}", highlight=False)


def verify(
    partition: _Day,
    run: Annotated[
        str | None, typer.Option("--run", help="The run to compute again.", show_default="the one that is shown")
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute a run again from its manifest, shown to nobody; exit code 1 if a byte differs."""
    from batch_layer.again import repeat  # noqa: PLC0415 - as above
    from batch_layer.publish import WriteError  # noqa: PLC0415

    definition = load_one("computing a run again", catalog, source).catalog
    with progress_bar(err) as told:
        try:
            done = repeat(settings(), definition, parse_day(partition), run, told=told)
        except WriteError as error:
            fail(str(error), FOUND)
    if as_json:
        print_json({"partition": partition, "run_id": done.run_id, "rows": done.rows, "differing": [*done.differing]})
    elif not done.differing:
        out.print(f"{partition} of {definition.source}: all {done.rows:,} rows of run {done.run_id} are the same again")
    if done.differing:
        fail(f"run `{done.run_id}` computed again has other rows in {', '.join(done.differing)}", FOUND)


def prune(catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False) -> None:
    """Drop the rows of runs that were replaced longer ago than `LOCKSTEP_RUNS_KEPT_DAYS`, or never published."""
    from batch_layer.retention import prune as drop_outdated  # noqa: PLC0415 - as above

    definition = load_one("pruning runs", catalog, source).catalog
    where = settings()
    client = connect(where, where.database(definition.source))
    dropped = drop_outdated(client, timedelta(days=where.runs_kept_days), datetime.now(UTC))
    if as_json:
        print_json({"dropped": [{"partition": str(one.partition), "run_id": one.run_id} for one in dropped]})
        return
    out.print(f"{definition.source}: the rows of {counted(len(dropped), 'run')} are dropped", highlight=False)
