"""`python -m infra` from a shell."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_service_that_there_is_none_of_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    elsewhere = {"LOCKSTEP_KAFKA_BOOTSTRAP": "a:1", "LOCKSTEP_CLICKHOUSE_URL": "http://b:2"}
    done = subprocess.run(
        [sys.executable, "-m", "infra", "run", "nginx"],
        env={**os.environ, **elsewhere, "LOCKSTEP_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    services = "`flink-jobserver`, `flink-expansion`, `beam-workers`"
    assert f"service must be one of {services}; got `nginx`" in done.stderr
