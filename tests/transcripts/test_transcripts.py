"""The merge of the speed layer, through Beam's TestStream, against transcripts."""

from pathlib import Path

import player
import pytest

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
METRICS = {"events": {"agg": "count", "window": "tumbling 10s"}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_panes_are_those_of_the_transcript(path: Path) -> None:
    expected, put_out = player.play(player.load(path))

    assert put_out == expected


def test_a_transcript_with_a_wrong_count_is_noticed() -> None:
    steps = [{"events": [{"at": 1}]}, {"panes": [{"pane": "early", "at": 0, "events": 2}]}, {"watermark": 10}]

    expected, put_out = player.play(player.parse({"metrics": METRICS, "steps": steps}))

    assert put_out != expected


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ([{"event": []}], "a step is one of"),
        ([{"events": [], "watermark": 1}], "a step is one of"),
        ([{"watermark": 2}, {"watermark": 1}], "a watermark must grow"),
        ([{"panes": []}], "panes come after events or a watermark"),
        ([{"events": [{"country": "de"}]}], "every event has a time"),
        ([{"events": [{"at": 1}]}], "tests nothing"),
    ],
)
def test_a_bad_transcript_is_refused(steps: list[dict[str, object]], rule: str) -> None:
    with pytest.raises(player.TranscriptError, match=rule):
        player.parse({"metrics": METRICS, "steps": steps})
