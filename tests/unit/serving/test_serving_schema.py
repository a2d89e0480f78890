import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from serving import schema


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "shop.yaml"
    path.write_text(
        "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\nfields: {order: string, user: string}\n"
        "metrics:\n  visits: {agg: distinct(user), by: [order], window: [tumbling 1h, tumbling 1d]}\n",
        encoding="utf-8",
    )
    return load_catalog(path)


def test_every_statement_may_be_run_again(catalog: Catalog) -> None:
    for statement in schema.ddl(catalog, "shop"):
        assert statement.startswith(
            ("CREATE DATABASE IF NOT EXISTS ", "CREATE TABLE IF NOT EXISTS ", "CREATE OR REPLACE VIEW ")
        )


def test_nothing_is_dropped(catalog: Catalog) -> None:
    assert not any("DROP" in statement or "TRUNCATE" in statement for statement in schema.ddl(catalog, "shop"))


def test_every_table_remembers_insert_tokens(catalog: Catalog) -> None:
    tables = [statement for statement in schema.ddl(catalog, "shop") if "CREATE TABLE" in statement]
    assert len(tables) == 17
    assert all("non_replicated_deduplication_window" in statement for statement in tables)


def test_names_are_quoted_also_where_they_are_words_of_sql(catalog: Catalog) -> None:
    speed = schema.metric_tables(catalog.metric("visits"))[0].create("a`b")
    assert "`a\\`b`.`speed_visits`" in speed
    assert "ORDER BY (`metric_version`, `slice_start`, `order`)" in speed
    assert "`registers` Map(UInt16, UInt8)" in speed


def test_runs_lie_in_partitions_of_their_own(catalog: Catalog) -> None:
    _, expected, batch = schema.metric_tables(catalog.metric("visits"))
    assert expected.partition_by == batch.partition_by == ("partition", "run_id")


def test_there_is_a_view_per_grain_and_one_per_layer_behind_it(catalog: Catalog) -> None:
    views = [s.split(" AS\n")[0].split(".")[1] for s in schema.ddl(catalog, "shop") if "VIEW" in s]
    assert views == [f"`visits_{grain}{suffix}`" for grain in ("1h", "1d") for suffix in ("__speed", "__batch", "")]
