import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.measure import Meter, of_services
from infra.settings import Settings

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
HOLD = "held = bytearray(64 << 20); held[::4096] = b'x' * len(held[::4096]); print('held', flush=True); input()"


def test_the_time_of_a_child_that_ended_is_counted() -> None:
    with Meter({"own": [os.getpid()]}) as meter:
        before = meter.cpu()["own"]
        subprocess.run([sys.executable, "-c", BURN], check=True)
        assert meter.cpu()["own"] - before >= 0.3


def test_the_time_of_a_grandchild_that_ended_is_counted() -> None:
    middle = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}]); print('done', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", middle], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        root.stdout.readline()
        with Meter({"tree": [root.pid]}) as meter:
            assert meter.cpu()["tree"] >= 0.3
        root.communicate(b"\n")


def test_the_peak_is_of_all_processes_of_a_part_and_outlives_them() -> None:
    with Meter({"own": [os.getpid()], "nobody": []}, every_s=0.01) as meter:
        before = meter.peaks()["own"]
        held = [
            subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in held:
            assert process.stdout is not None
            process.stdout.readline()
        meter.sample()
        for process in held:
            process.communicate(b"\n")
    assert meter.peaks()["own"] - before >= 128 << 20
    assert meter.peaks()["nobody"] == 0


def test_parts_are_told_apart() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        root.stdout.readline()
        with Meter({"a": [root.pid], "b": []}) as meter:
            pass
        root.communicate(b"\n")
    assert meter.peaks()["a"] > 64 << 20
    assert meter.peaks()["b"] == 0


def test_a_service_that_does_not_run_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="service `kafka` must run to be measured; it does not"):
        of_services(Settings(data_dir=tmp_path), ("kafka",))
