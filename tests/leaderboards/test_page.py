"""The page and the figures of a board without a browser: numbers, escaping, sameness, size."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboards.boards import TRACKS, Board, make_board
from leaderboards.figures import apart, figures, methods_by_track, pareto_front, soup_anatomy, to_bytes
from leaderboards.heat import table_of
from leaderboards.html import fragment
from leaderboards.matrix_page import front
from leaderboards.page import row_id, to_page
from leaderboards.reference import reference_rows
from leaderboards.tables import to_csv, to_json, to_latex, to_markdown

NASTY = "<script>alert(1)</script>\"'&{{ 7*7 }}"


@pytest.fixture
def board(results: Any) -> Board:
    for method, track, share in (("source", "R", 0.5), ("tent", "A", 0.7), ("sar", "A", 0.6)):
        for corruption in (None, "fog", "snow"):
            for severity in (1.0, 5.0) if corruption else (0.0,):
                hits = [number < 50 * share for number in range(50)]
                results.add(method, corruption, track=track, hits=hits, severity=severity)
    return make_board(results.records, results.store.predictions)


def details(page: str) -> Any:
    packed = re.search(r'<script type="application/octet-stream" id="details">([^<]*)</script>', page)
    assert packed is not None
    return json.loads(zlib.decompress(base64.b64decode(packed[1])))


def test_every_condition_is_in_the_details_with_its_record(board: Board) -> None:
    (found,) = details(to_page([board]))
    for row, told in zip(board.rows, found["rows"], strict=True):
        assert [(cell.corruption, cell.severity) for cell in row.cells] == [(c, s) for c, s, *_ in told]
        assert [f"{100 * (cell.accuracy or 0):.1f}" for cell in row.cells] == [text for _, _, text, *_ in told]
        assert [list(cell.keys) for cell in row.cells] == [[key for key, *_ in places] for *_, places in told]


def test_what_a_record_says_is_text_and_never_markup(results: Any) -> None:
    for corruption in (None, "fog"):
        results.add(NASTY, corruption, shift=NASTY, model=NASTY, protocol=NASTY, track="A")
    board = make_board(results.records, results.store.predictions)
    page = to_page([board], title=NASTY, links=[("index.html", NASTY)])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert page.count("<script") == 2
    assert not re.search(r'(src|href)="(https?:|//|javascript:)', page)
    for figure in figures(board).values():
        assert b"<script" not in to_bytes(figure, "svg")


def test_equal_boards_give_equal_bytes(board: Board) -> None:
    assert to_page([board]) == to_page([board])
    first, second = ({name: to_bytes(f, "svg") for name, f in figures(board).items()} for _ in range(2))
    assert first == second
    assert set(first) == {"methods-by-track", "severity-curves", "corruption-heatmap", "cost-accuracy"}


def test_no_more_cost_for_no_more_accuracy_on_the_front(board: Board) -> None:
    front = pareto_front(board.rows)
    accuracies = [row.accuracy or 0 for row in front]
    assert accuracies == sorted(accuracies)
    assert all(
        any((other.accuracy or 0) >= (row.accuracy or 0) for other in front) for row in board.rows if row.accuracy
    )


@pytest.mark.parametrize(("heights", "places"), [
    ([5.0, 5.0, 5.0], [4, 5, 6]),
    ([1.0, 9.0], [1, 9]),
    ([3.0, 1.0, 3.0], [2.5, 1, 3.5]),
    ([2.0], [2]),
])  # fmt: skip
def test_names_of_points_keep_apart_and_near(heights: list[float], places: list[float]) -> None:
    assert apart(heights, 1) == pytest.approx(places)


def test_a_soup_is_shown_with_all_that_it_is_made_of(results: Any) -> None:
    results.add("source", track="R")
    for part in ("soup", "soup:greedy", "soup:wise", "ingredient:mae", "ingredient:mmcr"):
        results.add("selfsoup", part=part, track="D")
    figure = soup_anatomy(make_board(results.records, results.store.predictions))
    assert figure is not None
    figure.canvas.draw()
    told = [label.get_text().removesuffix(" (best here)") for label in figure.axes[0].get_yticklabels()]
    assert sorted(told) == sorted(
        ["source (stock)", "mae", "mmcr", "mean of the ingredients", "the soup", "greedy soup", "wise soup"]
    )


def test_methods_stand_in_their_track_with_their_intervals_best_first(board: Board) -> None:
    figure = methods_by_track(board)
    assert figure is not None
    axes = figure.axes[0]
    rows = {row.name: row for row in board.rows if row.main and row.accuracy is not None}
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(name for name in names if name) == sorted(rows)
    tracks: dict[str, list[float]] = {}
    for name in filter(None, names):
        tracks.setdefault(rows[name].track, []).append(rows[name].accuracy or 0)
    assert list(tracks) == sorted(tracks, key=TRACKS.index)
    assert all(values == sorted(values, reverse=True) for values in tracks.values())
    assert [text.get_text()[0] for text in axes.texts] == list(tracks)
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    bars = {line.get_ydata()[0]: list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
    for height, name in enumerate(names):
        if name:
            assert points[height] == pytest.approx(100 * (rows[name].accuracy or 0))
            interval = rows[name].interval
            assert interval is not None
            assert bars[height] == pytest.approx([100 * interval.low, 100 * interval.high])


def test_numbers_of_papers_stand_apart_and_are_not_ranked(results: Any) -> None:
    for corruption in ("fog", "snow"):
        results.add("tent", corruption, model="resnet50", protocol="continual")
    board = make_board(results.records, results.store.predictions)
    ranked, published = re.findall(r"<table.*?</table>", to_page([board], with_figures=False), re.DOTALL)
    known = reference_rows("imagenet-c", "resnet50", "continual")
    assert len(known) > 10
    assert "Published elsewhere: not ranked" in published
    for row in known:
        assert f'<th scope="row">{row.method}</th><td class="number">{100 * row.accuracy:.1f}</td>' in published
        assert f'href="{row.url}"' in published
    assert len(re.findall("<tr id=.* data-row", ranked)) == 1
    assert "data-row" not in published
    other = make_board([record.model_copy(update={"severity": 3.0}) for record in results.records])
    assert "Published elsewhere" not in to_page([other], with_figures=False)


def test_a_page_of_nothing_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="at least one board"):
        to_page([])


def test_renderers_keep_their_form(board: Board, snapshot: Any) -> None:
    assert to_markdown(board) == snapshot(name="markdown")
    assert to_csv(board) == snapshot(name="csv")
    assert to_latex(board) == snapshot(name="latex")
    assert to_json(board) == snapshot(name="json")
    (table,) = re.findall(r"<table.*?</table>", to_page([board], with_figures=False), re.DOTALL)
    assert table == snapshot(name="html")


def test_the_site_has_a_page_for_every_board_and_every_record(submission: Path, tmp_path: Path) -> None:
    from leaderboards.bundle import read_bundle
    from leaderboards.site import build_site

    bundle = read_bundle(submission)
    pages = build_site({submission.name: bundle}, tmp_path / "site")
    assert pages[0].name == "index.html"
    assert len(pages) == 4
    site = tmp_path / "site"
    assert {path.stem for path in (site / "records").iterdir()} == {record.key for record in bundle.records}
    for page in pages:
        text = page.read_text()
        for target in re.findall(r'href="([^"#]+)"', text):
            assert target.startswith(("https://", "data:")) or (site / target).is_file(), (
                f"{page.name} leads to {target}"
            )
    assert read_bundle(site / "results" / submission.name).records == bundle.records
    # Numbers of papers stand on the page about the board, never among its ranked rows.
    assert "Published elsewhere" not in pages[1].read_text()


def test_the_matrix_holds_methods_by_track_and_says_what_is_missing(results: Any, tmp_path: Path) -> None:
    for part in ("soup", "ingredient:mae"):
        results.add("selfsoup", part=part, track="D")
    results.add("tent", hits=[True] * 30 + [False] * 20)
    results.add("sar", error="not finite")
    one = make_board(results.records)
    tent = [record for record in results.records if record.method == "tent"]
    other = make_board([record.model_copy(update={"shift": "a-c", "method": "eta"}) for record in tent])
    made = front([("one.html", one), ("other.html", other)])
    assert made["over"] == [("a-c", 1), ("imagenet-c", 1)]
    rows = [(group["track"], row) for group in made["groups"] for row in group["rows"]]
    assert [(track, row["name"]) for track, row in rows] == [
        ("A", "eta"),
        ("A", "tent"),
        ("A", "sar"),
        ("D", "selfsoup"),
    ]
    told = {row["name"]: [cell["row"] and cell["row"].accuracy for cell in row["cells"]] for _, row in rows}
    assert told["eta"] == [0.6, None]
    assert told["tent"] == [None, 0.6]
    best = [cell["best"] for _, row in rows for cell in row["cells"]]
    assert best == [True, False, False, True, False, False, False, True]
    by_name = {row["name"]: row["cells"] for _, row in rows}
    assert by_name["sar"][1]["row"] is not None
    assert by_name["sar"][0]["row"] is None
    addresses = {name: [cell["address"] for cell in cells] for name, cells in by_name.items()}
    tent_row = next(row for row in one.rows if row.method == "tent")
    assert addresses["tent"] == ["", f"one.html#{row_id(one, tent_row)}"]


@given(st.lists(st.tuples(st.text(), st.text()), unique=True, max_size=30))
def test_ids_differ_where_texts_do_and_hold_nothing_that_needs_quoting(pairs: list[tuple[str, str]]) -> None:
    made = [fragment(*pair) for pair in [*pairs, ("a b", "c"), ("a-b", "c"), ("a", "b-c"), ("a:b", "c")]]
    assert len(set(made)) == len({*pairs, ("a b", "c"), ("a-b", "c"), ("a", "b-c"), ("a:b", "c")})
    assert all(re.fullmatch(r"[A-Za-z0-9_.+:-]+", each) for each in made)
    assert fragment("tent", "ingredient") == "tent:ingredient"


def test_a_number_in_the_heat_map_is_that_of_the_board(board: Board) -> None:
    heat = table_of(board)
    assert heat is not None
    assert heat.columns == board.corruptions
    assert (heat.low, heat.high) == (50, 70)
    for row, shown in zip(board.rows, heat.rows, strict=True):
        assert [cell.text for cell in shown.cells] == [f"{100 * (v or 0):.0f}" for v in row.per_corruption.values()]
    assert {cell.text: cell.colour for row in heat.rows for cell in row.cells} == {"50": "h0", "60": "h16", "70": "h31"}
    gap = dataclasses.replace(board.rows[0], per_corruption={board.corruptions[0]: None, board.corruptions[1]: 0.55})
    partial = table_of(dataclasses.replace(board, rows=(gap,)))
    assert partial is not None
    missing, there = partial.rows[0].cells
    assert (missing.text, missing.colour, there.text) == ("–", "missing", "55")


def test_addresses_stay_and_are_unique_on_a_page(board: Board) -> None:
    more = dataclasses.replace(board, severities=(*board.severities, 3.0), seeds=(0, 1))
    assert [row_id(board, row) for row in board.rows] == [row_id(more, row) for row in more.rows]
    ids = re.findall(r' id="([^"]+)"', to_page([board, more], with_figures=False))
    assert len(ids) == len(set(ids))
    assert {row_id(board, row) for row in board.rows} < set(ids)
