"""A Spark cluster that is not there is refused before anything is started."""

from pathlib import Path

import pytest

from batch_layer.job import SparkUnavailableError, spark_session
from infra.settings import Settings


@pytest.mark.parametrize("url", ["spark://127.0.0.1:1", "spark://127.0.0.1:1,127.0.0.1:2", "spark://127.0.0.1"])
def test_a_run_is_refused_where_no_master_answers(url: str, tmp_path: Path) -> None:
    with (
        pytest.raises(SparkUnavailableError) as refused,
        spark_session(Settings(data_dir=tmp_path / "data", spark_master=url), 1),
    ):
        pass
    assert str(refused.value) == f"no Spark master answers at `{url}`. start it, or correct `LOCKSTEP_SPARK_MASTER`"
    assert not (tmp_path / "data").exists()
