"""Methods against boards: means and ranks as pandas gives them, gaps that stay gaps, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pandas as pd
import pytest

from leaderboards import make_board
from leaderboards.boards import Board
from leaderboards.matrix import column_titles, matrix
from leaderboards.matrix_tables import to_csv, to_grid, to_json, to_latex, to_markdown

ACCURACIES = {  # by method and shift; None: not run, "failed": incomplete
    "tent": {"imagenet-c": 0.6, "a-c": 0.5, "b-c": 0.8},
    "sar": {"imagenet-c": 0.6, "a-c": 0.7, "b-c": 0.4},
    "eta": {"imagenet-c": 0.2, "a-c": 0.4, "b-c": 0.6},
    "lame": {"imagenet-c": 0.9, "a-c": None, "b-c": 0.9},
    "memo": {"imagenet-c": 0.9, "a-c": 0.9, "b-c": "failed"},
    "selfsoup": {"imagenet-c": 0.1, "a-c": 0.3, "b-c": 0.2},
}
SHIFTS = ("imagenet-c", "a-c", "b-c")
WHOLE = ("tent", "sar", "eta")


@pytest.fixture
def boards(results: Any) -> list[Board]:
    made = []
    for shift in SHIFTS:
        records = []
        for method, known in ACCURACIES.items():
            track, part = ("D", "soup") if method == "selfsoup" else ("A", None)
            common: dict[str, Any] = {"shift": shift, "track": track, "part": part}
            if known[shift] == "failed":
                records.append(results.add(method, error="not finite", **common))
            elif known[shift] is not None:
                right = round(50 * float(str(known[shift])))
                records.append(results.add(method, hits=[i < right for i in range(50)], **common))
        made.append(make_board(records, results.store.predictions))
    return made


def test_means_and_ranks_are_those_of_pandas(boards: list[Board]) -> None:
    rows = {row.name: row for row in matrix(boards).rows}
    frame = pd.DataFrame(ACCURACIES).T.loc[list(WHOLE)].astype(float)
    ranks = frame.rank(ascending=False, method="average").mean(axis=1)
    for method in WHOLE:
        assert rows[method].mean == pytest.approx(frame.loc[method].mean())
        assert rows[method].rank == pytest.approx(ranks[method])
    assert (rows["selfsoup"].mean, rows["selfsoup"].rank) == (pytest.approx(0.2), 1.0)  # alone in its track


def test_a_gap_is_seen_and_never_averaged(boards: list[Board]) -> None:
    made = matrix(boards)
    rows = {row.name: row for row in made.rows}
    assert [(row.mean, row.rank) for row in (rows["lame"], rows["memo"])] == [(None, None)] * 2
    told = {row[0]: row for row in to_grid(made).rows}
    known = next(row.interval for row in boards[0].rows if row.method == "lame")
    shown = f"†90.0 [{100 * known.low:.1f}, {100 * known.high:.1f}]" if known else ""
    assert told["lame"][2:] == [shown, "–", shown, "–", "–"]
    assert told["memo"][4:] == ["incomplete", "–", "–"]
    assert [row.name for row in made.rows] == ["tent", "sar", "eta", "memo", "lame", "selfsoup"]


def test_the_best_of_a_track_is_bold_in_every_column_ties_too(boards: list[Board]) -> None:
    made = to_grid(matrix(boards))
    bold = {(made.rows[i][0], made.titles[j]) for i, j in made.best}
    assert bold == {("lame", "imagenet-c"), ("memo", "imagenet-c"), ("memo", "a-c"), ("lame", "b-c")} | {
        ("selfsoup", shift) for shift in SHIFTS
    }
    assert made.groups == {5}


def test_columns_are_named_by_what_tells_them_apart(boards: list[Board]) -> None:
    assert column_titles(boards) == list(SHIFTS)
    assert column_titles(boards[:1]) == ["imagenet-c"]
    assert column_titles([]) == []
    assert matrix(boards, ["x", "y", "z"]).titles == ("x", "y", "z")


def test_no_board_gives_no_row() -> None:
    assert matrix([]).rows == ()


def test_every_format_has_every_number(boards: list[Board]) -> None:
    made = matrix(boards)
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert len(lines) == 6 * 3
    content = json.loads(to_json(made))
    assert content["columns"] == list(SHIFTS)
    for row in content["rows"]:
        own = [line for line in lines if line["method"] == row["method"]]
        assert [cell["column"] for cell in row["cells"]] == [line["column"] for line in own] == list(SHIFTS)
        for cell, line in zip(row["cells"], own, strict=True):
            wanted = ACCURACIES[row["method"]][cell["shift"]]
            state = "not run" if wanted is None else "incomplete" if wanted == "failed" else "complete"
            assert cell["state"] == line["state"] == state
            assert cell["accuracy"] == (wanted if state == "complete" else None)
            assert line["accuracy"] == ("" if cell["accuracy"] is None else str(cell["accuracy"]))
            assert (cell["low"] is None) == (state != "complete")
    assert to_markdown(made).count("\n| ") == 2 + 6 - 1 + 0
    # Memo on a-c is better than all others; elsewhere the best is not, and selfsoup has nobody to be compared with.
    assert re.findall(r"(\w+) &.*\\textbf\{([\d.]+)", to_latex(made)) == [("memo", "90.0")]
    marked = re.findall(r"^(\w+) &(.*dagger.*)$", to_latex(made), re.M)
    assert {name: row.count("dagger") for name, row in marked} == {"memo": 1, "lame": 2, "tent": 1}


@pytest.mark.parametrize("title", ["<script>", "a|b", "=HYPERLINK(1)", "\u202eabc", "100 % & _x_"])
def test_titles_of_columns_are_escaped(boards: list[Board], title: str) -> None:
    made = matrix(boards[:1], [title])
    assert "<script" not in to_markdown(made)
    assert "\u202e" not in to_markdown(made) + to_csv(made) + to_latex(made)
    assert not any(cell.startswith("=") for line in csv.reader(io.StringIO(to_csv(made))) for cell in line)
    assert json.loads(to_json(made))["columns"] == [title]
