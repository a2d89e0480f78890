"""`validate` and `schema`: is this catalog one that Lockstep can run, and what may stand in one?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from infra.catalog_file import load_catalogs
from metrics.catalog import Catalog, CatalogError, Problem
from metrics.catalog_changes import Change, Impact, compare, worst
from orchestration.catalog_reference import json_schema
from orchestration.cli.common import (
    FOUND,
    STATE,
    Failed,
    JsonOption,
    SourceOption,
    UserError,
    counted,
    err,
    load,
    out,
    print_json,
    vars_of,
)

_COLOURS = {Impact.COMPATIBLE: "green", Impact.BACKFILL: "yellow", Impact.BREAKING: "red"}


def register(app: typer.Typer) -> None:
    """Add the catalog commands."""
    app.command(rich_help_panel="Catalog")(validate)
    app.command(rich_help_panel="Catalog")(schema)


def validate(
    catalog: Annotated[
        Path | None, typer.Argument(help="Catalog file, or a directory of them.", show_default="the global --catalog")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="The catalog that runs now: say what a change to the new one means."),
    ] = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check catalogs before anything starts: each problem with its file, line, rule, value and way out.

    With --against, each change is compatible, needs a backfill, or is breaking; a breaking one gives exit code 1.
    """
    try:
        loaded = tuple(each.catalog for each in load(_existing(catalog or STATE.catalog), source))
        running = load_catalogs(_existing(against)) if against is not None else None
    except CatalogError as error:
        _refuse(error.problems, as_json)
        raise SystemExit(FOUND) from None
    changes = None if running is None else _changes(_alike(running, loaded), loaded)
    if as_json:
        listed = {} if changes is None else {"impact": worst(changes), "changes": [vars(change) for change in changes]}
        print_json({"ok": True, "metrics": _metrics(loaded), "errors": [], **listed})
    else:
        for one in loaded:
            _show(one)
        if changes is not None:
            _show_changes(changes)
    if changes and worst(changes) is Impact.BREAKING:
        msg = "the change is breaking" if not as_json else ""
        raise Failed(msg)


def schema() -> None:
    """Print the JSON Schema of a catalog file, for editors."""
    typer.echo(json_schema(), nl=False)


def _existing(path: Path) -> Path:
    if not path.exists():
        msg = f"there is no catalog `{path}`. name a YAML file, or a directory of them"
        raise UserError(msg)
    return path


def _alike(running: tuple[Catalog, ...], loaded: tuple[Catalog, ...]) -> tuple[Catalog, ...]:
    """What runs of the one source that is asked about, where it runs among others."""
    same = tuple(each for each in running if each.source == loaded[0].source)
    return same if len(loaded) == 1 and same else running


def _changes(old: tuple[Catalog, ...], new: tuple[Catalog, ...]) -> tuple[Change, ...]:
    """The changes of all sources; one file against one file is one source, whatever its name."""
    if len(old) == len(new) == 1:
        return compare(old[0], new[0])
    before, after = ({catalog.source: catalog for catalog in catalogs} for catalogs in (old, new))
    found: list[Change] = []
    for source in dict.fromkeys([*after, *before]):
        if source not in before:
            found.append(Change(f"source {source}", "added", Impact.COMPATIBLE, "the others go on"))
        elif source not in after:
            gone = "its views and dashboard pages go; its rows stay"
            found.append(Change(f"source {source}", "removed", Impact.BREAKING, gone))
        else:
            found += compare(before[source], after[source])
    return tuple(found)


def _show(catalog: Catalog) -> None:
    table = Table(title=f"{catalog.source}: events of topic {catalog.topic}", title_justify="left")
    for heading in ("metric", "what", "where", "by", "windows", "version"):
        table.add_column(heading)
    for metric in catalog.shown:
        cells = (metric.text, metric.where or "", ", ".join(metric.by), ", ".join(metric.grains))
        table.add_row(metric.name, *map(escape, cells), metric.metric_version)
    for alert in catalog.alerts:
        table.add_row(
            f"alert {alert.name}", escape(alert.when), alert.where or "", ", ".join(alert.by), "", alert.alert_version
        )
    out.print(table)
    alerts = f", {counted(len(catalog.alerts), 'alert')}" if catalog.alerts else ""
    out.print(f"[green]ok[/]: {counted(len(catalog.shown), 'metric')}{alerts}, catalog version {catalog.version}")


def _show_changes(changes: tuple[Change, ...]) -> None:
    if not changes:
        out.print("nothing changed")
        return
    table = Table(title="changes", title_justify="left")
    for heading in ("what", "change", "impact", "consequence"):
        table.add_column(heading)
    for change in changes:
        colour = _COLOURS[change.impact]
        table.add_row(
            change.subject, escape(change.change), f"[{colour}]{change.impact}[/]", escape(change.consequence)
        )
    out.print(table)


def _metrics(catalogs: tuple[Catalog, ...]) -> list[dict[str, str]]:
    return [
        {"source": catalog.source, "name": metric.name, "grain": grain, "metric_version": metric.metric_version}
        for catalog in catalogs
        for metric in catalog.shown
        for grain in metric.grains
    ]


def _refuse(problems: list[Problem], as_json: bool) -> None:
    if as_json:
        print_json({"ok": False, "metrics": [], "errors": [vars_of(problem) for problem in problems]})
        return
    for problem in problems:
        err.print(f"[bold red]error:[/] [red]{escape(str(problem))}[/]", highlight=False)
