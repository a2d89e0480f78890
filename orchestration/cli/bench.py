"""`bench`: figures of speed, with the machine that they were taken on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from infra.flink_cluster import distribution
from infra.stack import down, status
from orchestration import bench_plots, services
from orchestration.cli.common import (
    Failed,
    JsonOption,
    UserError,
    err,
    out,
    print_json,
    settings,
)
from orchestration.flame_plot import flame_graph
from orchestration.sources import DEMO_CATALOGS
from speed_layer.bench import table, text
from speed_layer.bench.apart import apart
from speed_layer.bench.profile import STACKS
from speed_layer.bench.throughput import EVENTS, RUNS, TITLES

BENCHES = {
    "speed": "events a second that the speed layer drains from a backlog into ClickHouse, beside other systems",
    "freshness": "time from an event to the first query that shows it, and to an alert, at 20,000 events a second",
    "growth": "throughput, memory and state by the number of dimension values and of partitions",
    "backpressure": "memory while ClickHouse is away at full rate, and how fast what was held up is published then",
    "sketches": "error and size of the sketches beside Apache DataSketches",
}
DRAWN: dict[str, Callable[[dict[str, Any]], str]] = {"freshness": bench_plots.freshness, "growth": bench_plots.growth}
LINES = {"freshness": text.freshness, "growth": text.growth, "backpressure": text.backpressure}
RESULTS = "bench-results"
"""Directory under `data_dir` where results stay."""

_BUNDLE = "BundleProcessor.process_bundle"
"""What a worker does for the job: the rest of a profile is starting, and waiting."""


def register(app: typer.Typer) -> None:
    """Add the bench command."""
    app.command(rich_help_panel="Layers")(bench)


def bench(
    name: Annotated[str, typer.Argument(help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))] = "speed",
    events: Annotated[
        int | None,
        typer.Option(min=1_000, help="Events in the backlog; of `bench speed` alone.", show_default=f"{EVENTS:,}"),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each system; of `bench speed` alone.")] = RUNS,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this system, may be given several times: {', '.join(TITLES)}.", show_default="all"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the bench that was interrupted.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="At the end, take a flame graph of the workers.")] = False,
    outage: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds without ClickHouse; of `bench backpressure` alone.", show_default="300"),
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
    if outage is not None and name != "backpressure":
        msg = f"only `bench backpressure` has an outage; got --outage {outage:g} for `{name}`. leave it out"
        raise UserError(msg)
    if unknown := sorted({*(only or ())} - TITLES.keys()):
        msg = f"there is no system `{unknown[0]}` to run. there are: {', '.join(TITLES)}"
        raise UserError(msg)
    if name == "sketches":
        _sketches(as_json=as_json)
        return
    if status(settings()):
        err.print("[yellow]the local stack is up and shares the cores[/]; `lockstep down` first, for the machine alone")
    if name in LINES:
        _show_lines(name, _measured(name, [] if outage is None else ["--outage", str(outage)], {}), as_json=as_json)
        return
    arguments = ["--events", str(events or EVENTS), "--runs", str(runs)]
    arguments += [word for system in only or () for word in ("--only", system)]
    arguments += [*(["--resume"] if resume else []), *(["--profile"] if profile else [])]
    paths = {"--shop": DEMO_CATALOGS / "shop.yaml"}
    if only is None or any(system.startswith("flink") for system in only):
        with err.status("Flink is installed, once"):
            paths["--flink-home"] = distribution(settings())
    result = _measured("speed", arguments, paths)
    flames = _flames() if profile else None
    if as_json:
        print_json(result)
    else:
        _show(result)
        if flames:
            out.print(f"flame graph of the workers in {flames}", highlight=False)
    if not result["ok"]:
        raise Failed


def _flames() -> Path:
    """Draws what the workers were sampled at; where it is."""
    stacks = settings().data_dir.absolute() / RESULTS / STACKS
    drawn = stacks.with_suffix(".svg")
    drawn.write_text(flame_graph(stacks.read_text().splitlines(), "workers of job A, a backlog", _BUNDLE))
    return drawn


def _measured(name: str, arguments: list[str], paths: dict[str, Path]) -> dict[str, Any]:
    """Runs a bench as a process on engines of its own; its progress goes to stderr as it comes."""
    where = apart(settings(), "bench")
    paths = {"--results": settings().data_dir.absolute() / RESULTS, **paths}
    command = [sys.executable, "-m", "speed_layer.bench", name, "--json", *arguments]
    command += [str(word) for pair in paths.items() for word in pair]
    # stopped like this, it must not leave its engines running either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with err.status("starting engines") as line:
            services.start(where, services.engines(where), line.update)
        environment = {**os.environ, **where.environ()}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        down(where)
        shutil.rmtree(where.data_dir, ignore_errors=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        msg = f"the bench ended with {done.returncode} and no figure; what it said is above. correct it, then --resume"
        raise UserError(msg) from error


def _sketches(*, as_json: bool) -> None:
    from orchestration import sketch_bench  # noqa: PLC0415 - it brings a database engine into the process

    with err.status("building sketches"):
        result = sketch_bench.run()
    if as_json:
        print_json(result)
    else:
        _show_sketches(result)
    if not result["ok"]:
        raise Failed


def _show_lines(name: str, result: dict[str, Any], *, as_json: bool) -> None:
    path = settings().data_dir.absolute() / RESULTS / f"{name}.svg"
    if name in DRAWN:
        path.write_text(DRAWN[name](result))
    if as_json:
        print_json(result)
    else:
        for line in LINES[name](result):
            out.print(line, highlight=False)
        out.print(table.machine_line(result), highlight=False)
        if name in DRAWN:
            out.print(f"drawn in {path}", highlight=False)
    if not result["ok"]:
        raise Failed


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
    headings, *rows = table.rows(result)
    shown = Table(title="speed", title_justify="left")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    for line in table.verdicts(result):
        out.print(f"[{'red' if 'MISSED' in line else 'green'}]{line}[/]", highlight=False)
    out.print(table.machine_line(result), highlight=False)
