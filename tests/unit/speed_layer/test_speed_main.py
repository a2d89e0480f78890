"""A run of the speed layer, with jobs that are gone before they have done anything."""

import threading
from unittest.mock import Mock

import pytest

from infra import kafka
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from speed_layer import flink, jobs, published
from speed_layer.main import Watch, _Run


@pytest.fixture
def catalog() -> Catalog:
    tree = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    }
    return parse_catalog(tree, {}, "test")


@pytest.mark.parametrize(("only", "left_to_others"), [(["events"], {0: 9, 1: 9}), ([], {})])
def test_a_job_that_died_before_it_wrote_progress_leaves_to_others_what_it_left_at_the_start(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, only: list[str], left_to_others: dict[int, int]
) -> None:
    stop = threading.Event()
    run = _Run(Settings(), catalog, Watch(stop, lambda _: stop.set()), only)
    run._job = "gone"
    run._ensure_job = submitted = Mock()  # type: ignore[method-assign]
    monkeypatch.setattr(jobs, "state", lambda *_: "FAILED")
    monkeypatch.setattr(published, "frontier", lambda *_: {})

    run._watch_job(lambda: False, Mock(), {0: 9, 1: 9})

    submitted.assert_called_once_with(left_to_others)


def test_a_topic_with_more_partitions_than_the_job_reads_gets_a_job_of_another_name(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    run = _Run(Settings(), catalog, Watch(stop, lambda _: stop.set()))
    run._job, run._partitions = "alive", 2
    name = run._name
    run._ensure_job = submitted = Mock()  # type: ignore[method-assign]
    monkeypatch.setattr(jobs, "state", lambda *_: "RUNNING")
    monkeypatch.setattr(published, "frontier", lambda *_: {0: 9})
    monkeypatch.setattr(kafka, "partitions", lambda *_: [0, 1, 2])

    run._watch_job(lambda: False, Mock(), {0: 9})

    submitted.assert_called_once_with({0: 9})
    run._partitions = 20
    assert not run._name.startswith(name)


def test_a_job_is_ended_in_flink_though_no_job_server_answers(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _Run(Settings(), catalog, Watch(threading.Event(), lambda _: None))
    run._job = "alive"
    asked = Mock()
    monkeypatch.setattr(flink, "cancel", asked)
    monkeypatch.setattr(jobs, "cancel", Mock(side_effect=jobs.JobServerUnavailableError))

    run._cancel()

    asked.assert_called_once_with(run._settings, run._name)
