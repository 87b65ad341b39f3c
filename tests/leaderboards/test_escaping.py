"""Texts that want to be more than text, in every format: read again by a parser of that format."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leaderboards import make_board, to_csv, to_json, to_latex, to_markdown, to_terminal
from leaderboards.escaping import csv_cell, markdown, visible
from leaderboards.page import to_page

FORMULA = "=+-@＝＋－＠"
HIDDEN = ["\u202e", "\u2066", "\u200b", "\u200e", "\ufeff", "\x85", "\x9b2J", "\x1b[2J", "\U000e0041", "\u2028"]
NAMES = [
    "![x](https://example.com/a.png)", "[here](https://example.com)", "https://example.com/x", "www.example.com",
    "x;=HYPERLINK(1)", "x\u200b;＝1+1", "a|b", "<img src=x>", "&lt;b&gt;", "**bold** `code` $x$", "x_ _y",
    'x;"=1"', "a ~~b~~", "\u05d0\u05d1", "1. x", "x\\|y",
]  # fmt: skip


@pytest.fixture
def board(results: Any) -> Any:
    """A board whose rows, model, corruption and error are such names, as a user's own run could hold them."""
    plain = [visible(name).replace("\\u", "u") for name in NAMES]
    for number, name in enumerate(plain):
        results.add(name, "fog", part=NAMES[number] if number % 2 else None, model="[m](http://x.y)", seed=0)
    results.add("lame", "fog", error="[e](http://x.y) \u202e", model="[m](http://x.y)")
    return make_board(results.records, results.store.predictions)


def test_markdown_is_text_again(board: Any) -> None:
    text = to_markdown(board)
    assert not re.search(r"(?<!\\)!?(?<!\\)\[[^\]\\]*\]\(", text)
    assert "://" not in text
    assert not re.search(r"www\.", text)
    assert not re.search(r"<[a-z]", text)
    assert all(unicodedata.category(character)[0] != "C" for character in text.replace("\n", ""))


@pytest.mark.parametrize(
    "name", ["shot_im", "come_sar", "ingredient:mae:rate=2e-3", "63.1 [61.0, 65.2]", "−0.3 [−1, 2]"]
)
def test_ordinary_names_and_intervals_stay_readable(name: str) -> None:
    assert markdown(name) == name
    assert csv_cell(name) == name


@given(st.text(max_size=40))
def test_markdown_has_no_unescaped_mark(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown
    if re.search(r"[^\W\d]|[(]", text):
        bare = re.sub(r"\\.|&[a-z#0-9]+;", "", shown)
        assert not re.search(r"[`*\[\]~|<>&$#]", bare)


@given(st.text(alphabet=[*FORMULA, ";", ",", "\t", '"', " ", "x", "1"], max_size=12))
def test_no_cell_of_a_spreadsheet_computes(text: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerow([csv_cell(text)])
    for separator in (",", ";", "\t", "|"):
        for line in out.getvalue().splitlines():
            for cell in line.split(separator):  # a reader that knows no quotes
                assert not cell.strip(' "').startswith(tuple(FORMULA))


def test_csv_of_a_board(board: Any) -> None:
    for row in csv.reader(io.StringIO(to_csv(board))):
        for cell in row:
            for part in re.split(r"[;|\t]", cell):
                numeric = re.fullmatch(r"-?\d[\d.e-]*", part)
                assert numeric or not part.strip(' "').startswith(tuple(FORMULA))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_nothing_hides_in_any_format(board: Any, hidden: str) -> None:
    from dataclasses import replace

    rows = tuple(replace(row, method=f"a{hidden}b") for row in board.rows[:1])
    spoiled = replace(board, rows=rows, shift=f"s{hidden}")
    console = Console(width=300, file=io.StringIO(), color_system=None)
    console.print(to_terminal(spoiled))
    shown = [to_markdown(spoiled), to_csv(spoiled), to_latex(spoiled), to_json(spoiled)]
    for text in (*shown, console.file.getvalue(), to_page([spoiled], title=f"t{hidden}", with_figures=False)):  # type: ignore[attr-defined]
        assert not any(
            unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") and c not in "\n\t" for c in text
        )
    assert json.loads(to_json(spoiled))["shift"] == f"s{hidden}"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]


def test_the_page_links_to_nothing_of_a_name(board: Any) -> None:
    tags = Tags(to_page([board], title="[x](http://x.y)", with_figures=False))
    assert tags.images == 0
    assert not [link for link in tags.links if "x.y" in link or "example.com" in link]
