"""`python -m speed_layer.bench speed`: how fast the speed layer drains a backlog, beside systems that do the same.

The figure of the speed layer is what a user has: from the moment the job runs, with checkpoints on and nothing read
yet, to the last event in the tables, as ClickHouse sees them. All counts must come out exact.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.flink_cluster import FlinkError, distribution
from infra.measure import machine, of_services
from infra.services import core_services
from infra.settings import load_settings
from infra.stack import StackError, down, status, up
from speed_layer.bench.apart import apart
from speed_layer.bench.profile import STACKS, sampled
from speed_layer.bench.run import BenchError
from speed_layer.bench.systems import Means, prepared
from speed_layer.bench.table import lines
from speed_layer.bench.throughput import EVENTS, RUNS, TITLES, A, measure, result

SHOP = Path(__file__).parents[2] / "orchestration" / "catalogs" / "shop.yaml"
RESULT = "speed.json"
_CLUSTER_PORTS = range(25_000, 30_000)
_CLUSTER_HEAP = "3g"


def report(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Prints the figures; 1 if a target is missed or a count is not exact, 2 if something is not there."""
    parser = argparse.ArgumentParser(prog="python -m speed_layer.bench speed", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help=f"events in the backlog ({EVENTS:,})")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each system ({RUNS})")
    parser.add_argument("--only", choices=TITLES, action="append", help="only this system; may be given several times")
    parser.add_argument("--resume", action="store_true", help="go on with the bench that was interrupted")
    parser.add_argument("--profile", action="store_true", help="then sample the workers in a run of job A")
    parser.add_argument("--results", type=Path, help="directory of results (`bench-results` under `data_dir`)")
    parser.add_argument("--flink-home", type=Path, help="Flink's home (installed under `data_dir`)")
    parser.add_argument("--shop", type=Path, default=SHOP, help="the shop's catalog, for job B")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args(arguments)
    settings = load_settings()
    results = given.results or settings.data_dir.absolute() / "bench-results"
    cluster = apart(settings, "flink-sql", _CLUSTER_PORTS).model_copy(update={"flink_heap": _CLUSTER_HEAP})
    means = Means(settings, given.shop, cluster, lambda: given.flink_home or distribution(settings), report)
    wanted = given.only or list(TITLES)
    notes = results / f"speed.{given.events}.jsonl"
    ran_before = any(service.state == "running" for service in status(settings))
    taken_on = machine()
    try:
        up(settings, core_services(settings), report=report)
        with prepared(means, {*wanted, A} if given.profile else wanted, given.events) as systems:
            chosen = {name: run for name, run in systems.items() if name in wanted}
            found = result(taken_on, measure(chosen, given.runs, notes, report, resume=given.resume))
            if given.profile:
                with sampled(*of_services(settings, ("beam-workers",)), results / STACKS):
                    systems[A]()
    except (BenchError, ConnectionError, FlinkError, StackError) as error:
        report(str(error))
        return 2
    finally:
        if not ran_before:
            down(settings)
    (results / RESULT).write_text(json.dumps(found, indent=1))
    print(json.dumps(found) if given.json else "\n".join(lines(found)))
    return 0 if found["ok"] else 1
