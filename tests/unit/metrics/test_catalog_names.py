"""The names that the rules know are those that the tables have."""

from pathlib import Path

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog_names import LAYERS, OWN_TABLES
from serving import schema
from speed_layer.publish import PROGRESS_TABLE

TEXT = (
    "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\nfields: {user: string}\n"
    "metrics:\n  visits: {agg: count, window: tumbling 1h}\n  users: {agg: distinct(user), window: tumbling 1h}\n"
)


def test_every_table_that_a_source_has_of_its_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(TEXT)
    catalog = load_catalog(path)
    of_metrics = {f"{layer}_{metric.name}" for metric in catalog.metrics for layer in LAYERS}
    assert {table.name for table in schema.tables(catalog)} | {PROGRESS_TABLE} <= OWN_TABLES | of_metrics


@pytest.mark.parametrize("name", ["alert", "ledger", "speed", "batch_visits", "lookups", "runs_of_users"])
def test_a_name_that_takes_no_other_table_is_fine(tmp_path: Path, name: str) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(f"{TEXT}  {name}: {{agg: count, window: [tumbling 1h, global]}}\n")
    assert load_catalog(path).metric(name).name == name
