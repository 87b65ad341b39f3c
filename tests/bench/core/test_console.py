"""Tables in the terminal and in a pipe."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.console import accept_any_text, new_console, table

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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@given(text=st.text(st.characters(exclude_characters="–—−─━·…×±†≥")))
def test_letters_that_an_encoding_lacks_are_escaped_as_in_json(encoding: str, text: str) -> None:
    raw = written(json.dumps(text, ensure_ascii=False), encoding)
    assert json.loads(raw.decode(encoding)) == json.loads(json.dumps(text))


def test_signs_become_similar_ones() -> None:
    assert written("a · 3 – 4 ± 1 …", "ascii") == b"a | 3 - 4 +/- 1 ..."
    assert written("a · 3 – 4 ± 1 …", "cp1252").decode("cp1252") == "a · 3 – 4 ± 1 …"


def written(text: str, encoding: str) -> bytes:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        accept_any_text()
    stream.write(text)
    stream.flush()
    return raw.getvalue()


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "cp1252", "utf-8"))]
)
def test_a_board_reaches_every_terminal(encoding: str) -> None:
    results = Path(__file__).parents[3] / "leaderboards" / "results" / "digits-c-demo.jsonl"
    command = [sys.executable, "-m", "bench", "leaderboard", "--from", str(results), "--columns", "method,mCE"]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert "supervised_soup" in done.stdout.decode(encoding)


@pytest.mark.parametrize(("value", "escapes"), [("1", False), ("", True)])
def test_no_color_leaves_out_escape_sequences(value: str, escapes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    new_console(file=out, force_terminal=True).print("[bold red]loud[/]")
    assert ("\x1b" in out.getvalue()) == escapes
