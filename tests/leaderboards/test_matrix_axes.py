"""Matrices of many boards: axes, sections, marks, tests and figures, against pandas, scipy and the boards."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare

from leaderboards import make_board
from leaderboards.boards import Board
from leaderboards.figures import to_svg
from leaderboards.friedman import Friedman
from leaderboards.matrix import Matrix, column_titles, comparable, comparisons, matrix
from leaderboards.matrix_figures import caption_of, figures
from leaderboards.matrix_tables import sentences, to_csv, to_grid, to_json, to_latex, to_markdown

SHIFTS = {"a-c": 5.0, "b-c": 5.0, "c-natural": 1.0}
PROTOCOLS = ("continual", "reset_each_shift")
TRACKS = {"tent": "A", "sar": "A", "eta": "A", "source": "R", "selfsoup": "D"}
LEFT_OUT = ("eta", "b-c", "continual")


def accuracy_of(method: str, shift: str, protocol: str, corruption: str) -> float:
    seed = [sum(map(ord, word)) for word in (method, shift, protocol, corruption)]
    return float(np.random.default_rng(seed).integers(10, 40)) / 50


def conditions(shift: str) -> tuple[str, ...]:
    return ("natural",) if shift == "c-natural" else ("fog", "snow")


@pytest.fixture(scope="module")
def boards(new_results: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    made = []
    for shift, protocol in product(SHIFTS, PROTOCOLS):
        results = new_results(tmp_path_factory.mktemp("axes") / "results")
        for method, track in TRACKS.items():
            if (method, shift, protocol) == LEFT_OUT:
                continue
            for corruption in (*conditions(shift), None):
                right = round(50 * accuracy_of(method, shift, protocol, corruption or "clean"))
                results.add(
                    method,
                    corruption,
                    hits=[i < right for i in range(50)],
                    shift=shift,
                    severity=SHIFTS[shift] if corruption else 0,
                    protocol=protocol,
                    track=track,
                    part="soup" if track == "D" else None,
                )
        made.append(make_board(results.records, results.store.predictions))
    return made


def frame() -> pd.DataFrame:
    """The accuracies, one line for each method, shift and protocol that was run."""
    lines = [
        {
            "method": method,
            "track": TRACKS[method],
            "shift": shift,
            "protocol": protocol,
            "accuracy": np.mean([accuracy_of(method, shift, protocol, each) for each in conditions(shift)]),
        }
        for method, shift, protocol in product(TRACKS, SHIFTS, PROTOCOLS)
        if (method, shift, protocol) != LEFT_OUT
    ]
    return pd.DataFrame(lines)


@pytest.mark.parametrize(("by", "rest"), [("shift", "protocol"), ("protocol", "shift")])
@pytest.mark.parametrize("across", [False, True])
def test_columns_are_an_axis_and_rows_repeat_for_the_rest(
    boards: list[Board], by: str, rest: str, across: bool
) -> None:
    made = matrix(boards, by=by, across=across)
    assert list(made.titles) == list(SHIFTS if by == "shift" else PROTOCOLS)
    known = frame()
    table = known.pivot_table(index=[rest, "track", "method"], columns=by, values="accuracy")
    whole = table.dropna()
    ranks = whole.groupby(level=[rest] if across else [rest, "track"]).rank(ascending=False).mean(axis=1)
    assert len(made.rows) == len(table)
    for row in made.rows:
        place = (row.section, row.track, row.name)
        told = [cell.row and cell.row.accuracy for cell in row.cells]
        wanted = [None if np.isnan(value) else pytest.approx(value) for value in table.loc[place]]
        assert told == wanted
        if place in whole.index:
            assert (row.mean, row.rank) == pytest.approx((whole.loc[place].mean(), ranks[place]))
        else:
            assert (row.mean, row.rank) == (None, None)
    for _, own in made.groups():
        known_ranks = [row.rank for row in own if row.rank is not None]
        assert known_ranks == sorted(known_ranks)
        assert [row.rank is None for row in own] == sorted(row.rank is None for row in own)
    assert len(made.groups()) == whole.reset_index()[rest].nunique() * (1 if across else 3)


def test_a_natural_shift_stands_beside_others_whatever_they_call_severity(boards: list[Board]) -> None:
    assert matrix(boards, by="shift").titles == tuple(SHIFTS)
    assert column_titles(boards[::2]) == list(SHIFTS)
    assert column_titles(boards) == [f"{shift}, {protocol}" for shift, protocol in product(SHIFTS, PROTOCOLS)]
    assert "severity 5" in to_grid(matrix(boards)).caption


def test_boards_of_equal_words_are_numbered(boards: list[Board]) -> None:
    assert column_titles([boards[0], boards[0], boards[1]]) == [
        "continual, board 1",
        "continual, board 2",
        "reset_each_shift",
    ]
    made = matrix([boards[0], boards[0]], by="shift")
    assert {row.section for row in made.rows} == {"resnet50.tv_in1k, board 1", "resnet50.tv_in1k, board 2"}


def test_a_board_that_nobody_ran_is_a_gap_with_its_place(boards: list[Board]) -> None:
    made = matrix(boards[:-1], by="protocol")
    lines = [line for line in csv.DictReader(io.StringIO(to_csv(made))) if line["section"] == "c-natural"]
    gaps = [line for line in lines if line["column"] == "reset_each_shift"]
    assert len(gaps) == 5
    for line in gaps:
        assert (line["shift"], line["protocol"], line["state"]) == ("c-natural", "reset_each_shift", "not run")
        assert line["accuracy"] == line["mean"] == line["mean_rank"] == ""


def test_results_that_stand_in_two_columns_are_told(boards: list[Board]) -> None:
    told = [any("twice" in note for note in to_grid(matrix(own)).notes) for own in (boards, [boards[0], boards[0]])]
    assert told == [False, True]


def test_marks_are_those_of_the_boards(boards: list[Board]) -> None:
    made = matrix(boards)
    for row in made.rows:
        for cell, board in zip(row.cells, boards, strict=True):
            peers = [other for other in board.rows if other.track == row.track]
            if cell.row is None:
                continue
            assert cell.board is board
            alone = len(peers) == 1
            among = [other for other in peers if other.among_best]
            assert cell.among_best == (None if alone else cell.row.among_best)
            assert cell.tied == (not alone and len(among) > 1)
            assert cell.winner == (not alone and [other.name for other in among] == [cell.row.name])
            assert cell.best == (cell.row.accuracy == max(other.accuracy or 0 for other in peers))
    assert any(cell.winner for row in made.rows for cell in row.cells)
    shown = [texts[2 : 2 + len(row.cells)] for row, texts in zip(made.rows, to_grid(made).rows, strict=True)]
    marked = [[text.startswith("†") for text in texts] for texts in shown]
    assert marked == [[bool(cell.among_best) for cell in row.cells] for row in made.rows]
    assert any(cell.tied and cell.among_best for row in made.rows for cell in row.cells)


def test_csv_and_json_hold_what_the_boards_hold(boards: list[Board]) -> None:
    made = matrix(boards, by="shift")
    tests = comparisons(made)
    by_place = {(board.shift, board.protocol): board for board in boards}
    content = json.loads(to_json(made, tests))
    cells = [(row, cell) for row in content["rows"] for cell in row["cells"]]
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert len(cells) == len(lines) == 5 * 6
    for (row, cell), line in zip(cells, lines, strict=True):
        board = by_place[cell["shift"], cell["protocol"]]
        own = next((r for r in board.rows if r.method == row["method"]), None)
        assert cell["severities"] == list(board.severities)
        for name in ("accuracy", "rank", "clean_accuracy", "ece", "n"):
            assert cell[name] == (None if own is None else getattr(own, name))
            assert line[name] == ("" if own is None else str(getattr(own, name)))
        assert (cell["low"] is None) == (own is None or own.interval is None)
        assert line["mean_rank"] == ("" if row["mean_rank"] is None else str(row["mean_rank"]))
    assert content["axis"] == "shift"
    assert [test["rows"] for test in content["tests"]] == [name for name, _ in made.groups()]
    (done,) = [test for test in content["tests"] if "p" in test]
    assert (done["rows"], done["n_blocks"]) == ("reset_each_shift, track A", 3)
    assert all("refused" in test for test in content["tests"] if test is not done)


def test_blocks_are_columns_or_conditions(boards: list[Board]) -> None:
    made = matrix(boards, by="shift")
    methods = [method for method, track in TRACKS.items() if track == "A"]
    by_name = {test.name: test for test in comparisons(made, blocks="conditions")}
    table = [
        [accuracy_of(method, shift, PROTOCOLS[1], each) for shift in SHIFTS for each in conditions(shift)]
        for method in methods
    ]
    test = by_name["reset_each_shift, track A"]
    assert isinstance(test.found, Friedman)
    assert test.count == 5
    assert (test.found.statistic, test.found.p) == pytest.approx(tuple(friedmanchisquare(*table)))
    assert "needs 3 methods" in str(by_name["continual, track A"].found)
    of_columns = {test.name: test for test in comparisons(made)}["reset_each_shift, track A"].found
    assert isinstance(of_columns, Friedman)
    ranks = {row.name: row.rank for row in made.rows if row.section == "reset_each_shift" and row.track == "A"}
    assert dict(zip(of_columns.names, of_columns.ranks, strict=True)) == pytest.approx(ranks)


def test_across_tracks_the_names_say_the_track(boards: list[Board]) -> None:
    tests = comparisons(matrix(boards, across=True), posthoc="holm")
    (test,) = tests
    assert isinstance(test.found, Friedman)
    assert set(test.found.names) == {"tent (A)", "sar (A)", "source (R)", "selfsoup (D)"}  # eta is not complete
    assert "all tracks" in sentences(tests)[0]
    assert "independent" in sentences(tests)[-1]


def test_a_matrix_is_made_of_boards_that_differ_in_one_thing(boards: list[Board]) -> None:
    assert {axis: made.titles for axis, made in comparable(boards).items()} == {
        "shift": tuple(SHIFTS),
        "protocol": PROTOCOLS,
    }
    assert comparable(boards[:1]) == comparable([boards[0], boards[3]]) == comparable([]) == {}


def test_the_outcome_is_told_or_one_reason(boards: list[Board]) -> None:
    assert sentences(comparisons(matrix(boards[:1]))) == [
        "No critical differences (track R): Friedman's test needs 3 methods that are complete in all columns, "
        "and there are 1."
    ]
    assert sentences(comparisons(matrix(boards[:1])), refused=False) == []
    said = sentences(comparisons(matrix(boards[1::2])))
    assert said[0].startswith("Friedman's test of track A, 3 methods over 3 columns: chi-squared(2) = ")
    assert f"- {said[1]}" in to_markdown(matrix(boards[1::2]), comparisons(matrix(boards[1::2])))


def test_a_wide_table_becomes_several_that_fit_a_page(boards: list[Board], tmp_path: Path) -> None:
    made = matrix(boards)
    tests = comparisons(made)
    text = to_latex(made, tests)
    parts = text.split(r"\end{table*}")[:-1]
    assert len(parts) == 2
    for title in made.titles:
        assert sum(title.replace("_", r"\_") in part for part in parts) == 1
    assert ["mean rank" in part.partition("toprule")[2] for part in parts] == [False, True]
    assert len(set(re.findall(r"\\label\{(.*)\}", text))) == 2
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex is installed; apt-get install texlive-latex-base")
    (tmp_path / "a.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\usepackage[utf8]{inputenc}\begin{document}"
        f"{text}{to_latex(matrix(boards, by='shift', across=True), tests)}" + r"\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def drawn(made: Matrix, **how: Any) -> dict[str, Any]:
    return dict(figures(made, comparisons(made, **how)))


def written(figure: Any) -> list[str]:
    """The texts of a figure as they are in its file."""
    return [" ".join(text.split()) for text in re.findall(r"<text[^>]*>([^<]*)</text>", to_svg(figure).decode())]


def ordered(boards: list[Board]) -> list[Board]:
    """The boards with accuracies so far apart that the order of methods is the same on all."""
    level = {method: 0.9 - 0.1 * place for place, method in enumerate(TRACKS)}
    return [
        dataclasses.replace(b, rows=tuple(dataclasses.replace(r, accuracy=level[r.method]) for r in b.rows))
        for b in boards
    ]


@pytest.mark.parametrize("significant", [False, True])
def test_the_diagram_shows_names_ranks_and_groups(boards: list[Board], significant: bool) -> None:
    made = matrix(ordered(boards[1::2]) if significant else boards[1::2], across=True)
    (test,) = comparisons(made)
    found = test.found
    assert isinstance(found, Friedman)
    assert found.significant == significant
    figure = drawn(made)["critical-difference"]
    (axes,) = figure.axes
    shown = written(figure)
    for name, rank in zip(found.names, found.ranks, strict=True):
        assert {f"{name} {rank:.2f}", f"{rank:.2f} {name}"} & set(shown)
    assert (f"critical difference {found.critical:.2f}" in shown) == found.significant
    thick = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 4]
    ends = [(min(x), max(x)) for x in thick]
    assert len(ends) == len(found.groups)
    for (low, high), (first, last) in zip(sorted(ends), found.groups, strict=True):
        assert (low, high) == pytest.approx((found.ranks[first], found.ranks[last]), abs=0.05)
    bars = [(line.get_ydata()[0], line.get_xdata()) for line in axes.lines if line.get_linewidth() == 4]
    for (height, one), (other_height, other) in combinations(bars, 2):
        assert height != other_height or max(one) < min(other) or max(other) < min(one)
    assert axes.get_xlim() == (1, len(found.names))
    caption = caption_of("critical-difference", made, [test])
    assert all(name in caption for first, last in found.groups for name in found.names[first : last + 1])


def test_a_figure_that_cannot_be_is_left_out(boards: list[Board]) -> None:
    assert set(drawn(matrix(boards[:2]))) == {"matrix-heatmap", "parallel-coordinates"}
    assert set(drawn(matrix(boards[:1]))) == {"matrix-heatmap"}


def test_gaps_are_hatched_and_break_lines(boards: list[Board]) -> None:
    made = matrix(boards)
    found = drawn(made)
    heat = found["matrix-heatmap"].axes[0]
    assert len(heat.patches) == 1
    assert heat.patches[0].get_xy() == (2, next(i for i, row in enumerate(made.rows) if row.name == "eta"))
    assert len(heat.texts) == 5 * 6 - 1
    lines = {line.get_label(): line.get_ydata() for line in found["parallel-coordinates"].axes[0].lines}
    assert np.flatnonzero(np.isnan(lines["eta (A)"])).tolist() == [2]
    assert lines["source (R)"] == pytest.approx(
        100 * frame().query("method == 'source'").sort_values(["shift", "protocol"])["accuracy"].to_numpy()
    )


def test_hostile_names_hide_nothing_in_a_figure(boards: list[Board]) -> None:
    nasty = "a\u202eb\x00<b>$x_1$"
    own = [
        dataclasses.replace(
            b, shift=nasty, rows=tuple(dataclasses.replace(r, method=f"{nasty}{r.method}") for r in b.rows)
        )
        for b in boards[1::2]
    ]
    for figure in drawn(matrix(own, [nasty, "b", "c"])).values():
        drawing = to_svg(figure)
        xml.etree.ElementTree.fromstring(drawing)
        assert "\u202e" not in drawing.decode()
        assert "a\\u202eb\\u0000&lt;b&gt;$x_1$" in drawing.decode()


def test_long_names_leave_room_for_the_drawing(boards: list[Board]) -> None:
    long = [
        dataclasses.replace(b, rows=tuple(dataclasses.replace(r, method=r.method + "-x" * 60) for r in b.rows))
        for b in boards[1::2]
    ]
    for figure in drawn(matrix(long, ["column " * 20 + str(i) for i in range(3)])).values():
        figure.draw_without_rendering()
        box = figure.axes[0].get_window_extent()
        assert min(box.width, box.height) > 50
