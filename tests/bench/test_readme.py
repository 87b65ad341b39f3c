"""What the README shows is what works: its method runs, its commands parse, its names exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.runs.run import Outcome
from bench.settings.methods import parse_method, parse_setting
from bench.settings.run_spec import make_spec, read_run_file
from bench.shifts import find_row

HOME = Path(__file__).resolve().parents[2]
README = (HOME / "README.md").read_text()
Quick = Callable[..., Outcome]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_example_method_is_short_and_runs(settings: dict[str, Any], tmp_path: Path, run_quick: Quick) -> None:
    source = next(block for block in blocks("python") if "class SharpTent" in block)
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    file = tmp_path / "my_tent.py"
    file.write_text(source)
    outcome = run_quick(settings, method=f"source,{file}:SharpTent", jobs=2)
    assert outcome.exit_code == 0
    assert {row.method for row in outcome.board().rows} == {"source", "my_tent.py:SharpTent"}


@pytest.mark.parametrize(
    "command", [line for block in blocks("sh") for line in block.splitlines() if "bench run" in line]
)
def test_commands_name_things_that_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    given = dict(itertools.pairwise(words))
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
