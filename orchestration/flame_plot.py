"""A flame graph: which share of its time a program spends in what, drawn as an SVG that needs no script.

Each frame is a bar as wide as its share, below the frame that called it. Frames are told apart by function and file,
not by line; the machinery that leads to all of them is left out.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape

_WIDTH, _ROW, _TOP, _MARGIN = 960.0, 18, 36, 12
_LETTER = 6.1
_LEAST_SHARE = 0.002
_NARROWEST_LABEL = 30.0
_OURS = ("metrics/", "speed_layer/", "infra/")
_LEFT_OUT = re.compile(r"^process \d+|\((threading|\S*/thread|\S*thread_pool_executor|\S*multiprocessing/\w+)\.py")
_LINE = re.compile(r":\d+\)$")
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #222 } .title { font-size: 12px; font-weight: 600 }
.ours { fill: #8cc0ee } .other { fill: #e4d3b0 } rect { stroke: #fff; stroke-width: .5 }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .ours { fill: #1c5d94 } .other { fill: #5f5233 } rect { stroke: #111 }
}
"""


@dataclass
class Frame:
    """A function as it was called from a certain place: how many samples saw it, and what it called."""

    name: str
    samples: int = 0
    called: dict[str, "Frame"] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many rows it takes."""
        return 1 + max((each.depth for each in self.called.values()), default=0)


def tree(stacks: Iterable[str], below: str | None = None) -> Frame:
    """The frames of stacks as `speed_layer.bench.profile.sampled` writes them.

    Args:
        stacks: Lines of frames, `;` between them, and a number.
        below: The name of a function: only what is called by it counts.
    """
    whole = Frame("all")
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        if not count.isdecimal():
            continue
        names = [_LINE.sub(")", name) for name in frames.split(";") if not _LEFT_OUT.search(name)]
        if below is not None:
            at = next((number for number, name in enumerate(names) if name.split(" ")[0] == below), None)
            if at is None:
                continue
            names = names[at:]
        whole.samples += int(count)
        frame = whole
        for name in names:
            frame = frame.called.setdefault(name, Frame(name))
            frame.samples += int(count)
    return whole


def flame_graph(stacks: Iterable[str], title: str, below: str | None = None) -> str:
    """The SVG; see `tree`.

    Args:
        stacks: Lines of frames and a number.
        title: Above it.
        below: The name of a function: only what is called by it is drawn.
    """
    whole = _pruned(tree(stacks, below))
    height = _TOP + _ROW * whole.depth + _MARGIN
    shapes = [f'<text class="title" x="{_MARGIN}" y="{_TOP - 14}">{escape(title)}; {whole.samples:,} samples</text>']
    if whole.samples:
        shapes += _drawn(whole, whole.samples, _MARGIN, 0)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height}" role="img">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *shapes, "</svg>", ""])


def _pruned(frame: Frame, whole: int | None = None) -> Frame:
    """Without frames that are too narrow to be seen."""
    whole = whole or frame.samples
    kept = {name: each for name, each in frame.called.items() if each.samples >= _LEAST_SHARE * whole}
    return Frame(frame.name, frame.samples, {name: _pruned(each, whole) for name, each in kept.items()})


def _drawn(frame: Frame, whole: int, x: float, row: int) -> Iterator[str]:
    share = frame.samples / whole
    wide = (_WIDTH - 2 * _MARGIN) * share
    y = _TOP + _ROW * row
    kind = "ours" if any(f"({folder}" in frame.name for folder in _OURS) else "other"
    size = f'x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_ROW}"'
    told = f"<title>{escape(frame.name)}: {share:.1%}</title>"
    yield f'<g>{told}<rect class="{kind}" {size}/>{_label(frame.name, x, y, wide)}</g>'
    for called in sorted(frame.called.values(), key=lambda each: each.name):
        yield from _drawn(called, whole, x, row + 1)
        x += (_WIDTH - 2 * _MARGIN) * called.samples / whole


def _label(name: str, x: float, y: float, wide: float) -> str:
    if wide < _NARROWEST_LABEL:
        return ""
    letters = int((wide - 6) / _LETTER)
    text = name if len(name) <= letters else f"{name[: letters - 1]}…"
    return f'<text x="{x + 3:.1f}" y="{y + 13}">{escape(text)}</text>'
