"""What a service of the stack finds when it starts."""

from pathlib import Path

import pytest

from infra.services import _prepare_flink
from infra.settings import Settings


@pytest.mark.parametrize(("master", "left"), [("[local]", False), ("127.0.0.1:8081", True)])
def test_states_that_a_killed_flink_left_on_disk_go_but_those_of_a_cluster_stay(
    tmp_path: Path, master: str, left: bool
) -> None:
    (tmp_path / "rocksdb" / "job_1").mkdir(parents=True)
    for _ in range(2):
        _prepare_flink(Settings(data_dir=tmp_path, flink_master=master), tmp_path)
    assert (tmp_path / "rocksdb").exists() == left
