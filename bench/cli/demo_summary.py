"""The summary below the demo's board: what was compared, and what the numbers do and do not show."""

from __future__ import annotations

from bench.core.console import plural
from bench.runs.outcome import Outcome
from leaderboards.boards import Board, BoardRow
from leaderboards.ranking import scores_of_row
from leaderboards.store import Store
from leaderboards.uncertainty import paired_difference


def summarise(board: Board, outcome: Outcome) -> str:
    """Return two paragraphs: what was compared, and how the soup differs from other rows, with intervals."""
    rows = {row.name: row for row in board.rows}
    names = ", ".join(row.name for row in board.rows if row.main)
    compared = (
        f"Compared: {names} on the same {board.n} held-out images under {len(board.corruptions)} corruptions. Rows of "
        "track D saw other test images under these corruptions, without labels, before fine-tuning on clean images, so "
        "they are never ranked with tracks A or R."
    )
    soup = rows.get("selfsoup (soup)")
    if soup is None or soup.incomplete:
        return compared
    others = [rows[name] for name in _AGAINST if name in rows and not rows[name].incomplete]
    differences = [_difference(soup, other, outcome) for other in others]
    return (
        f"{compared}\n\nThe soup minus each of them, in points of mean accuracy with a 95 % interval over images: "
        f"{'; '.join(differences)}. This is one small stock, {plural(len(board.seeds), 'seed')} and 32-pixel digits: "
        "it says nothing about ImageNet, other stocks or other label draws. Run --with-baselines to separate the gain "
        "from shifted images from the gain from more self-supervision."
    )


_AGAINST = ("source", "tent", "memo", "supervised_soup", "selfsoup (mean)")


def _difference(soup: BoardRow, other: BoardRow, outcome: Outcome) -> str:
    store = Store(outcome.out)
    records = outcome.records()
    one, two = (scores_of_row(row.keys, records, store.predictions) for row in (soup, other))
    gap = paired_difference(one, two)
    return f"{other.name} {100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
