"""`python -m orchestration.batch_bench NAME`: measures the batch layer on the stack of the settings."""

import argparse
import json
import signal
import sys
from pathlib import Path

from infra.catalog_file import load_catalog
from infra.settings import Settings, load_settings
from orchestration import services
from orchestration.batch_bench import beside, days, growth, systems
from orchestration.sources import DEMO_CATALOGS
from speed_layer.bench.program import Result, carry_out, options, results_of

BENCHES = {"batch": beside, "batch-range": days, "batch-growth": growth}
_ONCE = "once"
_SHOP = DEMO_CATALOGS / "shop.yaml"


def main(arguments: list[str]) -> int:
    """Runs a bench; 1 if a target is missed or a count is not exact, 2 if something is not there."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == _ONCE:
        return _once(rest)
    if name not in BENCHES:
        print(f"there is no bench `{name}`. there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    module = BENCHES[name]
    parser = options(name, module.__doc__ or "", "orchestration.batch_bench")
    parser.add_argument("--events", type=int, default=module.EVENTS, help=f"of a day ({module.EVENTS:,})")
    if name == "batch":
        parser.add_argument("--runs", type=int, default=beside.RUNS, help=f"of each system ({beside.RUNS})")
        parser.add_argument("--only", choices=systems.TITLES, action="append", help="only this system")
        parser.add_argument("--resume", action="store_true", help="go on with the bench that was interrupted")
    if name == "batch-range":
        parser.add_argument("--runs", type=int, default=days.SINGLES, help=f"of single days ({days.SINGLES})")
    given = parser.parse_args(rest)

    def measure(settings: Settings) -> Result:
        if name == "batch":
            notes = results_of(given, settings) / f"batch.{given.events}.jsonl"
            chosen = given.only or [*systems.TITLES]
            return beside.bench(settings, _SHOP, given.events, given.runs, chosen, notes, resume=given.resume)
        if name == "batch-range":
            return days.bench(settings, _SHOP, given.events, given.runs)
        return growth.bench(settings, _SHOP, given.events)

    return carry_out(given, measure, module.lines, services.stores)


def _once(arguments: list[str]) -> int:
    """Runs one system over what is in the topic of a catalog; prints its figures."""
    parser = argparse.ArgumentParser(prog=f"python -m orchestration.batch_bench {_ONCE}", description=systems.__doc__)
    parser.add_argument("--system", choices=systems.TITLES, required=True)
    parser.add_argument("--shop", type=Path, required=True, help="the catalog")
    parser.add_argument("--events", type=int, required=True, help="about how many there are")
    given = parser.parse_args(arguments)
    print(json.dumps(systems.once(load_settings(), load_catalog(given.shop), given.system, given.events)))
    return 0


if __name__ == "__main__":
    # stopped like this, it must not leave its engines running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
