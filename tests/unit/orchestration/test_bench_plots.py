import xml.etree.ElementTree as ET
from typing import Any

from orchestration.bench_plots import batch_growth, freshness, growth

SVG = "{http://www.w3.org/2000/svg}"


def figures(keys: int, partitions: int, state: int) -> dict[str, Any]:
    return {
        "keys": keys,
        "partitions": partitions,
        "events_per_s": 200_000,
        "peak_bytes": {"workers": 1 << 30, "flink": 1 << 29},
        "state_bytes": state << 20,
        "state_bound_bytes": 100 << 20,
    }


def test_each_case_is_a_dot_of_each_line_in_the_row_of_what_it_varies() -> None:
    cases = [figures(1000, 4, 10), figures(100_000, 4, 50), figures(100_000, 1, 50), figures(100_000, 16, 50)]

    drawn = ET.fromstring(growth({"runs": [{"figures": case} for case in cases]}))

    titles = [text.text for text in drawn.iter(f"{SVG}text") if text.get("class") == "title"]
    assert [title for title in titles if title and title.endswith("by keys")] == titles[:3]
    assert [title for title in titles if title and title.endswith("by partitions")] == titles[3:]
    lines = 5
    assert len(list(drawn.iter(f"{SVG}circle"))) == lines * 2 + lines * 3


def test_a_larger_state_is_drawn_higher_on_the_scale_of_the_closed_form() -> None:
    drawn = ET.fromstring(growth({"runs": [{"figures": figures(k, 4, s)} for k, s in ((1000, 50), (100_000, 100))]}))

    dots = {circle[0].text: float(circle.get("cy", "")) for circle in drawn.iter(f"{SVG}circle")}
    base = max(float(line.get("y1", "")) for line in drawn.iter(f"{SVG}line"))
    assert (base - dots["100.0"]) == 2 * (base - dots["50.0"])


def test_a_bin_of_probes_is_a_bar_and_each_target_a_line() -> None:
    share = {"p50_ms": 60.0, "p90_ms": 90.0, "p99_ms": 99.0, "max_ms": 120.0}
    histogram = {"bin_ms": 50, "view": [0, 3, 1], "alert": [5]}
    result = {"runs": [{"figures": {"view": share, "alert": share, "histogram": histogram}}]}

    drawn = ET.fromstring(freshness(result))

    bars = [(bar.get("class"), float(bar.get("height", ""))) for bar in drawn.iter(f"{SVG}rect")]
    assert [kind for kind, _ in bars] == ["bar a", "bar a", "bar b"]
    assert bars[0][1] == 3 * bars[1][1]
    assert len([line for line in drawn.iter(f"{SVG}line") if line.get("class") == "target"]) == 3


def test_each_size_of_a_day_is_a_dot_of_time_cost_and_memory_of_the_batch_layer_and_of_clickhouse() -> None:
    def day(events: int, seconds: float) -> dict[str, Any]:
        cost, memory = {"system": 12.0, "clickhouse": 3.0}, {"system": 2 << 30, "clickhouse": 1 << 30}
        return {"events": events, "seconds": seconds, "cpu_s_per_million": cost, "peak_bytes": memory}

    cases = [day(100_000, 5.0), day(1_000_000, 20.0), day(10_000_000, 160.0)]

    drawn = ET.fromstring(batch_growth({"runs": [{"figures": case} for case in cases]}))

    titles = [text.text for text in drawn.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles == [
        "seconds, by events",
        "processor seconds of a million, by events",
        "greatest memory, MiB, by events",
    ]
    lines = 5
    dots = list(drawn.iter(f"{SVG}circle"))
    assert len(dots) == lines * len(cases)
    assert {dot[0].text for dot in dots} == {"5.0", "20.0", "160.0", "12.0", "3.0", "2,048.0", "1,024.0"}
