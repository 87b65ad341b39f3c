"""What the README shows is what works: its method runs, its commands parse, its names exist."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.runs.run import Outcome
from bench.settings.methods import parse_method, parse_setting
from bench.settings.reproductions import cards
from bench.settings.run_spec import make_spec, read_run_file
from bench.shifts import SHIFTS, find_row
from methods import METHODS

HOME = Path(__file__).resolve().parents[2]
README = (HOME / "README.md").read_text()
Quick = Callable[..., Outcome]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_example_method_is_short_and_runs(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    source = next(block for block in blocks("python") if "class InfoMax" in block)
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    file = tmp_path / "infomax.py"
    file.write_text(source)
    outcome = run_quick(settings, method=f"source,{file}:InfoMax", jobs=2)
    assert outcome.exit_code == 0
    assert {row.method for row in outcome.board().rows} == {"source", "infomax.py:InfoMax"}


@pytest.mark.parametrize(
    "command", [line for block in blocks("sh") for line in block.splitlines() if "bench run" in line]
)
def test_commands_name_things_that_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    given = dict(itertools.pairwise(words))
    if "--demo" in words:
        return
    if (file := given["run"]).endswith(".toml"):
        make_spec(read_run_file(HOME / file))
        return
    for method in given["--method"].split(","):
        if ".py:" not in method:
            parse_method(method)
    assert find_row(given["--shift"])
    if "--set" in given:
        parse_setting(given["--set"])


def test_the_python_example_uses_what_is_exported() -> None:
    import bench

    source = next(block for block in blocks("python") if "RunSpec" in block)
    compile(source, "README.md", "exec")
    for name in re.findall(r"^from bench import (.*)$", source, re.M)[0].split(","):
        assert getattr(bench, name.strip())
    spec = bench.RunSpec(method="source,tent", shift="digits-c")
    assert spec.method == ("source", "tent")


def test_the_page_is_short_and_its_code_narrow() -> None:
    assert len(README.splitlines()) <= 200
    shown = [line for _, block in re.findall(r"```(\w+)\n(.*?)```", README, re.S) for line in block.splitlines()]
    assert max(map(len, shown)) <= 130
    board = re.search(r"<!-- demo:start -->.*?```text\n(.*?)```", README, re.S)
    assert board is not None
    assert max(map(len, board[1].splitlines())) <= 100


def test_examples_on_digits_say_at_which_severity() -> None:
    found = [line for line in README.splitlines() if re.search(r"--shift digits-c|shift=\"digits-c", line)]
    assert len(found) >= 4
    assert all(re.search(r"--severity \d|severity=\d", line) for line in found)


def test_the_table_has_every_method_and_every_shift_once() -> None:
    """Cells that name a card are right: that card exists, and is about that method and data."""
    section = README[README.index("## Methods and shifts") : README.index("## What is compared")]
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| ") and not line.startswith("| methods")
    ]
    named = [(name.strip(" *"), row) for row in rows for name in row[0].split(",")]
    assert sorted(name for name, _ in named) == sorted(METHODS)
    for name, (_, tracks, *cells) in named:
        assert METHODS[name].access.track in tracks.split(", "), name
        carded = {card.run["shift"] for card in cards().values() if name in {each.method for each in card.published}}
        for cell, shift in zip(cells[1:], ("cifar10-c", "imagenet-c"), strict=True):
            assert ("card" in cell) == any(each.startswith(shift) for each in carded), (name, shift)
    shifts = set(re.findall(r"[\w-]+", section))
    assert {"folder:PATH", "hf:REPO"} <= set(re.findall(r"[\w:]+", section))
    assert not {row.name for row in SHIFTS.values()} - shifts - {"digits-c", "cifar10-c", "imagenet-c"}


def test_what_the_table_calls_measured_is_on_the_page_it_links_to() -> None:
    for line in README.splitlines():
        for page in re.findall(r"\[measured\]\(([^)#]+)", line):
            text = (HOME / page).read_text()
            for name in line.split("|")[1].split(","):
                assert re.search(rf"\b{name.strip(' *')}\b", text), (name, page)


def test_the_figure_is_what_its_command_draws() -> None:
    """Texts and marks; with the same version of matplotlib also every number of the file."""
    place = HOME / "docs" / "figures"
    spec = importlib.util.spec_from_file_location("draw", place / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name, svg in draw.drawn().items():
        assert f"docs/figures/{name}" in README
        kept, now = (place / name).read_text(), svg.decode()
        texts, texts_now = (re.findall(r"<text[^>]*>([^<]*)<", each) for each in (kept, now))
        assert texts == texts_now
        version = r"Matplotlib v[\d.]+"
        if re.findall(version, kept) == re.findall(version, now):
            numbers, numbers_now = (
                [float(number) for number in re.findall(r"(?<![\w#-])-?\d+\.\d+", each)] for each in (kept, now)
            )
            assert numbers == pytest.approx(numbers_now, abs=0.01)


def test_text_of_the_figure_is_readable_on_its_ground() -> None:
    """Contrast of WCAG 2.2: 7 to 1 and more, on GitHub's two grounds."""
    for ground, colour in (("light", "#ffffff"), ("dark", "#0d1117")):
        svg = (HOME / "docs" / "figures" / f"field-{ground}.svg").read_text()
        inks = set(re.findall(r"fill: (#[0-9a-f]{6})", svg)) & {"#1f2328", "#f0f6fc", "#010203", "#000000"}
        assert len(inks) == 1
        assert contrast(inks.pop(), colour) > 7


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)
