"""`generate` and `ingest`: events into the log."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.common import (
    CatalogOption,
    JsonOption,
    SourceOption,
    UserError,
    err,
    load,
    load_one,
    out,
    print_json,
    settings,
)
from orchestration.generator import GenerateOptions
from orchestration.generator import generate as make_events
from orchestration.ingest import IngestOptions
from orchestration.ingest import ingest as ingest_file
from orchestration.progress import progress_bar
from orchestration.row_files import RowFile
from orchestration.sources import SourceFile, owner_of_columns
from orchestration.worlds import kind_of


def register(app: typer.Typer) -> None:
    """Add the data commands."""
    for command in (generate, ingest):
        app.command(rich_help_panel="Data")(command)


def generate(  # noqa: PLR0913, PLR0917 - options of a command
    events: Annotated[
        int | None, typer.Option(min=0, help="Records of history.", show_default="200000; devices: 20000")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, options and --now give the same events.")] = 1,
    days: Annotated[int, typer.Option(min=0, help="Closed UTC days of history before the running one.")] = 3,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Events a second of the live part.", show_default="200; devices: 20")
    ] = None,
    live: Annotated[float, typer.Option(min=0, help="Seconds for which to go on live after the history.")] = 0.0,
    truth: Annotated[Path | None, typer.Option(help="File that gets the ground truth, as JSON.")] = None,
    late: Annotated[int | None, typer.Option(min=0, help="Late events.", show_default="0.2 %")] = None,
    duplicates: Annotated[int | None, typer.Option(min=0, help="Events sent twice.", show_default="0.5 %")] = None,
    out_of_order: Annotated[
        int | None, typer.Option(min=0, help="Events out of order that still count.", show_default="2 %")
    ] = None,
    bad: Annotated[int | None, typer.Option(min=0, help="Records that are no events.", show_default="0.1 %")] = None,
    oversized: Annotated[int, typer.Option(min=0, help="Records with 1 MB of payload.")] = 0,
    id_conflicts: Annotated[int, typer.Option(min=0, help="Other events under an id that was used.")] = 0,
    users: Annotated[
        int | None, typer.Option(min=1, help="Users of the shop, or devices.", show_default="events / 40; / 500")
    ] = None,
    now: Annotated[
        str | None, typer.Option(help="When the history ends, as ISO 8601 with a zone.", show_default="the clock")
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make seeded events: history fast, then live, with a known number of late, copied and broken ones.

    The catalog's fields say which: the shop's events, or readings of devices.
    """
    definition = load_one("`lockstep generate`", catalog, source).catalog
    kind = kind_of(definition)
    options = GenerateOptions(
        events=kind.events if events is None else events,
        seed=seed,
        days=days,
        rate=kind.rate if rate is None else rate,
        live=live,
        late=late,
        duplicates=duplicates,
        out_of_order=out_of_order,
        bad=bad,
        oversized=oversized,
        id_conflicts=id_conflicts,
        users=users,
        now=_moment(now),
    )
    with progress_bar(err) as told:
        made = make_events(settings(), definition, options, truth, told)
    if as_json:
        print_json({name: value for name, value in asdict(made).items() if name != "truth"})
        return
    out.print(f"{made.history:,} events of history and {made.live:,} live to `{made.topic}` in {made.seconds:.1f} s")
    if truth is not None:
        out.print(f"ground truth: {truth}")


def ingest(
    file: Annotated[Path, typer.Argument(help="CSV, NDJSON or Parquet; plain, gzip or zstd.")],
    rate: Annotated[float | None, typer.Option(help="Events a second.", show_default="full speed")] = None,
    speed_up: Annotated[
        float | None, typer.Option(help="Replay by arrival, so many times as fast as it happened.")
    ] = None,
    keep_order: Annotated[bool, typer.Option("--keep-order", help="The file's order is the order of arrival.")] = False,
    arrival: Annotated[
        str | None, typer.Option(help="Column with a row's time of arrival.", show_default="the event time")
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a file's rows to the source's topic in order of arrival, each acknowledged by all replicas.

    Of several sources it is the one whose event time and required fields are columns of the file.
    """
    belongs = _owner(load(catalog, source), file)
    definition = belongs.catalog
    options = IngestOptions(rate=rate, speed_up=speed_up, keep_order=keep_order, arrival=arrival)
    with progress_bar(err) as told:
        result = ingest_file(settings(), definition, file, options, told)
    if as_json:
        print_json(
            {
                "topic": result.topic,
                "sent": result.sent,
                "rejected": result.rejected,
                "seconds": round(result.seconds, 3),
                "rejects_file": result.rejects_file,
            }
        )
        return
    out.print(f"{result.sent:,} events of {file.name} to `{result.topic}` in {result.seconds:.1f} s")
    if result.ids_from_content:
        out.print(f"event ids are made from the rows' content: {belongs.path.name} names a field they lack")
    if result.rejected:
        err.print(f"[yellow]{result.rejected:,} rows are no events[/]; all of them: {result.rejects_file}")
        for each in result.rejects:
            err.print(f"  line {each.line}: {each.reason}", highlight=False)


def _owner(sources: tuple[SourceFile, ...], file: Path) -> SourceFile:
    if len(sources) == 1:
        return sources[0]
    with RowFile(file) as rows:
        return owner_of_columns(sources, rows.columns, f"`{file.name}`")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"`--now` must be a time in ISO 8601, like 2026-01-31T12:00:00Z; got `{text}`"
        raise UserError(msg) from error
