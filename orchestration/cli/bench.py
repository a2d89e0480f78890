"""`bench`: figures of speed, with the machine that they were taken on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.flink_cluster import distribution
from infra.stack import down, status
from orchestration import services
from orchestration.benches import BENCHES, Bench, refusal, taking, words
from orchestration.cli.bench_shown import show, show_sketches
from orchestration.cli.common import Failed, JsonOption, UserError, err, out, print_json, settings
from orchestration.flame_plot import flame_graph
from orchestration.sources import DEMO_CATALOGS
from speed_layer.bench.apart import apart
from speed_layer.bench.profile import STACKS

RESULTS = "bench-results"
"""Directory under `data_dir` where results stay."""

_BUNDLE = "BundleProcessor.process_bundle"
"""What a worker does for the job: the rest of a profile is starting, and waiting."""


def register(app: typer.Typer) -> None:
    """Add the bench command."""
    app.command(rich_help_panel="Layers")(bench)


def _of(option: str) -> str:
    """Which benches may be told an option, with what they do if they are not."""
    values = ((name, BENCHES[name].options[option]) for name in taking(option))
    return ", ".join(f"`bench {name}`{f' ({value})' if value else ''}" for name, value in values)


def bench(
    name: Annotated[
        str, typer.Argument(help="; ".join(f"{name}: {each.what}" for name, each in BENCHES.items()))
    ] = "speed",
    events: Annotated[
        int | None, typer.Option(min=1_000, help=f"Number of events; of {_of('events')}.", show_default=False)
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help=f"Number of runs; of {_of('runs')}.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this system, may be given several times; of "
            + "; of ".join(f"`bench {name}`: {', '.join(BENCHES[name].systems)}" for name in taking("only"))
            + ".",
            show_default="all",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help=f"Go on with the bench that was interrupted; of {_of('resume')}.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help=f"At the end, take a flame graph of the workers; of {_of('profile')}.")
    ] = False,
    outage: Annotated[
        float | None, typer.Option(min=1, help=f"Seconds without ClickHouse; of {_of('outage')}.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure on engines of its own, on free ports, which are stopped again. A missed target is exit code 1."""
    told = {"events": events, "runs": runs, "only": only, "resume": resume, "profile": profile, "outage": outage}
    if refused := refusal(name, told):
        raise UserError(refused)
    chosen = BENCHES[name]
    if not chosen.program:
        _sketches(as_json=as_json)
        return
    if status(settings()):
        err.print("[yellow]the local stack is up and shares the cores[/]; `lockstep down` first, for the machine alone")
    result = _measured(name, chosen, [*words(told), *(_beside_flink(only) if name == "speed" else [])])
    drawn = _drawn(chosen, result) + ([_flames()] if profile else [])
    if as_json:
        print_json(result)
    else:
        show(chosen, result)
        for path in drawn:
            out.print(f"drawn in {path}", highlight=False)
    if not result["ok"]:
        raise Failed


def _beside_flink(only: list[str] | None) -> list[str]:
    """What `bench speed` needs to know of files: the shop's catalog and, if it is to run, where Flink is."""
    paths = ["--shop", str(DEMO_CATALOGS / "shop.yaml")]
    if only is None or any(system.startswith("flink") for system in only):
        with err.status("Flink is installed, once"):
            paths += ["--flink-home", str(distribution(settings()))]
    return paths


def _results() -> Path:
    return settings().data_dir.absolute() / RESULTS


def _drawn(chosen: Bench, result: dict[str, Any]) -> list[Path]:
    """Draws the result; where it is, if it is one that is drawn."""
    if chosen.drawing is None:
        return []
    file, draw = chosen.drawing
    (_results() / file).write_text(draw(result))
    return [_results() / file]


def _flames() -> Path:
    """Draws what the workers were sampled at, as a flame graph; where it is."""
    stacks = _results() / STACKS
    drawn = stacks.with_suffix(".svg")
    drawn.write_text(flame_graph(stacks.read_text().splitlines(), "workers of job A, a backlog", _BUNDLE))
    return drawn


def _measured(name: str, chosen: Bench, arguments: list[str]) -> dict[str, Any]:
    """Runs a bench as a process on engines of its own; its progress goes to stderr as it comes."""
    where = apart(settings(), "bench")
    command = [sys.executable, "-m", chosen.program, name, "--json", "--results", str(_results()), *arguments]
    # stopped like this, it must not leave its engines running either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with err.status("starting engines") as line:
            services.start(where, chosen.services(where), line.update)
        environment = {**os.environ, **where.environ()}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        down(where)
        shutil.rmtree(where.data_dir, ignore_errors=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        again = "correct it, then --resume" if "resume" in chosen.options else "correct it, then run it again"
        msg = f"the bench ended with {done.returncode} and no figure; what it said is above. {again}"
        raise UserError(msg) from error


def _sketches(*, as_json: bool) -> None:
    from orchestration import sketch_bench  # noqa: PLC0415 - it brings a database engine into the process

    with err.status("building sketches"):
        result = sketch_bench.run()
    if as_json:
        print_json(result)
    else:
        show_sketches(result)
    if not result["ok"]:
        raise Failed
