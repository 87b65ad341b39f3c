"""Tables in the terminal and in a pipe."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.console import table

COLUMNS = ["name", "what it does"]
ROWS = [["tent", "entropy minimisation over the affine parameters of normalisation layers"], ["bn", ""]]


def test_nothing_wraps_in_a_pipe() -> None:
    lines = table(COLUMNS, ROWS).splitlines()
    assert lines == ["name  what it does", f"tent  {ROWS[0][1]}", "bn"]


@given(st.integers(12, 90))
def test_every_word_is_kept_and_nothing_is_wider_than_a_terminal(width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
        lines = table(COLUMNS, ROWS).splitlines()
    assert max(map(len, lines)) <= width
    letters = sorted("".join("".join(cells) for cells in [COLUMNS, *ROWS]).replace(" ", ""))
    assert sorted("".join(lines).replace(" ", "")) == letters
    if width >= 30:
        assert [line[:4].strip() for line in lines if line[:4].strip()] == ["name", "tent", "bn"]


def test_a_terminal_narrower_than_the_columns_still_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((1, 24)))
    assert table(["ab", "c"], [["1", "2"]]).split() == ["a", "c", "b", "1", "2"]
