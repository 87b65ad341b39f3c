"""Every way of showing a board says the same numbers; they are read back and compared."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from leaderboards import compare_rows, make_board, to_csv, to_json, to_latex, to_markdown, to_terminal
from leaderboards.boards import Board
from leaderboards.page import to_page
from leaderboards.reference.alexnet import ALEXNET_50K, ALEXNET_CLEAN_ERROR
from leaderboards.tables import arranged, columns_of


@pytest.fixture(scope="module")
def board(tmp_path_factory: Any, new_results: Any) -> Any:
    results = new_results(tmp_path_factory.mktemp("board"))
    rng = np.random.default_rng(0)
    methods = [("source", None, "R"), ("tent", None, "A"), ("sar|x <b>[red]", None, "A"), ("selfsoup", "soup", "D")]
    methods += [("selfsoup", f"ingredient:{name}", "D") for name in ("mae", "mmcr")]
    for method, part, track in methods:
        for seed in (0, 1):
            for corruption in ("fog", "snow", None):
                results.add(
                    *(method, corruption),
                    **{"part": part, "track": track, "seed": seed, "hits": rng.random(40) < rng.random()},
                    cost={"fit_seconds": float(rng.random() * 100), "forwards": float(rng.random() * 100)},
                )
    results.add("lame", "fog", error="not finite\n| at all")
    return make_board(results.records, results.store.predictions)


def number(text: str) -> float | None:
    return float(text) if text else None


def markdown_rows(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [
        [html.unescape(re.sub(r"\\(\W|_)", r"\1", cell.strip())) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def terminal_text(board: Any, width: int, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_terminal(board, **options))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class HtmlRows(HTMLParser):
    """The texts of the cells of the first table, row by row; headings of tracks are rows of one cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = self._done = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr" and not self._done:
            self.rows.append([])
        elif tag in ("td", "th") and not self._done:
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")
        self._done = self._done or tag == "table"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data.strip("\n")


def html_rows(page: str) -> list[dict[str, str]]:
    head, *rows = HtmlRows(page).rows
    return [dict(zip(head, row, strict=True)) for row in rows if len(row) > 1]


def latex_rows(text: str) -> list[dict[str, str]]:
    """What LaTeX would set: commands undone by the definitions in its manual."""
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    lines = [line for line in lines if not line.startswith(r"\multicolumn")]
    rows = [[latex_text(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def latex_text(cell: str) -> str:
    cell = re.sub(r"^\\(?:textbf|rotatebox\{90\})\{(.*)\}$", r"\1", cell)
    cell = cell.removesuffix(r"\rlap{$^\dagger$}").removeprefix(r"\raggedright ").replace(r"\allowbreak{}", "")
    for command, meant in (
        ("$-$", "-"),
        (r"\textbar{}", "|"),
        (r"\textless{}", "<"),
        (r"\textgreater{}", ">"),
        ("--", "–"),
    ):
        cell = cell.replace(command, meant)
    return re.sub(r"\\([&%$#_{}])", r"\1", cell)


def shown(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def test_json_holds_the_whole_board_exactly(board: Any) -> None:
    read = json.loads(to_json(board))
    assert {name: read[name] for name in ("shift", "n", "level", "limit")} == {
        "shift": board.shift, "n": board.n, "level": board.level, "limit": None,
    }  # fmt: skip
    assert read["seeds"] == [0, 1]
    assert to_json(board).isascii()
    for row, again in zip(board.rows, read["rows"], strict=True):
        assert again["access"] == row.access.model_dump()
        assert again["per_corruption"] == dict(row.per_corruption)
        assert again["keys"] == list(row.keys)
        assert again["interval"] == (row.interval and {"low": row.interval.low, "high": row.interval.high})
        for name in ("rank", "method", "part", "accuracy", "clean_accuracy", "ece", "forwards", "n", "incomplete"):
            assert again[name] == getattr(row, name)


def test_csv_gives_every_number_back_exactly(board: Any) -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(board, per_corruption=True))))
    for row, again in zip(board.rows, read, strict=True):
        assert (again["method"], again["part"], again["track"]) == (row.method, row.part or "", row.track)
        assert again["rank"] == ("" if row.rank is None else str(row.rank))
        assert again["seeds"] == " ".join(map(str, row.seeds))
        assert again["access_test"] == row.access.test
        assert again["incomplete"] == (row.incomplete or "")
        for name in ("accuracy", "clean_accuracy", "ece", "fit_seconds", "forwards", "backwards", "n", "batch_size"):
            assert number(again[name]) == getattr(row, name)
        assert number(again["accuracy_low"]) == (row.interval and row.interval.low)
        assert number(again["accuracy_high"]) == (row.interval and row.interval.high)
        assert {name: number(again[f"accuracy:{name}"]) for name in board.corruptions} == row.per_corruption
    assert not any("accuracy:" in name for name in next(csv.reader(io.StringIO(to_csv(board)))))


def test_markdown_shows_the_numbers_of_the_csv(board: Any) -> None:
    exact = list(csv.DictReader(io.StringIO(to_csv(board, per_corruption=True))))
    rows = markdown_rows(to_markdown(board, per_corruption=True))
    for row, line in zip(exact, rows, strict=True):
        if row["accuracy"]:
            limits = [shown(number(row[name])) for name in ("accuracy", "accuracy_low", "accuracy_high")]
            assert line["accuracy"] == "{} [{}, {}]".format(*limits)
        else:
            assert line["accuracy"] == "incomplete"
        assert line["clean"] == shown(number(row["clean_accuracy"]))
        assert line["ECE"] == shown(number(row["ece"]))
        assert line["rank"] == (row["rank"] or "–")
        assert line["track"] == row["track"]
        assert line["fit s"] == (f"{number(row['fit_seconds']):.1f}" if row["fit_seconds"] else "–")
        assert line["forwards"] == (f"{number(row['forwards']):.1f}" if row["forwards"] else "–")
        assert line["n"] == (row["n"] or "–")
        assert line["seeds"] == str(len(row["seeds"].split()))
        for name in board.corruptions:
            assert line[name] == shown(number(row[f"accuracy:{name}"]))
    assert "fog" not in rows[0].keys() - set(board.corruptions)
    assert not set(board.corruptions) & set(markdown_rows(to_markdown(board))[0])


def test_the_page_and_latex_show_the_cells_of_markdown(board: Board) -> None:
    expected = markdown_rows(to_markdown(board))
    for row, like in zip(expected, board.rows, strict=True):
        row["method"] = like.name  # without the marks that Markdown needs
    titles = {column.label: column.title for column in columns_of(board)}
    page = html_rows(to_page([board], with_figures=False))
    for shown_rows in (page, latex_rows(to_latex(board))):
        found = [{titles[label]: text for label, text in row.items()} for row in shown_rows]
        assert len(found) == len(expected)
        assert {"rank", "method", "accuracy", "clean", "forgetting", "ECE", "forwards", "access"} <= found[0].keys()
        for row, line in zip(expected, found, strict=True):
            assert line == {title: row[title] for title in line}
        # Every column that is not there says the same in all rows, which stands in the caption or is nothing.
        for title in expected[0].keys() - found[0].keys() - {"track"}:
            assert len({row[title] for row in expected}) == 1


def test_the_terminal_shows_the_cells_of_markdown(board: Any) -> None:
    lines = terminal_text(board, 250, per_corruption=True).splitlines()
    for row in markdown_rows(to_markdown(board, per_corruption=True)):
        method = row["method"]
        titles = ("rank", "method", "track", "accuracy", "clean", "forgetting", "ECE", *board.corruptions)
        titles += ("fit s", "forwards", "backwards", "seeds", "n")
        wanted = [method if title == "method" else row[title] for title in titles]
        pattern = r"\s+".join(map(re.escape, wanted))
        assert any(re.fullmatch(rf"\s*{pattern}\s*", line) for line in lines), wanted


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_keeps_every_number(board: Any, width: int) -> None:
    text = terminal_text(board, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in board.rows:
        if row.accuracy is not None:
            assert f"{shown(row.accuracy)} [{shown(row.interval.low)}, {shown(row.interval.high)}]" in text


@pytest.mark.parametrize("width", [60, 100])
def test_columns_that_do_not_fit_continue_below_with_the_names_again(results: Any, width: int) -> None:
    names = [f"corruption_with_a_long_name_{number}" for number in range(7)]
    for number, name in enumerate(names):
        for method in ("tent", "a-method:with=a-name:that=is:longer_than-a-third=of-the-terminal"):
            results.add(method, name, hits=[True] * (10 + number) + [False] * (90 - number))
    board = make_board(results.records)
    lines = terminal_text(board, width, per_corruption=True).splitlines()
    assert max(map(len, lines)) <= width
    heads = [line for line in lines if " method " in line]
    assert len(heads) > 1
    assert [word for line in heads for word in line.split() if word in names] == list(board.corruptions)
    rows = [line for line in lines if " tent " in line]
    assert len(rows) == len(heads)
    shown = {word for line in rows for word in line.split()}
    assert {f"{10 + number:.1f}" for number in range(7)} <= shown


@pytest.mark.parametrize("render", [to_markdown, lambda board: terminal_text(board, 200)])
def test_failures_are_told_in_one_line(board: Any, render: Any) -> None:
    (note,) = [line for line in render(board).splitlines() if line.startswith("- lame: ")]
    assert note.replace("\\", "").startswith("- lame: fog at severity 5, seed 0, failed: not finite | at all (and ")


@pytest.mark.parametrize("render", [to_markdown, lambda board: " ".join(terminal_text(board, 500).split())])
def test_the_caption_says_what_is_compared(board: Any, render: Any) -> None:
    caption = (
        "imagenet-c · model resnet50.tv_in1k · protocol reset_each_shift · split disjoint · 2 corruptions at severity 5"
        " · 40 images each · 2 seeds (0, 1) · 95 % intervals · batch 64"
    )
    assert render(board).startswith(caption)


def test_limits_and_labels_are_told(results: Any) -> None:
    results.add("tent", limit=50, data={"labels_per_class": 10})
    text = to_markdown(make_board(results.records, results.store.predictions))
    assert "10 labels per class" in text
    assert "limited to 50 images: not for publication" in text


def test_without_predictions_there_is_no_interval(results: Any) -> None:
    record = results.add("tent", hits=[True] * 3 + [False])
    board = make_board([record])
    (line,) = markdown_rows(to_markdown(board))
    assert (line["accuracy"], line["rank"]) == ("75.0", "–")
    assert json.loads(to_json(board))["rows"][0]["interval"] is None


def test_access_is_told_in_words(board: Any) -> None:
    words = {row["method"]: row["access"] for row in markdown_rows(to_markdown(board))}
    assert words["source"] == "no test data, fixed"
    assert words["tent"] == "stream, online, norm backprop"
    assert words["selfsoup (soup)"] == "pool, labelled source, offline, full backprop"
    assert "D: pool, labelled source, offline, full backprop (selfsoup)" in terminal_text(board, 200)


@pytest.mark.parametrize(
    ("title", "largest_first"), [("ECE", False), ("clean", True), ("forwards", False), ("fog", True)]
)
def test_rows_are_sorted_within_their_tracks(board: Board, title: str, largest_first: bool) -> None:
    rows = markdown_rows(to_markdown(arranged(board, title), columns=["track", title]))
    assert [row["track"] for row in rows] == sorted((row["track"] for row in rows), key="RABCDEF".index)
    for track in "RAD":
        values = [float(row[title]) for row in rows if row["track"] == track and row[title] != "–"]
        assert values == sorted(values, reverse=largest_first)
        assert "–" not in [row[title] for row in rows if row["track"] == track][: len(values)]
    names = [row.name for row in arranged(board, "method").rows if row.track == "A"]
    assert names == sorted(names)


def test_chosen_columns_stand_in_the_chosen_order(board: Board) -> None:
    chosen = ["ECE", "method", "snow"]
    everything = markdown_rows(to_markdown(board, per_corruption=True))
    expected = [{title: row[title] for title in chosen} for row in everything]
    assert markdown_rows(to_markdown(board, columns=chosen)) == expected
    assert list(latex_rows(to_latex(board, columns=chosen))[0]) == chosen
    assert chosen in [line.split() for line in terminal_text(board, 250, columns=chosen).splitlines()]
    with pytest.raises(KeyError):
        arranged(board, "charm")


def test_mce_stands_on_boards_that_have_it(results: Any) -> None:
    for corruption in ALEXNET_50K:
        for severity in range(1, 6):
            results.add("tent", corruption, severity=severity, hits=hits_of(0.6))
    (row,) = markdown_rows(to_markdown(make_board(results.records)))
    assert row["mCE"] == f"{100 * np.mean([0.4 / error for error in ALEXNET_50K.values()]):.1f}"
    assert "rel. mCE" not in row
    results.add("tent", None, hits=hits_of(0.8))
    (row,) = markdown_rows(to_markdown(make_board(results.records)))
    gaps = [error - ALEXNET_CLEAN_ERROR for error in ALEXNET_50K.values()]
    assert row["rel. mCE"] == f"{100 * np.mean([0.2 / gap for gap in gaps]):.1f}"
    some = make_board([record for record in results.records if record.severity in (0, 5)])
    assert "mCE" not in markdown_rows(to_markdown(some))[0]
    assert some.rows[0].mce is None


def hits_of(accuracy: float) -> list[bool]:
    return [number < round(50 * accuracy) for number in range(50)]


def contested(results: Any) -> Board:
    """Track A: two methods too near to tell apart and one far below; track B: one far above the other; track D: one."""
    for method, track, share in (
        *(("near", "A", 150), ("nearer", "A", 152), ("far", "A", 40)),
        *(("above", "B", 170), ("below", "B", 60), ("alone", "D", 100)),
    ):
        for corruption in ("fog", "snow"):
            # Shifted, so that images on which the methods differ balance.
            hits = np.roll(np.arange(200) < share, 0 if track == "B" else share)
            results.add(method, corruption, track=track, hits=hits)
    return make_board(results.records, results.store.predictions)


def test_bold_in_latex_is_a_finding_and_a_dagger_is_none(results: Any) -> None:
    board = contested(results)
    text = to_latex(board, columns="paper")
    cells = {line.split(" & ")[0]: line.split(" & ")[1] for line in text.splitlines() if line.count(" & ") == 3}
    assert {name for name, cell in cells.items() if "textbf" in cell} == {"above"}
    assert {name for name, cell in cells.items() if "dagger" in cell} == {"near", "nearer"}
    # The rule again, from the project's own comparison of two rows.
    for track, best in (("A", "nearer"), ("B", "above")):
        rows = [row for row in board.rows if row.track == track]
        differ = {
            row.method: compare_rows(results.records, best, row.method, results.store.predictions).overall.difference.p
            < 0.05 / len(rows)
            for row in rows
            if row.method != best
        }
        assert ("textbf" in cells[best]) == all(differ.values())
        assert {name for name, found in differ.items() if not found} == {
            name for name in differ if "dagger" in cells[name]
        }
    assert "Bold: significantly better than all other methods of its track" in text
    without = to_latex(make_board(results.records), columns="paper")
    assert "Bold" not in without
    assert "textbf" not in without
    assert "textbf" not in to_latex(board, columns=["method", "clean"])


def test_a_row_that_loses_to_another_may_still_be_as_good_as_the_best(results: Any) -> None:
    images = np.arange(400)
    second = images % 50 < 29
    hits = {
        "best": np.random.default_rng(0).permutation(images) < 240,
        "second": second,
        "third": second & (images % 50 > 1),  # differs on few images, always for the worse
    }
    for method, own in hits.items():
        results.add(method, "fog", hits=own)
    board = make_board(results.records, results.store.predictions)
    assert {row.method: row.rank for row in board.rows} == {"best": 1, "second": 1, "third": 2}
    assert all(row.among_best for row in board.rows)
    assert to_latex(board).count("rlap") == 3
    assert all(row.among_best is None for row in make_board(results.records).rows)


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex is installed; apt-get install texlive-latex-recommended"
)
@pytest.mark.parametrize("columns", ["paper", "full", ["method", "accuracy"]])
@pytest.mark.parametrize("per_corruption", [False, True])
def test_latex_fits(results: Any, tmp_path: Path, columns: Any, per_corruption: bool) -> None:
    for corruption in ("gaussian_noise", "jpeg_compression", "elastic_transform", "a_b%c&d#e~f^g\\h{i}"):
        for part in (None, "ingredient:mae:rate=2e-3:mask_ratio=0.5", "ingredient:$x_1$^2"):
            for method in ("self_souping+a_rather_long_name", "[b]", "c–d"):
                results.add(method, corruption, part=part, track="D")
    board = make_board(results.records, results.store.predictions)
    head = r"""\documentclass[10pt,twocolumn]{article}\usepackage{booktabs,graphicx}
    \setlength{\textwidth}{6.875in}\setlength{\columnsep}{0.3125in}\begin{document}"""
    table = to_latex(board, columns=columns, per_corruption=per_corruption)
    (tmp_path / "t.tex").write_text(f"{head}{table}\\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert ("table*" in table) == (columns != "paper" or per_corruption)


def test_presets_are_columns(board: Board) -> None:
    everything = markdown_rows(to_markdown(board))
    paper = ["method", "track", "accuracy", "clean", "ECE"]
    assert list(markdown_rows(to_markdown(board, columns="paper"))[0]) == paper
    assert markdown_rows(to_markdown(board, columns="full")) == everything
    more = markdown_rows(to_markdown(board, columns="paper", per_corruption=True))
    assert list(more[0]) == [*paper, *board.corruptions]
    with pytest.raises(KeyError):
        to_markdown(board, columns="papers")


def test_pandas_holds_the_numbers_of_the_csv(board: Board) -> None:
    frame = board.to_pandas()
    assert list(frame["method"]) == [row.method for row in board.rows]
    read = pd.read_csv(io.StringIO(to_csv(board, per_corruption=True)))
    assert list(frame.columns) == list(read.columns)
    numbers = [name for name in read.columns if frame[name].dtype == float]
    assert {"rank", "accuracy", "accuracy_low", "ece", "accuracy:fog", "n", "batch_size"} <= set(numbers)
    assert np.array_equal(frame[numbers].to_numpy(), read[numbers].to_numpy(dtype=float), equal_nan=True)


def test_a_notebook_shows_the_cells_of_the_page(board: Board) -> None:
    shown = board._repr_html_()
    titles = {column.label: column.title for column in columns_of(board)}
    expected = markdown_rows(to_markdown(board))
    rows = html_rows(shown)
    assert len(rows) == len(expected)
    for like, row, line in zip(board.rows, expected, rows, strict=True):
        assert {titles[label]: text for label, text in line.items()} == {
            titles[label]: like.name if label == "method" else row[titles[label]] for label in line
        }
    assert "sar|x &lt;b&gt;[red]" in shown
    assert "<b>" not in shown
    assert "<style" not in shown


def test_a_board_draws_what_it_has(board: Board) -> None:
    figure = board.plot("cost-accuracy")
    assert figure.axes[0].get_ylabel() == "accuracy in %"
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert len(board.plot().axes[0].texts) == 2 * sum(row.accuracy is not None for row in board.rows)
    with pytest.raises(ValueError, match="it has those for methods-by-track, corruption-heatmap, cost-accuracy"):
        board.plot("severity-curves")
    with pytest.raises(ValueError, match="take one of methods-by-track"):
        board.plot("pie")


def test_a_row_says_who_has_confirmed_its_data(results: Any) -> None:
    keys = [results.add(method, name).key for method in ("tent", "sar") for name in ("fog", "snow")]
    board = make_board(results.records)
    told = dict(zip(keys, ("confirmed by 3", "single source", "known data", "known data"), strict=True))
    rows = {row["method"]: row["data"] for row in html_rows(to_page([board], with_figures=False, confirmed=told))}
    assert rows == {"tent": "single source", "sar": "known data"}
    page = to_page([board], with_figures=False, confirmed=dict.fromkeys(keys, "confirmed by 2"))
    assert "Data of all rows: confirmed by 2 (as many other submitters read the same images and labels)." in page
    assert "data" not in html_rows(page)[0]
    some = to_page([board], with_figures=False, confirmed=dict(list(told.items())[2:]))
    assert {row["method"]: row["data"] for row in html_rows(some)} == {"tent": "–", "sar": "known data"}
    assert "data" not in html_rows(to_page([board], with_figures=False))[0]


@pytest.mark.parametrize("width", [100, 80])
def test_a_board_with_long_names_is_one_table_on_usual_terminals(results: Any, width: int) -> None:
    """Every number of the columns that stay is whole, names fold, and a line is never wider than the terminal."""
    results.add("source", track="R")
    for part in ("soup", "mean", "ingredient:mae:rate=2e-3:mask_ratio=0.5"):
        results.add("selfsoup", part=part, track="D")
    board = make_board(results.records, results.store.predictions)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(to_terminal(board))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("method" in line and "accuracy" in line for line in lines) == 1
    for row in board.rows:
        assert row.interval is not None
        numbers = f"{100 * (row.accuracy or 0):.1f} [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"
        assert any(numbers in line and f"{100 * (row.clean_accuracy or 0):.1f}" in line for line in lines)
