import json

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from serving.versions import ShownView, renames
from serving.views import views


def catalog(latency: str, windows: str = "tumbling 5m") -> Catalog:
    tree = {
        "source": "shop",
        "topic": "t",
        "event_id": "id",
        "event_time": {"field": "ts"},
        "fields": {"took": "int"},
        "metrics": {
            "latency": {"agg": latency, "window": windows},
            "latency_99": {"agg": "quantile(took, 0.99)", "window": "tumbling 5m"},
        },
    }
    return parse_catalog(tree, {}, "test")


def shown(of: Catalog, *beside: str) -> list[ShownView]:
    """The views of a catalog as the database has them."""
    found = []
    for view in views(of, "shop", beside):
        told = json.loads(view.comment)
        found.append(ShownView(view.name, told["metric"], told["metric_version"], told["ending"]))
    return found


def test_a_switch_leaves_the_views_alone_of_metrics_whose_name_begins_alike() -> None:
    old, new = catalog("mean(took)"), catalog("max(took)")
    before, after = (one.metric("latency").metric_version[:8] for one in (old, new))
    there = [*shown(old), *(view for view in shown(new, "latency") if view.metric == "latency")]
    assert renames(there, new.metric("latency")) == [
        *((f"latency_{ending}", f"latency__{before}_{ending}") for ending in ("5m__speed", "5m__batch", "5m")),
        *((f"latency__{after}_{ending}", f"latency_{ending}") for ending in ("5m__speed", "5m__batch", "5m")),
    ]


def test_a_grain_that_the_new_version_lacks_leaves_the_metrics_name_too() -> None:
    old, new = catalog("mean(took)", "day Europe/Berlin"), catalog("max(took)")
    digits = old.metric("latency").metric_version[:8]
    moved = dict(renames(shown(old), new.metric("latency")))
    assert moved["latency_day_europe_berlin"] == f"latency__{digits}_day_europe_berlin"


def test_views_that_have_their_names_keep_them() -> None:
    new = catalog("max(took)")
    assert renames(shown(new), new.metric("latency")) == []
