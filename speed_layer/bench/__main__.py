"""`python -m speed_layer.bench [NAME]`: measures the speed layer on the stack of the settings; `speed` if not named."""

import importlib
import signal
import sys

BENCHES = {name: f"speed_layer.bench.{name}" for name in ("speed", "freshness", "growth", "backpressure")}
"""By name the module with its `main(arguments)`, which returns the exit code."""


def main(arguments: list[str]) -> int:
    """Runs a bench; 1 if a target is missed or a count is not exact, 2 if something is not there."""
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in BENCHES else ("speed", arguments)
    return int(importlib.import_module(BENCHES[name]).main(rest))


if __name__ == "__main__":
    # stopped like this, it must not leave its engines running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
