"""What the property tests share: one ClickHouse engine, since a process has one."""

from collections.abc import Iterator

import pytest
from chdb.session import Session


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """ClickHouse's engine in this process."""
    opened = Session(str(tmp_path_factory.mktemp("clickhouse")))
    yield opened
    opened.close()
