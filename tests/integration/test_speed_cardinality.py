"""Very many rows: an alarm says what is slow, and nothing is cut off."""

import pytest
import speed_log
from speed_log import Log, expected, published, rows

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from serving.status import read_status
from speed_layer.main import run


@pytest.fixture
def source(unique: str) -> Catalog:
    return speed_log.catalog(unique)


@pytest.fixture
def log(stack: Settings, source: Catalog) -> Log:
    return Log(stack, source)


def test_many_rows_raise_an_alarm_and_all_of_them_are_counted(stack: Settings, source: Catalog, log: Log) -> None:
    log.good(3000)

    run(stack.model_copy(update={"alarm_rows": 3}), source, until_drained=True)

    found = rows(stack, source, "SELECT DISTINCT group_id, metrics, dimension FROM speed_alarms FINAL")
    assert found == [("10s:country", ["events", "revenue"], "country")]
    [alarm] = read_status(connect(stack), stack.database(source.source)).alarms
    assert alarm.dimension == "country"
    assert "all rows are counted" in alarm.text
    assert published(stack, source) == expected(3000)
