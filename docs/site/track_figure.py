"""The diagram of tracks in docs/figures/tracks.svg: `python docs/site/track_figure.py` writes it anew.

Three columns in order of time. What a method sees is a box; the words are those of `methods.table.TRACKS` in short.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from methods.table import TRACKS, Track

FILE = Path(__file__).resolve().parents[1] / "figures" / "tracks.svg"

SOURCE, POOL, OTHER, STREAM, FIXED = "#cfe0f5", "#f9d9b0", "#e6d3ee", "#c9e7cd", "#e4e6e9"
_LABELLED = ("labelled source", SOURCE)
_SHIFTED = ("shifted, no labels", POOL)
_OTHER = ("another shift, no labels", OTHER)
_PREDICT = ("predict", FIXED)
_ADAPT = ("adapt + predict", STREAM)

Box = tuple[str, str]
BOXES: Mapping[Track, Sequence[Box | None]] = {
    "R": (_LABELLED, None, _PREDICT),
    "A": (_LABELLED, None, _ADAPT),
    "B": (_LABELLED, None, ("adapt, source beside", STREAM)),
    "C": (_LABELLED, _SHIFTED, _PREDICT),
    "D": (_SHIFTED, _LABELLED, _PREDICT),
    "E": (_LABELLED, _OTHER, _PREDICT),
    "F": (_OTHER, _LABELLED, _PREDICT),
}
"""Training, training after it, and the stream; None where nothing happens. Track D and F train on labels last."""

_LEFT, _WIDTH, _HEIGHT, _GAP, _ROW = 44, 184, 30, 16, 42
_TOP = 40
_STARTS = [_LEFT + place * (_WIDTH + _GAP) for place in range(3)]


def svg() -> str:
    """Return the figure. It has its own light ground, so it can be read on light and dark pages."""
    width, height = _STARTS[-1] + _WIDTH + 12, _TOP + _ROW * len(BOXES) + 6
    spoken = "; ".join(f"{track}: {words}" for track, words in TRACKS.items())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-family="system-ui, sans-serif" font-size="13" fill="#1c1f23">',
        f"<title>What a method of each track sees, in order of time. {html.escape(spoken)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#fbfbfc"/>',
        *(_text(start + _WIDTH / 2, 24, title, 'font-size="12" fill="#50565e"') for start, title in zip(_STARTS, ("before the stream", "", "the stream, scored"), strict=True)),
        f'<path d="M{_STARTS[2] - _GAP / 2} 10V{height - 10}" stroke="#9aa1a9" stroke-dasharray="4 4"/>',
    ]
    for place, (track, boxes) in enumerate(BOXES.items()):
        lines += _row(track, boxes, _TOP + place * _ROW)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _row(track: Track, boxes: Sequence[Box | None], top: float) -> Iterator[str]:
    middle = top + _HEIGHT / 2
    yield _text(22, middle + 5, track, 'font-weight="700" font-size="15"')
    filled = [place for place, box in enumerate(boxes) if box]
    for left, right in zip(filled, filled[1:], strict=False):
        start, end = _STARTS[left] + _WIDTH, _STARTS[right]
        yield f'<path d="M{start + 2} {middle}H{end - 3}m-5 -4l5 4l-5 4" stroke="#50565e" fill="none"/>'
    for start, box in zip(_STARTS, boxes, strict=True):
        if box:
            yield f'<rect x="{start}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{box[1]}"/>'
            yield _text(start + _WIDTH / 2, middle + 4.5, box[0])


def _text(x: float, y: float, text: str, style: str = "") -> str:
    opened = f'<text x="{x:g}" y="{y:g}" text-anchor="middle" {style}'.rstrip()
    return f"{opened}>{html.escape(text)}</text>"


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
