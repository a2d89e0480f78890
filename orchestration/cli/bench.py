"""`bench`: figures of speed, with the machine that they were taken on."""

import json
import os
import shutil
import subprocess
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from infra.processes import is_free
from infra.settings import Settings
from infra.stack import down, status
from orchestration import services
from orchestration.cli.common import (
    Failed,
    JsonOption,
    UserError,
    err,
    out,
    print_json,
    settings,
)

BENCHES = {
    "speed": "events a second that the speed layer drains from a backlog into ClickHouse",
    "sketches": "error and size of the sketches beside Apache DataSketches",
}
EVENTS = 2_000_000
_PORTS = range(20_000, 30_000)
GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add the bench command."""
    app.command(rich_help_panel="Layers")(bench)


def bench(
    name: Annotated[str, typer.Argument(help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))] = "speed",
    events: Annotated[
        int | None,
        typer.Option(min=1_000, help="Events in the backlog; of `bench speed` alone.", show_default=f"{EVENTS:,}"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure on engines of its own, on free ports, which are stopped again. A missed target is exit code 1."""
    if name not in BENCHES:
        msg = f"there is no bench `{name}`. there are: {', '.join(BENCHES)}"
        raise UserError(msg)
    if events is not None and name != "speed":
        msg = f"only `bench speed` has a number of events; got --events {events} for `{name}`. leave it out"
        raise UserError(msg)
    if name == "sketches":
        from orchestration import sketch_bench  # noqa: PLC0415 - it brings a database engine into the process

        with err.status("building sketches"):
            result = sketch_bench.run()
        if as_json:
            print_json(result)
        else:
            _show_sketches(result)
        if not result["ok"]:
            raise Failed
        return
    if status(settings()):
        err.print("[yellow]the local stack is up and shares the cores[/]; `lockstep down` first, for the machine alone")
    where = apart(settings())
    events = events or EVENTS
    try:
        with err.status("starting engines") as line:
            services.start(where, services.engines(where), line.update)
            line.update(f"draining {events:,} events")
            result = _measured(where, events)
    finally:
        down(where)
        shutil.rmtree(where.data_dir, ignore_errors=True)
    if as_json:
        print_json(result)
    else:
        _show(result)
    if not result["ok"]:
        raise Failed


def apart(where: Settings) -> Settings:
    """The same settings with a data directory and ports of their own."""
    fields = [field for field in Settings.model_fields if field.endswith("_port")]
    free = (port for port in _PORTS if is_free(where.host, port))
    ports = dict(zip(fields, free, strict=False))
    return where.model_copy(update={"data_dir": where.data_dir.absolute() / "bench", **ports})


def _measured(where: Settings, events: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "speed_layer.bench", "--events", str(events), "--json"],
        env={**os.environ, **where.environ()},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        msg = f"the bench ended with {done.returncode} and no figure: {done.stderr.strip()[-1000:]}"
        raise UserError(msg) from error


def _show_sketches(result: dict[str, Any]) -> None:
    table = Table(title="sketches", title_justify="left")
    for heading in ("sketch", "values", "system", "relative error", "greatest", "bytes", "ms", "in bounds"):
        table.add_column(heading, justify="left" if heading in {"sketch", "system"} else "right")
    for run in result["runs"]:
        f = run["figures"]
        table.add_row(
            f["sketch"],
            f"{f['values']:,}",
            run["system"],
            f"{f['relative_error']:.3%}",
            f"{f['greatest_relative_error']:.3%}",
            f"{f['bytes']:,}",
            f"{f['seconds'] * 1000:,.1f}",
            "yes" if f["within_bounds"] else "no",
        )
    out.print(table)


def _show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    for run in result["runs"]:
        figures = run["figures"]
        colour = "green" if result["ok"] else "red"
        out.print(
            f"[{colour}]{figures['events_per_s']:,} events/s[/] drained from a backlog of {figures['events']:,} "
            f"({run['system']}; {figures['drained_in_s']} s, after {figures['job_started_in_s']} s to start the job; "
            f"counted {figures['counted']:,})",
            highlight=False,
        )
    out.print(
        f"{result['ratios']['to_target']:g} times the target, on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / GIB:.0f} GiB, load {machine['load_before']} before",
        highlight=False,
    )
