"""The workflows are valid, ask for no more rights than they need, and the commands of ours that they run exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import quick_processes
import yaml

HOME = Path(__file__).resolve().parents[2]
FILES = sorted((HOME / ".github" / "workflows").glob("*.yml"))


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_is_whole_and_modest(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"]["contents"] == "read"
    assert True in workflow  # "on", which YAML reads as true
    assert "pull_request_target" not in workflow[True]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
    for command in commands(workflow):
        assert "${{ github.event" not in command  # text of strangers never becomes a command


def with_targets(command: str) -> list[str]:
    """The commands of ours that a command is, or that the target of make has that it names."""
    if not command.startswith("make "):
        return [command]
    recipe = re.search(rf"^{command.split()[1]}:.*\n((?:\t.*\n)*)", (HOME / "Makefile").read_text(), re.M)
    assert recipe is not None
    return [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]


def test_the_commands_that_workflows_run_work(tmp_path: Path, submission: Path) -> None:
    ran = []
    ours: set[tuple[str, ...]] = set()
    for file in FILES:
        for command in commands(yaml.safe_load(file.read_text())):
            for words in map(shlex.split, with_targets(command)):
                if words[:1] != ["bench"] or words[1:3] == ["run", "--demo"]:
                    continue  # tests/e2e/test_demo.py runs the demonstration
                words = [str(submission.parent) if word.endswith("leaderboards/results") else word for word in words]
                words = [str(tmp_path / "site") if word.startswith(("site", "build/")) else word for word in words]
                ours.add(tuple(words))
    for words in sorted(ours):
        ran.append(words[1])
        done = quick_processes.run(["-m", *words], cwd=HOME)
        assert done.returncode == 0, done.stderr
    assert set(ran) == {"leaderboard", "publish"}
    assert (tmp_path / "site" / "index.html").is_file()


def test_targets_of_make_that_workflows_run_exist() -> None:
    targets = set(re.findall(r"^(\S+):", (HOME / "Makefile").read_text(), re.M))
    for file in FILES:
        for command in commands(yaml.safe_load(file.read_text())):
            if command.startswith("make "):
                assert command.split()[1] in targets
