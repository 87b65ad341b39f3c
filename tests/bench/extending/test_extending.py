"""User-defined methods: written by `bench new`, checked by `bench check`, loaded from files and packages."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick_processes
from typer.testing import CliRunner

from bench.cli.catalogue import _method, _methods
from bench.cli.main import app
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.runs.run import Outcome
from bench.settings.methods import parse_method, plugins

Quick = Callable[..., Outcome]

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
EXAMPLE = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class InfoMax" in block)

BROKEN = '''
from methods.base import Adapter
from methods.table import Access

class Forgetful(Adapter):
    """An adapter with state that its reset does not restore."""
    access = Access(test="stream", state="online")
    seen = []

    def predict(self, images):
        self.seen.append(1)
        return self.model(images).detach() * len(self.seen)
'''


def bench(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def test_a_new_method_passes_its_test_and_the_suite_and_runs(
    tmp_path: Path, settings: dict[str, Any], run_quick: Quick
) -> None:
    made = bench("new", "method", "my_tent", "--out", str(tmp_path / "mine"))
    assert made.exit_code == 0, made.output
    file = tmp_path / "mine" / "my_tent.py"
    assert str(file) in made.output
    assert '[project.entry-points."soupbench.methods"]' in made.output
    checked = bench("check", "method", str(file))
    assert checked.exit_code == 0, checked.output
    assert "my_tent.py:MyTent breaks 0 rules" in checked.output
    assert run_quick(settings, method=f"source,{file}:MyTent").exit_code == 0


@pytest.mark.slow
def test_a_file_that_changed_is_not_taken_for_what_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "my_tent.py"
    file.write_text(EXAMPLE)
    sent = pickle.dumps(load_object(f"{file}:InfoMax").Config(lr=0.5))
    code = f"import pickle, bench.execution.task_pool; print(pickle.loads({sent!r}).lr)"
    again = [sys.executable, "-c", code]
    assert subprocess.run(again, check=True, capture_output=True, text=True).stdout == "0.5\n"
    file.write_text(EXAMPLE + "# changed\n")
    assert "has changed since the run was planned" in subprocess.run(again, capture_output=True, text=True).stderr


@pytest.mark.slow
def test_what_is_written_passes_its_own_test_and_linters(tmp_path: Path) -> None:
    assert bench("new", "method", "my_tent", "--out", str(tmp_path)).exit_code == 0
    file = tmp_path / "my_tent.py"
    tested = quick_processes.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_tent.py"], cwd=file.parent)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout
    for tool in (["check"], ["format", "--check", "--line-length", "120"]):
        command = [sys.executable, "-m", "ruff", *tool, "."]
        linted = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
        assert linted.returncode == 0, linted.stdout


def test_nothing_is_overwritten_and_names_are_free(tmp_path: Path) -> None:
    (tmp_path / "test_my_precious.py").write_text("precious")
    for name, words in (
        ("my_precious", "exists already"),
        ("tent", "already a method or module"),
        ("json", "already a method or module"),
        ("My-Tent", "small letters"),
        ("class", "small letters"),
        ("../mine", "small letters"),
    ):
        with pytest.raises(UsageError, match=words):
            app(["new", "method", name, "--out", str(tmp_path)], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["test_my_precious.py"]
    assert (tmp_path / "test_my_precious.py").read_text() == "precious"


def test_a_broken_method_lists_its_broken_rules_and_exits_with_4(tmp_path: Path) -> None:
    file = tmp_path / "forgetful.py"
    file.write_text(BROKEN)
    result = bench("check", "method", f"{file}:Forgetful", "--json")
    assert result.exit_code == 4
    report = json.loads(result.output)
    broken = {finding["check"] for finding in report["findings"] if finding["status"] == "failed"}
    assert {"reset_replays", "resumes_from_a_file", "lives_beside_another"} <= broken
    assert report["failed"] == sum(finding["status"] == "failed" for finding in report["findings"])
    text = bench("check", "method", str(file))
    assert text.exit_code == 4
    assert "reset() does not restore everything" in text.output


def test_the_example_of_the_readme_keeps_every_rule(tmp_path: Path) -> None:
    file = tmp_path / "sharp.py"
    file.write_text(EXAMPLE)
    result = bench("check", "method", str(file))
    assert result.exit_code == 0, result.output


def test_methods_of_the_table_can_be_checked_with_other_options() -> None:
    result = bench("check", "method", "lame", "--set", "neighbours=2")
    assert result.exit_code == 0, result.output
    with pytest.raises(UsageError, match="did you mean 'neighbours'"):
        app(["check", "method", "lame", "--set", "neighbors=2"], standalone_mode=False)


def test_what_cannot_be_checked_is_refused_in_words(tmp_path: Path) -> None:
    empty, two = tmp_path / "empty.py", tmp_path / "two.py"
    empty.write_text("from methods.adapters.tent import Tent\n")
    two.write_text(BROKEN + BROKEN.replace("Forgetful", "Other"))
    for method, words in (
        (str(empty), "defines none as adapters"),
        (str(two), "say which, as in"),
        (str(tmp_path / "nowhere.py"), "no file"),
        ("selfsoup", "is a recipe"),
        ("tnet", "did you mean 'tent'"),
    ):
        with pytest.raises(UsageError, match=words):
            app(["check", "method", method], standalone_mode=False)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a method and an entry point."""
    site = tmp_path / "site"
    package, info = site / "their_tta", site / "their_tta-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sharp.py").write_text(EXAMPLE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tta\nVersion: 1.0\n")
    names = "sharp_tent = their_tta.sharp:InfoMax\ntent = their_tta.sharp:InfoMax\ngone = their_tta.gone:Gone\n"
    (info / "entry_points.txt").write_text(f"[soupbench.methods]\n{names}")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return package


def test_an_installed_method_is_listed_shown_checked_and_run(
    installed: Path, settings: dict[str, Any], run_quick: Quick
) -> None:
    rows = {row["name"]: row for row in _methods()}
    assert rows["sharp_tent"]["kind"] == "plug-in"
    assert rows["tent"]["kind"] == "adapter"  # a name of the table is never replaced
    assert set(plugins()) == {"sharp_tent", "gone"}
    shown = _method("sharp_tent")
    assert [option["name"] for option in shown["options"]] == ["lr"]
    assert shown["tested_against"] == "none"
    assert bench("check", "method", "sharp_tent").exit_code == 0
    outcome = run_quick(settings, method="source,sharp_tent")
    assert outcome.exit_code == 0
    assert {row.method for row in outcome.board().rows} == {"source", "sharp_tent"}
    with pytest.raises(UsageError, match="cannot be loaded"):
        parse_method("gone")
    with pytest.raises(UsageError, match="did you mean 'sharp_tent'"):
        parse_method("sharptent")
