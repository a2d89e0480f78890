"""`validate`: is this catalog one that Lockstep can run?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog, CatalogError, Problem
from orchestration.cli.common import (
    FOUND,
    JsonOption,
    UserError,
    catalog_path,
    err,
    out,
    print_json,
    speak_json,
    vars_of,
)


def register(app: typer.Typer) -> None:
    """Add the catalog commands."""
    app.command(rich_help_panel="Catalog")(validate)


def validate(
    catalog: Annotated[Path | None, typer.Argument(help="Catalog file.", show_default="the global --catalog")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a catalog before anything starts: each problem with its file, line, rule, value and way out."""
    speak_json(as_json)
    path = catalog_path(catalog)
    if not path.exists():
        msg = f"there is no catalog `{path}`. name a YAML file"
        raise UserError(msg)
    try:
        loaded = load_catalog(path)
    except CatalogError as error:
        _refuse(error.problems, as_json)
        raise SystemExit(FOUND) from None
    if as_json:
        print_json({"ok": True, "metrics": _metrics(loaded), "errors": []})
        return
    table = Table(title=f"{loaded.source}: events of topic {loaded.topic}", title_justify="left")
    for heading in ("metric", "aggregation", "where", "by", "windows", "version"):
        table.add_column(heading)
    for metric in loaded.metrics:
        table.add_row(
            metric.name,
            metric.agg.text,
            metric.where or "",
            ", ".join(metric.by),
            ", ".join(metric.grains),
            metric.metric_version,
        )
    out.print(table)
    out.print(f"[green]ok[/]: {len(loaded.metrics)} metrics, catalog version {loaded.version}")


def _metrics(catalog: Catalog) -> list[dict[str, str]]:
    return [
        {"name": metric.name, "grain": grain, "metric_version": metric.metric_version}
        for metric in catalog.metrics
        for grain in metric.grains
    ]


def _refuse(problems: list[Problem], as_json: bool) -> None:
    if as_json:
        print_json({"ok": False, "metrics": [], "errors": [vars_of(problem) for problem in problems]})
        return
    for problem in problems:
        err.print(f"[bold red]error:[/] [red]{problem}[/]", highlight=False)
