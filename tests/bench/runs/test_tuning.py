"""The flags that `bench tune` prints can be pasted into the next run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.runs import tuning
from bench.settings.methods import build_config, parse_setting
from methods import METHODS


@pytest.mark.parametrize("shift", ["digits-c", "folder:photos"])
def test_the_best_options_are_said_as_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, shift: str
) -> None:
    scores = iter([0.2, 0.9])
    monkeypatch.setattr(tuning, "run_all", lambda specs, progress: [None] * len(specs))
    found: Any = lambda _: {"accuracy": next(scores), "spread": 0.0, "clean": 0.5}  # noqa: E731
    monkeypatch.setattr(tuning, "_summary", found)
    true = tuning.load_shift
    monkeypatch.setattr(tuning, "load_shift", lambda name, root=None: true("digits-c"))
    grid = ['ingredients=[["mae"],["mae:mask_ratio=0.5","mae"]]', "lr=[2e-3]"]
    tuning.tune("selfsoup", shift, 2, "dev", None, [], grid, {"out": tmp_path / "out"}, as_json=False)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("to run with the best options: "))
    flags = shlex.split(line.partition(": ")[2])
    assert flags[::2] == ["--set", "--set"]
    given = {key: value for _, key, value in map(parse_setting, flags[1::2])}
    config = build_config(METHODS["selfsoup"], given)
    assert (config.ingredients, config.lr) == (("mae:mask_ratio=0.5", "mae"), 2e-3)
    assert ("bench/assets/digits-c.toml" in said) == (shift == "digits-c")
