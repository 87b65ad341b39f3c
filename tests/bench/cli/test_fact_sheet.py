"""What `bench show` prints: short, without repetition, within the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import pytest

from bench.cli.catalogue import _LISTS, _SHOWN, print_one
from bench.cli.fact_sheet import as_text
from bench.settings.methods import described, literal_of
from methods import METHODS

Shown = pytest.CaptureFixture[str]


def everything() -> Iterator[tuple[str, str]]:
    for kind in _SHOWN:
        for row in _LISTS[f"{kind}s"]():
            name = str(next(iter(row.values())))
            if ".py:" not in name:
                yield kind, name


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))


def test_everything_fits_a_terminal_and_nothing_is_lost(
    capsys: Shown, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name in everything():
        print_one(kind, name, as_json=False)
        plain = capsys.readouterr().out
        with monkeypatch.context() as terminal:
            terminal.setattr(sys.stdout, "isatty", lambda: True, raising=False)
            print_one(kind, name, as_json=False)
        wrapped = capsys.readouterr().out
        assert wrapped.split() == plain.split(), (kind, name)
        too_long = [line for line in wrapped.splitlines() if len(line) > 80 and " " in line.strip()]
        assert not too_long, (kind, name)


def test_no_method_repeats_itself(capsys: Shown) -> None:
    """Neither a line nor the options of two shifts, budgets or norms; and no class of options introduces itself."""
    for name in METHODS:
        print_one("method", name, as_json=False)
        text = capsys.readouterr().out
        lines = [line for line in text.splitlines() if len(line) > 30 and line[:5].strip()]
        assert len(set(lines)) == len(lines), name
        assert "\nOptions" not in text
        assert "methods.training.finetune" not in text
        table = text.partition("options in force")[2].partition("\n\n")[0].replace("\n        ", " ")
        said = [line.partition(": ")[2] for line in table.splitlines() if ": " in line]
        assert len(set(said)) == len(said), name
        assert len(table) < 2_000, name


def test_norms_that_share_options_stand_together(capsys: Shown) -> None:
    print_one("method", "eata", as_json=False)
    told = capsys.readouterr().out
    assert "  imagenet-bn: the defaults\n" in told
    assert "  cifar-ln, digits-ln: epsilon = 0.4, beta = 1.0 (of cifar-bn); lr = 0.001 (of imagenet-ln, times" in told
    assert literal_of(METHODS["eata"], "presets", {})["cifar-bn"]["epsilon"] == 0.4


def test_a_rate_that_follows_the_stock_is_told_although_it_is_the_default(capsys: Shown) -> None:
    print_one("method", "source", "folder:x", as_json=False)
    told = capsys.readouterr().out.partition("options in force")[2].partition("\n\n")[0]
    assert told.splitlines()[1:] == ["  folder:x: lr = 0.001 (default), less for larger stocks: 0.0001 for ViT-B"]


def test_facts_of_every_kind() -> None:
    facts = {
        "name": "x",
        "flag": False,
        "number": 0,
        "nothing": None,
        "short": ["a", "b"],
        "sentences": ["One.", "Two is longer."],
        "table": {"row": (1, (2, 3)), "set": {"key": ["a", "b"]}},
        "empty": {},
    }
    assert as_text(facts).splitlines() == [
        "name: x",
        "flag: no",
        "short: a, b",
        "sentences:",
        "  One.",
        "  Two is longer.",
        "table:",
        "  row: 1, (2, 3)",
        "  set: key = [a, b]",
        "empty:",
        "  none",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_its_line(name: str) -> None:
    """`name: what it does` at the start of a line, or among names that share a line; once."""
    said = described(METHODS[name])
    heads = [line.partition(": ")[0].split(", ") for line in said.about_options.splitlines() if ": " in line]
    explained = [each for head in heads for each in head if each in {option.name for option in said.options}]
    assert sorted(set(explained)) == sorted(option.name for option in said.options)
