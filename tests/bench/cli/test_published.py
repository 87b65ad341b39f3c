"""`bench published`: published numbers alone, beside records, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboards
from bench.cli import main as cli

DEMO = Path(leaderboards.__file__).parent / "results" / "digits-c-demo.jsonl"
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", "published", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.start()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return call


def test_numbers_of_one_shift_and_of_all(bench: Bench, tmp_path: Path) -> None:
    assert "CoTTA" in bench("cifar10-c")[1]
    file = tmp_path / "all.json"
    assert bench("--format", "json", "-o", file)[0] == 0
    everything = json.loads(file.read_text())["published"]
    one = json.loads(bench("cifar10-c", "--format", "json")[1])["published"]
    assert one == [row for row in everything if row["shift"] == "cifar10-c"]
    assert len(one) < len(everything)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cifar10-d",), "did you mean 'cifar10-c'?"),
        (("--where", "seed=0"), "add it, or leave --where out"),
        (
            ("--from", DEMO),
            "nothing is published for the protocol, severity and all corruptions of digits-c (reset_each_shift)",
        ),
        (("--from", "nowhere"), "nowhere"),
        (("--format", "html"), "format"),
        (("-o", "x"), "--out cannot write the terminal format"),
    ],
)
def test_what_cannot_be_is_told(bench: Bench, arguments: tuple[object, ...], told: str) -> None:
    code, out, err = bench(*arguments)
    assert code in (2, 3)
    assert out == ""
    assert told in err
    assert "Traceback" not in err
