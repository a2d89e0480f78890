"""`backfill`: days computed again by Dagster; first what that would read, and what it would change."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestration.cli.common import (
    FOUND,
    CatalogOption,
    JsonOption,
    SourceOption,
    UserError,
    days_between,
    err,
    fail,
    load_one,
    out,
    parse_day,
    print_json,
    settings,
)
from orchestration.dagster_client import ASSETS, DagsterClient
from orchestration.progress import progress_bar

_POLL_S = 1.0
_RUNNING = {"REQUESTED", "CANCELING"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Layers")(backfill)


def backfill(  # noqa: PLR0913, PLR0917 - options of a command
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First UTC day, YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last UTC day, included.")],
    stale: Annotated[
        bool, typer.Option("--stale", help="Only days that are not published and certified, or have got more since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read; launch nothing.")] = False,
    show_changes: Annotated[
        bool,
        typer.Option("--changes", help="First compute the days, shown to nobody, and list which values would change."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before launching.")] = False,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let Dagster compute, reconcile and certify days; shows what it will read, asks, then follows its runs.

    It is the backfill of Dagster's own page: stop following with Ctrl-C, and it goes on; cancel it there.
    """
    from batch_layer.again import try_out  # noqa: PLC0415 - it takes a while to import
    from batch_layer.planning import plan_days  # noqa: PLC0415
    from batch_layer.preview import preview  # noqa: PLC0415
    from batch_layer.stale import published_days  # noqa: PLC0415
    from infra.clickhouse import connect  # noqa: PLC0415

    definition = load_one("a backfill", catalog, source).catalog
    where = settings()
    days = days_between(parse_day(first), parse_day(last))
    with progress_bar(err) as told:
        planned = plan_days(where, definition, days, told=told)
    client = connect(where, where.database(definition.source))
    seen = preview(client, planned, published_days(client))
    chosen = [one for one in seen.days if not stale or one.state != "unchanged"]
    document: dict[str, Any] = {
        "source": definition.source,
        "partitions": [
            {
                "partition": str(one.day),
                "state": one.state,
                "events": one.indexed.events,
                "dead_letters": one.indexed.dead_letters,
                "run_id": one.run_id,
            }
            for one in chosen
        ],
        "offsets": {"log": seen.from_log, "archive": seen.from_archive},
        "seconds": seen.seconds,
        "backfill": None,
    }
    if not as_json:
        _show(definition.source, seen, chosen)
    if show_changes and chosen:
        wanted = [one.day for one in chosen]
        with progress_bar(err) as told:
            found = try_out(where, definition, plan_days(where, definition, wanted, told=told), told=told)
        document["changes"] = [asdict(change) for change in found]
        if not as_json:
            _show_changes(found)
    if dry_run or not chosen:
        if as_json:
            print_json(document)
        return
    if not yes:
        if as_json or not err.is_interactive:
            msg = (
                "`--yes` must say that a backfill is to be launched where nobody can be asked. or look with `--dry-run`"
            )
            raise UserError(msg)
        typer.confirm(f"launch a backfill of {len(chosen)} days?", abort=True)
    dagster = DagsterClient(where)
    document["backfill"] = dagster.backfill(definition.source, [one.day for one in chosen], ASSETS)
    err.print(f"launched: {dagster.address}/runs/b/{document['backfill']}", highlight=False)
    state = _followed(dagster, document["backfill"], len(chosen))
    document |= {"status": state["status"], "runs": [run["runId"] for run in state["runs"]]}
    if as_json:
        print_json(document)
    if state["status"] != "COMPLETED_SUCCESS":
        failures = [dagster.failure(run["runId"]) for run in state["runs"] if run["status"] == "FAILURE"]
        fail("; ".join([f"the backfill ended as {state['status']}", *failures]), FOUND)
    out.print(f"{len(chosen)} days of {definition.source} are published", highlight=False) if not as_json else None


def _show(source: str, seen: Any, chosen: list[Any]) -> None:  # noqa: ANN401 - a preview, imported late
    table = Table(title=f"{source}: what would be computed", title_justify="left")
    for heading in ("day", "state", "events", "dead letters", "shows now"):
        table.add_column(heading, justify="right" if heading in {"events", "dead letters"} else "left")
    for one in chosen:
        counts = (f"{number:,}" for number in (one.indexed.events, one.indexed.dead_letters))
        table.add_row(str(one.day), one.state, *counts, one.run_id or "")
    out.print(table)
    places = ((seen.from_log, "the log"), (seen.from_archive, "the archive"))
    read = " and ".join(f"{offsets:,} offsets of {place}" for offsets, place in places if offsets)
    took = f"about {seen.seconds:.0f} s, from what runs took before" if seen.seconds else "no run so far says how long"
    out.print(f"it reads {read or 'nothing'}; {took}", highlight=False)


def _show_changes(found: list[Any]) -> None:  # noqa: ANN401 - as above
    if not found:
        out.print("no published value would change")
        return
    table = Table(title="published values that would change", title_justify="left")
    for heading in ("metric", "grain", "windows", "changed", "by at most", "for example"):
        table.add_column(heading, justify="right" if heading in {"windows", "changed", "by at most"} else "left")
    for change in found:
        shown = [f"{each.window}: {each.was or 'nothing'} -> {each.now or 'nothing'}" for each in change.examples[:1]]
        greatest = "" if change.greatest is None else f"{change.greatest:,.10g}"
        table.add_row(change.metric, change.grain, f"{change.windows:,}", f"{change.changed:,}", greatest, *shown)
    out.print(table)


def _followed(dagster: DagsterClient, backfill_id: str, days: int) -> dict[str, Any]:
    """Follows a backfill to its end, with a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(f"{days} days", total=None)
        while (state := dagster.backfill_state(backfill_id))["status"] in _RUNNING:
            under_way = [dagster.state(run["runId"]) for run in state["runs"]]
            steps = [f"{name} {status.lower()}" for each in under_way for name, status in each.steps.items()]
            bars.update(task, description=", ".join(steps[-1:]) or "waiting for its turn")
            time.sleep(_POLL_S)
    return state
