"""Alerts as a client of the API meets them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import alert_log
import httpx
import pytest

from infra.clickhouse import connect, insert_frame, quote
from infra.settings import Settings
from serving import schema
from serving.api import create_app
from serving.source import Source


def get(source: Source, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(source))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def source(clickhouse: Settings) -> Source:
    catalog = alert_log.catalog("api_alerts")
    database = clickhouse.database(catalog.source)
    client = connect(clickhouse)
    schema.apply(client, catalog, database)
    for rows in alert_log.due(catalog, alert_log.events_of(catalog, alert_log.records(1, 600))).values():
        for _ in range(2):  # written twice, as by a worker that was killed in between
            insert_frame(client, f"{quote(database)}.{quote('alerts')}", rows)
    return Source(clickhouse, catalog)


def test_alerts_come_once_and_latest_first(source: Source) -> None:
    body = get(source, "/v1/alerts?limit=100000").json()
    due = alert_log.due(source.catalog, alert_log.events_of(source.catalog, alert_log.records(1, 600)))
    assert sorted(one["alert_id"] for one in body["alerts"]) == sorted(
        i for ids in alert_log.ids(due).values() for i in ids
    )
    times = [one["breached_at"] for one in body["alerts"]]
    assert times == sorted(times, reverse=True)
    assert [one["when"] for one in body["definitions"]] == [alert.when for alert in source.catalog.alerts]


def test_alerts_are_asked_for_by_name_time_and_number(source: Source) -> None:
    every = get(source, "/v1/alerts?name=low_stock&limit=100000").json()["alerts"]
    assert {one["alert"] for one in every} == {"low_stock"}
    assert get(source, "/v1/alerts?name=low_stock&limit=2").json()["alerts"] == every[:2]
    since = every[3]["breached_at"]
    assert get(source, f"/v1/alerts?name=low_stock&from={since}").json()["alerts"] == every[:4]
    assert get(source, f"/v1/alerts?name=low_stock&to={since}&limit=100000").json()["alerts"] == every[4:]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/alerts?name=fraud", 404, "unknown alert `fraud`. the alerts of source `api_alerts` are: card_velocity"),
        ("/v1/alerts?from=noon", 400, "`from` must be an ISO 8601 time or day; got `noon`"),
        ("/v1/alerts?limit=0", 400, "`limit` must lie between 1 and 1000000; got 0"),
    ],
)
def test_what_cannot_be_asked_is_a_problem(source: Source, path: str, status: int, text: str) -> None:
    found = get(source, path)
    assert found.status_code == status
    assert found.json()["detail"].startswith(text)


def test_the_command_line_lists_them(source: Source, clickhouse: Settings, tmp_path: Path) -> None:
    path = alert_log.write_catalog(source.catalog.source, tmp_path)
    command = [
        sys.executable,
        "-m",
        "orchestration.cli.main",
        "--catalog",
        str(path),
        "alerts",
        "low_stock",
        "--limit",
        "3",
    ]
    environment = {**os.environ, **clickhouse.environ()}
    told = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True).stdout
    listed = get(source, "/v1/alerts?name=low_stock&limit=3").json()["alerts"]
    assert json.loads(told)["alerts"] == [{"source": source.catalog.source, **one} for one in listed]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert all(one["breached_at"] in shown for one in listed)
