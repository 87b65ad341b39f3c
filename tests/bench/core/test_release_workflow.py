"""The workflow of a release, its notes, and files for containers and hooks: valid, modest, and what they run exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())
RELEASE: dict[str, Any] = yaml.safe_load((HOME / ".github" / "workflows" / "release.yml").read_text())
CHECKS: dict[str, Any] = yaml.safe_load((HOME / ".github" / "workflows" / "checks.yml").read_text())
JOBS: dict[str, Any] = RELEASE["jobs"]


def steps(job: str, key: str) -> list[Any]:
    return [step[key] for step in JOBS[job]["steps"] if key in step]


def test_what_is_published_was_built_once_and_tested() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v[0-9]*"]}}  # "on", which YAML reads as true
    assert [JOBS[job].get("needs") for job in ("build", "test", "publish", "announce")] == [
        None,
        "build",
        "test",
        "publish",
    ]
    assert len(JOBS) == 4
    builders = [job for job in JOBS if any("build" in line.split() for line in steps(job, "run"))]
    assert builders == ["build"]
    for job in ("test", "publish", "announce"):
        assert any(use.startswith("actions/download-artifact@") for use in steps(job, "uses"))


def test_only_the_job_that_needs_a_right_has_it() -> None:
    assert RELEASE["permissions"] == {"contents": "read"}
    assert {job: facts["permissions"] for job, facts in JOBS.items() if "permissions" in facts} == {
        "publish": {"id-token": "write"},
        "announce": {"contents": "write"},
    }
    assert JOBS["publish"]["environment"]["name"] == "pypi"
    assert steps("publish", "run") == []  # nothing of ours runs beside the token
    text = (HOME / ".github" / "workflows" / "release.yml").read_text()
    assert "secrets." not in text
    assert "password" not in text.replace("needs no password", "")


def test_actions_are_pinned_by_commit() -> None:
    used = [use for job in JOBS for use in steps(job, "uses")]
    assert used
    for use in used:
        assert re.fullmatch(r"(actions|pypa)/[a-z-]+@[0-9a-f]{40}", use)
    text = (HOME / ".github" / "workflows" / "release.yml").read_text()
    assert len(re.findall(r"uses: \S+@[0-9a-f]{40} # v\d+\.\d+\.\d+\n", text)) == len(used)


def test_every_promised_python_is_tested_on_every_system() -> None:
    promised = {line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)}
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == promised
    assert {system.partition("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}
    assert {system.partition("-")[0] for system in CHECKS["jobs"]["systems"]["strategy"]["matrix"]["system"]} == {
        "macos",
        "windows",
    }


def test_the_wheel_is_tested_and_not_the_checkout() -> None:
    (checkout,) = (step for step in JOBS["test"]["steps"] if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["sparse-checkout"] == "tests/installed"
    assert [path.name for path in (HOME / "tests" / "installed").glob("test_*.py")] == ["test_installed.py"]
    imports = re.findall(r"^(?:from|import) (\w+)", (HOME / "tests/installed/test_installed.py").read_text(), re.M)
    assert set(imports) <= {"__future__", "json", "os", "subprocess", "sys", "importlib", "pathlib", "pytest"}


@pytest.mark.parametrize("workflow", [RELEASE, CHECKS], ids=["release", "checks"])
def test_the_files_and_tools_that_commands_name_exist(workflow: dict[str, Any]) -> None:
    installed = {"python", "pip", "sudo", "mkdir", "gh", "twine", "cyclonedx-py", "make", "environment/bin/python"}
    tools = {*installed, *(re.split("[>=]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["dev"])}
    for line in (step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step):
        if line.startswith("("):
            assert re.fullmatch(r"\(cd \w+ && sha256sum \S+\) >>? assets/SHA256SUMS", line)
            continue
        words = shlex.split(line)
        assert words[0] in tools, line
        for word in words:
            if re.match(r"(tests|\.github)/", word):
                assert (HOME / word).exists(), line


# --- notes -----------------------------------------------------------------------------------------------------------


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("release_notes", HOME / ".github" / "release_notes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NOTES = _script()
LOG = "# Changelog\n\n## 0.2.0\n\n### Added\n\n- More.\n\n## 0.1.0\n\n- First.\n"


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    (tmp_path / "CHANGELOG.md").write_text(LOG)
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 0.2.0\ndate-released: 2026-12-01\n")
    (tmp_path / "leaderboards" / "reference").mkdir(parents=True)
    (tmp_path / "leaderboards" / "reference" / "known.json").write_text(json.dumps({"releases": {"0.2.0": "abc"}}))
    return tmp_path


def test_a_tag_has_the_notes_of_its_section(ready: Path) -> None:
    assert NOTES.check("v0.2.0", "0.2.0", "abc", ready) == "### Added\n\n- More.\n"
    assert NOTES.notes_of(LOG, "0.1.0") == "- First.\n"


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("CHANGELOG.md", "## 0.2.0", "## 0.2.0 (unreleased)", "marked"),
        ("CHANGELOG.md", "## 0.2.0", "## 0.3.0", "no section"),
        ("CITATION.cff", "0.2.0", "0.1.0", "CITATION.cff does not name 0.2.0"),
        ("CITATION.cff", "date-released", "date", "CITATION.cff does not name 0.2.0"),
        ("leaderboards/reference/known.json", "abc", "abd", 'known.json lacks "0.2.0": "abc"'),
    ],
)
def test_a_tag_that_is_not_ready_releases_nothing(
    ready: Path, file: str, before: str, after: str, message: str
) -> None:
    (ready / file).write_text((ready / file).read_text().replace(before, after))
    with pytest.raises(ValueError, match=re.escape(message)):
        NOTES.check("v0.2.0", "0.2.0", "abc", ready)


def test_a_tag_releases_its_own_version_alone(ready: Path) -> None:
    with pytest.raises(ValueError, match="would release the version"):
        NOTES.check("v0.2.0", "0.2.1.dev0+g0123.dirty", "abc", ready)


def test_a_candidate_needs_its_notes_alone(ready: Path) -> None:
    (ready / "CHANGELOG.md").write_text(LOG.replace("## 0.2.0", "## 0.2.0 (unreleased)"))
    assert "More" in NOTES.check("v0.2.0rc1", "0.2.0rc1", "anything", ready)


def test_the_next_version_of_this_project_has_a_section() -> None:
    found = re.search(r"^## (\S+)", (HOME / "CHANGELOG.md").read_text(), re.M)
    assert found is not None
    assert NOTES.notes_of((HOME / "CHANGELOG.md").read_text(), found[1], final=False).startswith("### ")


# --- containers and hooks ---------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their arguments, lines joined."""
    text = re.sub(r"^#.*\n", "", (HOME / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_the_container_runs_as_a_user_and_keeps_what_it_makes_in_a_volume() -> None:
    found = dockerfile()
    assert {name for name, _ in found} <= {
        "FROM",
        "ARG",
        "RUN",
        "COPY",
        "USER",
        "WORKDIR",
        "ENV",
        "VOLUME",
        "ENTRYPOINT",
        "CMD",
    }
    last = dict(found)
    assert (last["USER"], last["WORKDIR"], last["VOLUME"]) == ("1000", "/results", "/results")
    assert json.loads(last["ENTRYPOINT"]) == ["bench"]
    assert dict(re.findall(r"(\w+)=(\S+)", last["ENV"]))["SOUPBENCH_CACHE"].startswith("/results/")
    arguments = dict(value.split("=") for name, value in found if name == "ARG")
    assert arguments["TORCH"] == "cpu"
    assert set(arguments["EXTRAS"].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_container_is_built_from_what_a_wheel_needs() -> None:
    lines = (HOME / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept >= {
        ".git",
        "pyproject.toml",
        "hatch_build.py",
        "README.md",
        "LICENSE",
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    for name in kept - {".git"}:
        assert (HOME / name).exists(), name


def test_the_development_container_makes_the_environment_of_the_makefile() -> None:
    container = json.loads((HOME / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"].startswith("make .venv/.installed-dev ")
    assert "$(VENV)/.installed-dev:" in (HOME / "Makefile").read_text()


def test_hooks_are_the_checks_of_the_makefile() -> None:
    (repository,) = yaml.safe_load((HOME / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    checked = re.search(r"^check:.*\n((?:\t.*\n)+)", (HOME / "Makefile").read_text(), re.M)
    assert checked is not None
    tools = {line.strip().removeprefix("$(BIN)/").split()[0] for line in checked[1].splitlines()}
    assert {hook["entry"].split()[0] for hook in repository["hooks"]} == tools
