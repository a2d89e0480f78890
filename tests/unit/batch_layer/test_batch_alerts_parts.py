"""Alerts without a key are judged stretch by stretch of time, each with what lies before it."""

import random
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from batch_layer.alerts import PART, AlertFrames
from metrics.breach import alert_rows, breaches, table_rows
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.window import to_epoch_ms

DAY = date(2026, 3, 1)
START = to_epoch_ms(datetime(2026, 3, 1, tzinfo=UTC))
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def catalog(within: str) -> Catalog:
    tree = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"product": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1h"}},
        "alerts": {"many": {"when": "count > 3", "within": within}},
    }
    return parse_catalog(tree, {}, "test")


@pytest.mark.parametrize("within", ["10m", "90m"])
def test_the_parts_breach_where_the_whole_does(within: str) -> None:
    shop = catalog(within)
    (alert,) = shop.alerts
    assert alert.within is not None
    reach = alert.within // timedelta(milliseconds=1)
    width = max(HOUR_MS, reach)
    rng = random.Random(7)
    times = [START + rng.randrange(DAY_MS) for _ in range(3 * DAY_MS // reach)]
    ids = [f"e{n}" for n in range(len(times))]
    events = pl.DataFrame({"event_time": times, "place": range(len(times)), "event_id": ids})
    due = table_rows(alert, breaches(alert, alert_rows(alert, shop, events.with_columns(record_time=pl.lit(0)))))
    first = pl.col("event_time") // width * width
    held = pl.int_ranges(first, pl.col("event_time") + reach, width)
    parts = events.with_columns(held.alias(PART)).explode(PART)
    ((_, found),) = AlertFrames(shop, alert, (DAY,))(parts)
    assert due.height > 3
    assert parts.height > events.height
    assert found.drop("partition").equals(due.sort("alert", "breached_at", "alert_id"))
