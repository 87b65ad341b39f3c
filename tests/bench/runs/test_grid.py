"""A grid of runs: the records of single runs in one folder, what cannot be left out with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UsageError
from bench.runs.callbacks import RunCallback
from bench.runs.grid import plan_grid, run_grid
from bench.runs.run import run
from bench.settings.grid import cells_of, folder_of
from bench.settings.run_spec import make_spec
from leaderboards.store import Store

GRID = {"protocol": ["continual", "reset_each_shift"], "batch_size": [4, 6]}


class Notes(RunCallback):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def asked(settings: dict[str, Any]) -> dict[str, Any]:
    fast = {"source": {"epochs": 1, "batch_size": 50}, "tent": {"steps": 1}}
    return {**settings, "method": "source,tent", "set": fast}


def bench(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def flags_of(asked: dict[str, Any]) -> list[str]:
    flat = {name: value for name, value in asked.items() if name != "set"}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flat.items()]
    pairs += [("--set", f"{m}.{key}={value}") for m, options in asked["set"].items() for key, value in options.items()]
    return [word for pair in pairs for word in pair]


def test_its_records_are_those_of_single_runs(asked: dict[str, Any], tmp_path: Path) -> None:
    done = run_grid(plan_grid(cells_of(asked, GRID), RunCallback()), RunCallback())
    assert [cell.name for cell, _ in done][:2] == ["continual, batch size 4", "continual, batch size 6"]
    assert {outcome.out for _, outcome in done} == {tmp_path / "out"}
    for number, (cell, outcome) in enumerate(done):
        alone = run(cell.spec.model_copy(update={"out": tmp_path / str(number), "rerun": True}))
        found, single = ({r.key: (r.metrics, r.diagnostics) for r in o.records()} for o in (outcome, alone))
        assert found == single
        assert outcome.board() == alone.board()
    assert len(Store(tmp_path / "out").records()) == sum(len(outcome.keys) for _, outcome in done)


def test_a_run_that_cannot_be_is_left_out_with_the_reason(asked: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    cells = cells_of(asked, {"shift": "digits-c,cifar10-c", "data_root": tmp_path})
    grid = plan_grid(cells, notes)
    (outcome,) = [outcome for _, outcome in run_grid(grid, notes)]
    assert outcome.exit_code == 0
    assert len(notes.notes) == 1
    assert notes.notes[0].startswith("left out: cifar10-c: ")
    assert "bench data fetch cifar10-c" in notes.notes[0]
    with pytest.raises(UsageError, match=r"^no run of this grid can be; the first, cifar10-c: .* bench data"):
        plan_grid(cells_of(asked, {"shift": "cifar10-c,cifar100-c", "data_root": tmp_path}), notes)


@pytest.mark.parametrize("wrong", [{"protocol": "continual,corelated"}, {"shift": "digits-c,digit-c"}])
def test_a_name_that_nothing_has_is_refused_not_left_out(asked: dict[str, Any], wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"did you mean '(correlated|digits-c)'"):
        plan_grid(cells_of(asked, wrong), Notes())


def test_the_command_line_runs_prints_and_continues(asked: dict[str, Any], tmp_path: Path) -> None:
    asked = {**asked, "method": "source", "set": {"source": asked["set"]["source"]}}
    words = [*flags_of(asked), "--protocol", "continual,reset_each_shift"]
    plan = bench("run", *words, "--dry-run")
    assert plan.exit_code == 0
    assert "reset_each_shift  1        3        3" in plan.stdout
    assert "6 of 6 records to make" in plan.stdout
    told = json.loads(bench("run", *words, "--dry-run", "--json").stdout)
    assert [(row["run"], row["records"], row["missing"]) for row in told["runs"]] == [
        ("continual", 3, 3),
        ("reset_each_shift", 3, 3),
    ]
    first = bench("run", *words)
    assert first.exit_code == 0
    assert first.stdout.count("protocol continual") == first.stdout.count("protocol reset_each_shift") == 1
    assert "6 measured, 0 reused, 0 failed in 2 runs" in first.stderr
    out = tmp_path / "out"
    again = bench("run", out / "run.toml", "--out", out, "--json")
    assert "0 measured, 6 reused, 0 failed in 2 runs" in again.stderr
    boards = json.loads(again.stdout)
    assert [each["run"] for each in boards] == ["continual", "reset_each_shift"]
    assert [each["board"]["protocol"] for each in boards] == ["continual", "reset_each_shift"]


def test_options_go_to_the_runs_that_have_the_method(asked: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    common = "".join(
        f"{name} = {json.dumps(str(asked[name]))}\n" for name in ("shift", "stock", "corruption", "severity")
    )
    file.write_text(
        f"{common}limit = 4\nbatch_size = 2\njobs = 1\n[set.source]\nepochs = 1\n"
        '[[runs]]\nmethod = "source,tent"\n[[runs]]\nmethod = ["source"]\nprotocol = "continual"\n'
    )
    out = tmp_path / "two"
    done = bench("run", file, "--set", "tent.lr=0.5", "--out", out)
    assert done.exit_code == 0, done.output
    rates = {(r.protocol, r.method): r.options.get("tent", {}).get("lr") for r in Store(out).records()}
    assert rates == {
        ("reset_each_shift", "tent"): 0.5,
        ("reset_each_shift", "source"): None,
        ("continual", "source"): None,
    }
    again = bench("run", out / "run.toml", "--out", out)
    assert "0 measured, 9 reused" in again.stderr
    refused = bench("run", file, "--set", "memo.views=2", "--out", out)
    assert str(refused.exception) == "--set memo.…: no run has a method 'memo'; they have source, tent"


def test_the_dry_run_names_what_cannot_be(asked: dict[str, Any], tmp_path: Path) -> None:
    words = [*flags_of({**asked, "shift": "cifar10-c,digits-c"}), "--data-root", tmp_path]
    told = bench("run", *words, "--dry-run")
    assert told.exit_code == 0
    assert "left out: cifar10-c: " in told.stdout
    none = bench("run", *words, "--shift", "cifar10-c,cifar100-c", "--dry-run")
    assert isinstance(none.exception, UsageError)


def test_the_default_folder_names_shifts_and_methods(asked: dict[str, Any]) -> None:
    cells = cells_of({**asked, "out": None}, {"shift": "digits-c,folder:a/b", "batch_size": "2,4"})
    assert folder_of(cells) == Path("runs/grid-digits-c-folder_a_b-source-tent")


def test_the_settings_of_one_run_are_those_of_a_run_file(asked: dict[str, Any], tmp_path: Path) -> None:
    run(make_spec({**asked, "method": "source", "set": {}}))
    assert "runs" not in (tmp_path / "out/run.toml").read_text()
