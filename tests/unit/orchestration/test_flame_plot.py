"""A flame graph is as wide as what was sampled, and says of what."""

import xml.etree.ElementTree as ET

import pytest

from orchestration.flame_plot import flame_graph, tree

SVG = "{http://www.w3.org/2000/svg}"
PROCESS = 'process 1:"/home/x/python"'
TURN = "turn (speed_layer/source.py:7)"
STACKS = [
    f"{PROCESS};Thread.run (threading.py:9);turn (speed_layer/source.py:1);decode (metrics/event.py:4) 30",
    f"{PROCESS};{TURN};decode (metrics/event.py:5);loads (json/__init__.py:3) 20",
    f"{TURN} 10",
    "wait (grpc/_common.py:154) 40",
    "no number",
]


def test_frames_are_of_functions_and_not_of_lines_or_processes():
    whole = tree(STACKS)
    assert whole.samples == 100
    assert {name: frame.samples for name, frame in whole.called.items()} == {
        "turn (speed_layer/source.py)": 60,
        "wait (grpc/_common.py)": 40,
    }
    (decode,) = whole.called["turn (speed_layer/source.py)"].called.values()
    assert (decode.samples, [each.samples for each in decode.called.values()]) == (50, [20])
    assert whole.depth == 4


def test_what_is_called_by_a_function_is_told_alone():
    below = tree(STACKS, below="decode")
    assert (below.samples, [*below.called]) == (50, ["decode (metrics/event.py)"])


def test_a_bar_is_as_wide_as_its_share():
    drawn = ET.fromstring(flame_graph(STACKS, "workers"))
    bars = {group[0].text: float(group[1].get("width", "")) for group in drawn.iter(f"{SVG}g")}
    assert bars["all: 100.0%"] == pytest.approx(2.5 * bars["wait (grpc/_common.py): 40.0%"], rel=0.01)
    assert [text.text for text in drawn.iter(f"{SVG}text")][0] == "workers; 100 samples"
    assert "/home/" not in flame_graph(STACKS, "workers")


def test_what_is_too_narrow_to_be_seen_is_not_drawn():
    assert "rare" not in flame_graph([*STACKS, "rare (a.py:1) 1", "often (b.py:1) 900"], "workers")


def test_nothing_is_drawn_of_nothing():
    assert list(ET.fromstring(flame_graph([], "workers")).iter(f"{SVG}rect")) == []
