"""What is published in this repository passes the checks of today, and its boards say what its documentation says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import publishing
from leaderboards import Board, make_board, read_bundle
from leaderboards.store import find_scored

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "leaderboards" / "results"


def board_of(name: str) -> Board:
    path = RESULTS / name
    return make_board(list(read_bundle(path).records), lambda record: find_scored([path], record))


def test_what_is_published_could_be_published_today(capsys: pytest.CaptureFixture[str]) -> None:
    assert publishing.check(RESULTS, None, as_json=False) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.name)
def test_every_row_is_whole_and_ranked(path: Path) -> None:
    for row in board_of(path.name).rows:
        assert row.incomplete is None
        assert row.interval is not None
        assert row.interval.estimate == pytest.approx(row.accuracy, abs=1e-12)
        assert row.interval.low <= row.interval.estimate <= row.interval.high
        assert (row.rank is not None) == row.main
