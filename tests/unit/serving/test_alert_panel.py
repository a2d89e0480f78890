from datetime import UTC, datetime

import pytest

from metrics.catalog_build import parse_catalog
from serving import alert_panel
from serving.alerts import Raised, UnknownAlertError, build, definitions

NOON = datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)
CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
        "alerts": {"fast": {"when": "count > 3", "by": ["user"], "within": "2m"}},
    },
    {},
    "test",
)
ONE = Raised("fast", "1f", {"user": "<b>u1</b>"}, NOON, 4.0, 3.0, ("e1", "e2"), "alerts.shop.fast", NOON)


def test_what_comes_from_data_is_escaped() -> None:
    shown = alert_panel.panel([ONE])
    assert "&lt;b&gt;u1&lt;/b&gt;" in shown
    assert "<td>2026-03-01T12:00:00.500Z</td><td>fast</td>" in shown


def test_no_alert_is_said_so() -> None:
    assert "No alert has been raised" in alert_panel.panel([])


def test_json_has_iso_times_and_the_evidence() -> None:
    shown = ONE.as_json()
    assert (shown["breached_at"], shown["evidence"]) == ("2026-03-01T12:00:00.500Z", ["e1", "e2"])
    assert definitions(CATALOG.alerts)[0]["within_seconds"] == 120.0


def test_an_unknown_alert_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownAlertError, match="unknown alert `slow`. the alerts of source `shop` are: fast"):
        build(CATALOG, "slow")
