"""Which source of a directory is meant."""

import pytest

from orchestration.sources import (
    DEMO_CATALOGS,
    SourceError,
    SourceFile,
    chosen,
    load_sources,
    only,
    owner_of_columns,
    owner_of_metric,
)

DEVICES, SHOP = load_sources(DEMO_CATALOGS)
BOTH = (DEVICES, SHOP)


def test_a_directory_holds_a_source_per_file_and_a_file_is_one() -> None:
    assert [each.name for each in BOTH] == ["devices", "shop"]
    assert [each.name for each in load_sources(SHOP.path)] == ["shop"]


def test_a_name_picks_one_and_none_picks_all() -> None:
    assert chosen(BOTH, "shop") == (SHOP,)
    assert chosen(BOTH, None) == BOTH


@pytest.mark.parametrize(
    ("columns", "owner"),
    [({"event_id", "ts", "event_type", "country"}, SHOP), ({"ts", "device", "site"}, DEVICES)],
)
def test_a_file_belongs_to_the_source_whose_needed_fields_it_has(columns: set[str], owner: SourceFile) -> None:
    assert owner_of_columns(BOTH, columns, "it") is owner


@pytest.mark.parametrize("columns", [{"ts"}, {"ts", "device", "event_type"}])
def test_a_file_that_fits_none_or_several_asks_for_the_source(columns: set[str]) -> None:
    with pytest.raises(SourceError, match="it is about one source; there are `devices`, `shop`"):
        owner_of_columns(BOTH, columns, "it")


def test_the_only_source_is_taken_whatever_is_asked_of_it() -> None:
    assert only([SHOP], "it") is SHOP
    assert owner_of_metric([SHOP], "nothing") is SHOP
    assert owner_of_columns([SHOP], (), "it") is SHOP
