"""Where the Python workers spend their time while they drain a backlog."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speed_layer.bench.run import BenchError

STACKS = "workers.txt"
"""Where a bench leaves its samples, under its results."""

_RATE = 100
_STOP_S = 60.0


@contextmanager
def sampled(root: int, target: Path) -> Iterator[None]:
    """Samples a process and every descendant, those that begin meanwhile too, while they are at work.

    Args:
        root: The process that starts the workers.
        target: The file to write: a line for each stack, its frames from the outermost on with `;` between, and how
            often it was seen.

    Raises:
        BenchError: There is no profiler, or it may not look at other processes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(root), "--subprocesses"]
    command += ["--rate", str(_RATE), "--nonblocking", "--format", "raw", "--output", str(target)]
    try:
        profiler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError as error:
        msg = "`py-spy` takes the samples, and is not installed. run `make setup`"
        raise BenchError(msg) from error
    try:
        yield
    finally:
        profiler.send_signal(signal.SIGINT)
        try:
            said, _ = profiler.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            profiler.kill()
            said, _ = profiler.communicate()
    if not target.exists():
        msg = f"no samples were taken; where only a parent may trace a process, run as root. `py-spy` said: {said}"
        raise BenchError(msg)
