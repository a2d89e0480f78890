import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from speed_layer.bench.profile import sampled
from speed_layer.bench.run import BenchError

BURN = """
import time
def worker_that_burns():
    end = time.monotonic() + 30
    while time.monotonic() < end:
        sum(range(1000))
print("burning", flush=True)
worker_that_burns()
"""
POOL = f"import subprocess, sys; print(input(), flush=True); subprocess.run([sys.executable, '-c', {BURN!r}])"


def test_the_samples_show_a_worker_that_began_after_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "workers.txt"
    pool = subprocess.Popen([sys.executable, "-c", POOL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert pool.stdin is not None
    assert pool.stdout is not None
    try:
        with sampled(pool.pid, target):
            pool.stdin.write(b"go\n")
            pool.stdin.flush()
            assert [pool.stdout.readline() for _ in range(2)] == [b"go\n", b"burning\n"]
            with pytest.raises(subprocess.TimeoutExpired):
                pool.wait(3)  # the profiler looks for new processes now and then
    finally:
        for process in (*psutil.Process(pool.pid).children(), pool):
            process.kill()
        pool.wait()
    assert "worker_that_burns" in target.read_text()


def test_a_process_that_is_not_there_has_no_samples(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(BenchError, match="no samples were taken"), sampled(gone.pid, tmp_path / "txt"):
        pass
