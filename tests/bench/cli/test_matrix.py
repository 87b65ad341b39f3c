"""`bench leaderboard --matrix` on published results: options, formats, files, and what it refuses."""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import leaderboards
from bench.cli import main as cli

DEMO = Path(leaderboards.__file__).parent / "results" / "digits-c-demo.jsonl"


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["bench", "leaderboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.start()
        out, err = capsys.readouterr()
        return Done(int(leave.value.code or 0), out, err)

    return call


@pytest.fixture
def matrix(bench: Callable[..., Done]) -> Callable[..., Done]:
    return functools.partial(bench, "--matrix", "--from", DEMO)


def test_every_format_and_figure_of_one_matrix(matrix: Callable[..., Done], tmp_path: Path) -> None:
    options = ("--across-tracks", "--blocks", "conditions", "--posthoc", "holm")
    content = json.loads(matrix(*options, "--format", "json").out)
    (test,) = content["tests"]
    assert (test["n_blocks"], test["posthoc"], test["critical_difference"]) == (36, "holm", None)
    assert {row["method"] for row in content["rows"]} == {"source", "supervised_soup", "tent", "memo", "selfsoup"}
    lines = list(csv.DictReader(io.StringIO(matrix("--format", "csv").out)))
    assert {line["accuracy"] for line in lines} == {str(r["cells"][0]["accuracy"]) for r in content["rows"]}
    assert "Holm" in matrix(*options, "--format", "md").out
    assert r"\toprule" in matrix(*options, "--format", "latex").out
    page, folder = tmp_path / "matrix.html", tmp_path / "figures"
    done = matrix(*options, "--format", "html", "-o", page, "--figures", folder)
    assert (done.code, done.out) == (0, "")
    assert page.read_text().startswith("<!doctype html>")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{form}" for name in ("critical-difference", "matrix-heatmap") for form in ("svg", "png", "pdf")
    }


def test_a_diagram_that_cannot_be_is_told_in_a_sentence(matrix: Callable[..., Done], tmp_path: Path) -> None:
    done = matrix("--figures", tmp_path / "figures")
    assert done.code == 0
    assert "not in a critical-difference diagram (track R): Friedman's test needs 3 methods" in done.err
    assert not list(tmp_path.glob("figures/critical*"))
    assert "needs 3 columns" in matrix("--across-tracks", "--figures", tmp_path / "figures").err


def test_an_axis_is_known_by_its_name(matrix: Callable[..., Done]) -> None:
    content = json.loads(matrix("--by", "severity", "--format", "json").out)
    assert (content["axis"], content["columns"]) == ("severity", ["severity 1+3+5"])
    assert "did you mean 'protocol'?" in matrix("--by", "protocoll").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--blocks", "rows"), "value of --blocks"),
        (("--posthoc", "holmes"), "did you mean 'holm'?"),
        (("--sort", "ECE"), "--sort is about one board"),
    ],
)
def test_what_is_no_option_is_refused(matrix: Callable[..., Done], arguments: Any, said: str) -> None:
    done = matrix(*arguments)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("more", [("--from", DEMO), ("--out", "site")])
@pytest.mark.parametrize(
    "option", [("--by", "shift"), ("--across-tracks",), ("--blocks", "columns"), ("--posthoc", "holm")]
)
def test_options_of_a_matrix_need_it(bench: Callable[..., Done], option: Any, more: Any) -> None:
    done = bench(*option, *more)
    assert done.code == 2
    assert f"{option[0]} is about methods against boards; add --matrix" in done.err
    assert "--from DIR" in bench("--matrix", "--out", "site").err
