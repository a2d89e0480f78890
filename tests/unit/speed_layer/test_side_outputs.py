"""What goes to the late topic beside an event."""

from typing import Any

import polars as pl
import pytest

from infra.settings import Settings
from metrics.catalog_build import parse_catalog
from speed_layer.side_outputs import SideOutputs

SLICED = {"agg": "count", "window": ["tumbling 5m", "sliding 10m every 2m"]}
SESSIONS = {"agg": "count", "window": "session 30m"}


@pytest.mark.parametrize(
    ("metrics", "slice_start"),
    [({"events": SLICED, "visits": SESSIONS}, 240_000), ({"visits": SESSIONS}, 299_999)],
)
def test_a_late_event_names_its_finest_slice_or_its_millisecond(metrics: dict[str, Any], slice_start: int) -> None:
    tree = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "fields": {"user": "string"},
        "metrics": metrics,
    }
    outputs = SideOutputs(Settings(), parse_catalog(tree, {}, "test"), {})
    late = pl.DataFrame({"topic_partition": [0], "offset": [7], "event_time": [299_999], "record_time": [9_000_000]})

    [record] = outputs._late(late, {7: b"{}"})

    headers = dict(record["headers"])
    assert int(headers["slice_start"]) == slice_start
    assert int(headers["lateness_ms"]) == 9_000_000 - 299_999
