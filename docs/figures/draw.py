"""Draw the figure of README.md from the published results of the digits field: `make figures`."""

from __future__ import annotations

from pathlib import Path

from leaderboards.boards import make_board
from leaderboards.figures import INK, plot, to_svg
from leaderboards.store import find_scored, read

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "leaderboards" / "results" / "digits-c-field.jsonl"
INKS = {"light": "#1f2328", "dark": "#f0f6fc"}
"""The colour of text by the ground that it stands on, each with a contrast above 15 (WCAG 2.2) on GitHub's."""


def drawn() -> dict[str, bytes]:
    """Return the two files by name; with one version of matplotlib they are the same bytes every time."""
    records = read([RESULTS])
    svg = to_svg(plot(make_board(records, lambda record: find_scored([RESULTS], record)), "methods-by-track"))
    return {f"field-{ground}.svg": svg.replace(INK.encode(), ink.encode()) for ground, ink in INKS.items()}


if __name__ == "__main__":
    for name, content in drawn().items():
        (HERE / name).write_bytes(content)
