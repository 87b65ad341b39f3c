"""The sentences under the demo's board: what was compared, and what the numbers do and do not show."""

from __future__ import annotations

from bench.runs.run import Outcome
from leaderboards.boards import Board, BoardRow
from leaderboards.ranking import scores_of_row
from leaderboards.store import Store
from leaderboards.uncertainty import paired_difference


def tell(board: Board, outcome: Outcome) -> str:
    """Two sentences: the comparison made, and the differences of the soup from other rows with their intervals."""
    rows = {row.name: row for row in board.rows}
    names = ", ".join(row.name for row in board.rows if row.main)
    compared = (
        f"Compared: {names} on the same {board.n} held-out images under {len(board.corruptions)} corruptions; rows of "
        "track D also saw other test images under these corruptions, without labels, before they were fine-tuned back "
        "on clean ones, so they are never ranked with A or R."
    )
    soup = rows.get("selfsoup (soup)")
    if soup is None or soup.incomplete:
        return compared
    found = [_difference(soup, rows[name], outcome) for name in _AGAINST if name in rows and not rows[name].incomplete]
    return (
        f"{compared}\n\nThe soup minus each of them, in points of mean accuracy with a 95 % interval over images: "
        f"{'; '.join(found)}; this is one small stock, {_plural(len(board.seeds), 'seed')} and 32-pixel digits, which "
        "says nothing about ImageNet, stocks or label draws that were not run, and how much of it comes from the "
        "shifted images and how much from more self-supervision shows only with --with-baselines."
    )


_AGAINST = ("source", "tent", "memo", "supervised_soup", "selfsoup (mean)")


def _difference(soup: BoardRow, other: BoardRow, outcome: Outcome) -> str:
    store = Store(outcome.out)
    records = outcome.records()
    one, two = (scores_of_row(row.keys, records, store.predictions) for row in (soup, other))
    gap = paired_difference(one, two)
    return f"{other.name} {100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
