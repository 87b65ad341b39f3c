"""The flags that `bench tune` prints can be pasted into the next run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from bench.cli.main import app
from bench.cli.tune import _HELPS
from bench.core.errors import UsageError
from bench.runs import tuning
from bench.settings.methods import build_config, parse_setting
from bench.settings.run_spec import RunSpec, make_spec
from bench.settings.tuning import Tuning, read_grid
from methods import METHODS


@pytest.mark.parametrize("shift", ["digits-c", "folder:photos"])
def test_the_best_options_are_said_as_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, shift: str
) -> None:
    scores = iter([0.2, 0.9])
    ran: list[RunSpec] = []

    def run_all(specs: Sequence[RunSpec], progress: object) -> list[None]:
        ran.extend(specs)
        return [None] * len(specs)

    monkeypatch.setattr(tuning, "run_all", run_all)
    found: Any = lambda _: {"accuracy": next(scores), "spread": 0.0, "clean": 0.5}  # noqa: E731
    monkeypatch.setattr(tuning, "_summary", found)
    true = tuning.load_shift
    monkeypatch.setattr(tuning, "load_shift", lambda name, root=None: true("digits-c"))
    grid = ['ingredients=[["mae"],["mae:mask_ratio=0.5","mae"]]', "lr=[2e-3]"]
    fixed = {"selfsoup": {"repeats": 2}, "tent": {"lr": 1e-4}}
    run = make_spec({"method": "selfsoup", "shift": shift, "split": "dev", "out": tmp_path / "out", "set": fixed})
    tuning.tune(Tuning(run, 2, read_grid(grid)), as_json=False)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("to run with the best options: "))
    flags = shlex.split(line.partition(": ")[2])
    assert flags[::2] == ["--set", "--set"]
    given = {key: value for _, key, value in map(parse_setting, flags[1::2])}
    config = build_config(METHODS["selfsoup"], given)
    assert (config.ingredients, config.lr) == (("mae:mask_ratio=0.5", "mae"), 2e-3)
    assert ("bench/assets/digits-c.toml" in said) == (shift == "digits-c")
    tried = [["mae"]], [["mae:mask_ratio=0.5", "mae"]]
    assert [spec.options for spec in ran] == [
        {"selfsoup": {"ingredients": names, "lr": 2e-3, "repeats": 2}, "tent": {"lr": 1e-4}} for (names,) in tried
    ]
    tuned_on = true("digits-c").tuning_corruptions
    assert {(spec.split, spec.corruption, spec.out) for spec in ran} == {("dev", tuned_on, tmp_path / "out")}


def test_one_method_is_tuned_on_dev_images_only() -> None:
    for settings, said in (
        ({"method": "tent", "split": "disjoint"}, "would bias the numbers"),
        ({"method": "tent,memo", "split": "dev"}, "takes one method, not tent, memo"),
    ):
        with pytest.raises(UsageError, match=said):
            Tuning(make_spec({"shift": "digits-c"}, settings), 8, {})


def test_tune_describes_the_settings_of_a_run_as_run_does() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    run, tune = ({each.name: each for each in commands[name].params} for name in ("run", "tune"))
    both = set(run) & set(tune) - {"method", "json", "help", *_HELPS}
    assert both == {"stock", "severity", "labels", "data_root", "jobs"}
    assert all(tune[name].help == run[name].help for name in both)
    assert set(_HELPS) <= set(run) & set(tune)
