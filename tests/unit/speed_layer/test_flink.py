"""What the speed layer knows of the Flink that it runs on."""

import pytest

from infra.settings import Settings
from speed_layer.flink import slots


@pytest.mark.parametrize("master", ["[local]", "127.0.0.1:1"])
def test_one_process_may_run_every_subtask_where_flink_is_embedded_or_does_not_answer(master: str) -> None:
    assert slots(Settings(flink_master=master, parallelism=3)) == 3
