"""`versions`, `adopt` and `switch`: a changed catalog beside the one that runs."""

from typing import Annotated

import typer
from rich.table import Table

from infra.clickhouse import connect
from metrics.catalog import Catalog
from orchestration import services
from orchestration.cli.common import (
    CatalogOption,
    JsonOption,
    SourceOption,
    UserError,
    err,
    load_one,
    out,
    print_json,
    settings,
)
from serving import schema
from serving.versions import Standing, standing
from serving.versions import switch as give_names


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (versions, adopt, switch):
        app.command(rich_help_panel="Catalog")(command)


def versions(catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False) -> None:
    """List the versions of each metric: which one its name shows, and which are kept beside it."""
    definition = load_one("a list of versions", catalog, source).catalog
    rows = _listed(definition, _standing(definition))
    if as_json:
        print_json({"source": definition.source, "metrics": rows})
        return
    table = Table(title=f"{definition.source}: versions", title_justify="left")
    for heading in ("metric", "shown", "in the catalog", "others"):
        table.add_column(heading)
    for row in rows:
        same = row["active"] == row["catalog"]
        table.add_row(
            row["metric"],
            row["active"] or "none",
            "the same" if same else f"[yellow]{row['catalog']}[/]",
            ", ".join(row["others"]),
        )
    out.print(table)


def adopt(catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False) -> None:
    """Bring a changed catalog in beside what runs: its added and changed metrics get a speed layer of their own.

    Nothing is restarted. A changed metric goes on showing its old version until `lockstep switch`.
    """
    adopted = load_one("adopting a catalog", catalog, source)
    definition = adopted.catalog
    where = settings()
    database = where.database(definition.source)
    schema.apply(connect(where), definition, database)
    now = standing(connect(where), database)
    names = [metric.name for metric in definition.metrics if metric.metric_version not in now.live]
    if names:
        with err.status("starting a speed layer beside the other") as line:
            services.start_beside(where, adopted, names, line.update)
    waiting = [metric.name for metric in definition.shown if not now.is_active(metric)]
    if as_json:
        print_json({"source": definition.source, "started": names, "waiting": waiting})
        return
    out.print(f"computed beside the others: {', '.join(names)}" if names else "every metric is computed already")
    if waiting:
        out.print(f"not shown yet: {', '.join(waiting)}; `lockstep batch` their days, then `lockstep switch`")


def switch(
    metrics: Annotated[list[str] | None, typer.Argument(help="Metrics.", show_default="all that wait")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Although the batch layer lacks days of the new version. For these its speed layer's provisional "
            "values are shown, and no row where that has none.",
        ),
    ] = False,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let metrics' names show the catalog's versions, all at once; the old ones stay queryable by --metric-version."""
    definition = load_one("a switch", catalog, source).catalog
    where = settings()
    chosen = [definition.metric(name) for name in metrics] if metrics else list(definition.shown)
    _standing(definition)
    switched = give_names(connect(where), where.database(definition.source), chosen, force=force)
    if as_json:
        print_json({"source": definition.source, "switched": [metric.name for metric in switched]})
    elif switched:
        out.print(f"now shown in the catalog's version: {', '.join(metric.name for metric in switched)}")
    else:
        out.print("every metric is shown in the catalog's version already")


def _standing(definition: Catalog) -> Standing:
    where = settings()
    client = connect(where, wait_seconds=2.0)
    database = where.database(definition.source)
    known = client.query(
        "SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'metric_versions'",
        parameters={"database": database},
    ).result_rows
    if not known[0][0]:
        msg = f"source `{definition.source}` has no tables yet. `lockstep up` makes them"
        raise UserError(msg)
    return standing(client, database)


def _listed(definition: Catalog, now: Standing) -> list[dict[str, object]]:
    return [
        {
            "metric": metric.name,
            "active": now.active.get(metric.name),
            "catalog": metric.metric_version,
            "others": [
                version
                for version in now.known.get(metric.name, ())
                if version not in {now.active.get(metric.name), metric.metric_version}
            ],
        }
        for metric in definition.shown
    ]
