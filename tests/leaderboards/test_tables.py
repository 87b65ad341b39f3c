"""Every way of showing a board says the same numbers; they are read back and compared."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from leaderboards import make_board, to_csv, to_json, to_latex, to_markdown, to_terminal
from leaderboards.boards import Board
from leaderboards.page import to_page
from leaderboards.reference.alexnet import ALEXNET_50K, ALEXNET_CLEAN_ERROR
from leaderboards.tables import arranged


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
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
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
    rows = [[latex_text(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def latex_text(cell: str) -> str:
    cell = re.sub(r"^\\textbf\{(.*)\}$", r"\1", cell)
    for command, meant in ((r"\textbar{}", "|"), (r"\textless{}", "<"), (r"\textgreater{}", ">"), ("--", "–")):
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
    for row in expected:
        row["method"] = row["method"].replace("\\|", "|").replace("&lt;", "<")
    assert latex_rows(to_latex(board)) == expected
    page = html_rows(to_page([board], with_figures=False))
    assert len(page) == len(expected)
    assert {"rank", "method", "accuracy", "clean", "forgetting", "ECE", "forwards", "access"} <= page[0].keys()
    for row, line in zip(expected, page, strict=True):
        assert line == {title: row[title] for title in line}
    # Every column that is not on the page says the same in all rows, which stands in the caption or is nothing.
    for title in expected[0].keys() - page[0].keys() - {"track"}:
        assert len({row[title] for row in expected}) == 1


def test_the_terminal_shows_the_cells_of_markdown(board: Any) -> None:
    lines = terminal_text(board, 250, per_corruption=True).splitlines()
    for row in markdown_rows(to_markdown(board, per_corruption=True)):
        method = row["method"].replace("\\|", "|").replace("&lt;", "<")
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
    assert [row["track"] for row in rows] == sorted((row["track"] for row in rows), key="RABCD".index)
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
