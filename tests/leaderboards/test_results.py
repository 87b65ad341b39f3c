"""What is published in this repository passes the checks of today, and its boards say what its documentation says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from bench.runs import publishing
from bench.settings.run_spec import make_spec, read_run_file
from leaderboards import Board, make_board, read_bundle, to_markdown
from leaderboards.store import find_scored

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "leaderboards" / "results"


@cache
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


def test_the_field_is_what_its_run_file_makes() -> None:
    spec = make_spec(read_run_file(ROOT / "runs" / "digits-c-field.toml"))
    board = board_of("digits-c-field.jsonl")
    assert {row.method for row in board.rows} == set(spec.method)
    assert (board.shift, board.severities, board.seeds) == (spec.shift, tuple(spec.severity), spec.seed_list)
    for record in read_bundle(RESULTS / "digits-c-field.jsonl").records:
        wanted = spec.options.get(record.method, {})
        given = record.options.get(record.method, {})
        assert {name: given[name] for name in wanted} == {
            name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()
        }


def test_the_table_of_the_field_in_the_documentation_is_its_board() -> None:
    columns = ["rank", "method", "track", "accuracy", "clean", "ECE", "forwards", "backwards"]
    table = to_markdown(board_of("digits-c-field.jsonl"), columns=columns)
    assert table in (ROOT / "docs" / "digits-c.md").read_text()


def test_the_study_shows_the_results_that_are_published() -> None:
    """Running the notebook is slow; this finds one that was run on earlier results."""
    cells = json.loads((ROOT / "docs" / "notebooks" / "study.ipynb").read_text(encoding="utf-8"))["cells"]
    (shown,) = (
        "".join(each["outputs"][0]["data"]["text/plain"]) for each in cells if "len(bundle" in str(each["source"])
    )
    assert int(shown) == len(read_bundle(RESULTS / "digits-c-field.jsonl").records)
