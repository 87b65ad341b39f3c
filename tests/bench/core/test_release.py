"""The version, the digest of the packages and the declared requirements."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from bench import __version__
from bench.core import environment as fingerprint
from bench.core.environment import environment, package_digest

HOME = Path(__file__).resolve().parents[3]
PACKAGES = ("bench", "corruptions", "methods", "leaderboards")
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: list[str]) -> dict[str, str]:
    """Distribution to requirement."""
    return {plain(re.match(r"[A-Za-z0-9._-]+", line)[0]): line for line in requirements}  # type: ignore[index]


def imported_by(*packages: str) -> set[str]:
    """Distributions that modules of these packages import, at the top or inside of functions."""
    found: set[str] = set()
    for path in (path for package in packages for path in (HOME / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    found -= {*sys.stdlib_module_names, *PACKAGES}
    known = packages_distributions()
    assert found <= known.keys(), f"not installed here: {found - known.keys()}"
    return {plain(known[name][0]) for name in found}


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", __version__)
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    citation = yaml.safe_load((HOME / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert ("date-released" in citation) == (not __version__.endswith(".dev0"))
    assert f"## {__version__.removesuffix('.dev0')}" in (HOME / "CHANGELOG.md").read_text()


def test_what_is_built_has_that_version() -> None:
    hatch = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert hatch.stdout.strip() == __version__, hatch.stderr


def test_the_environment_tells_the_content_of_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line more in any of the four is another content, whatever the version says."""
    assert environment()["package"] == package_digest()
    assert re.fullmatch("[0-9a-f]{16}", package_digest())
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "bench" / "core" / "environment.py"))
    told = set()
    for changed in (None, *PACKAGES):
        for package in PACKAGES:
            (tmp_path / package / "deep").mkdir(parents=True, exist_ok=True)
            text = "x = 1\n" + ("y = 2\n" if package == changed else "")
            (tmp_path / package / "deep" / "some.py").write_text(text)
        fingerprint.own_code.cache_clear()
        told.add(package_digest())
    fingerprint.own_code.cache_clear()
    assert len(told) == 5


def test_what_is_imported_is_declared() -> None:
    declared = names_of(PROJECT["dependencies"])
    optional = {name for lines in PROJECT["optional-dependencies"].values() for name in names_of(lines)}
    inside = imported_by(*PACKAGES)
    only = {name for extra in ("scale", "fast") for name in names_of(PROJECT["optional-dependencies"][extra])}
    assert inside - declared.keys() <= only
    assert declared.keys() - inside == set(), "declared but never imported"
    assert "submitit" in optional


def test_boards_need_what_their_requirements_say() -> None:
    lines = (HOME / "leaderboards" / "requirements.txt").read_text().splitlines()
    wanted = names_of([line for line in lines if not line.startswith("#")])
    declared = names_of(PROJECT["dependencies"])
    assert imported_by("leaderboards") <= wanted.keys()
    assert {name: declared[name] for name in wanted} == wanted


def test_every_requirement_has_a_lowest_version() -> None:
    done = subprocess.run(
        [sys.executable, str(HOME / "tests" / "lowest.py")], capture_output=True, text=True, check=True, timeout=60
    )
    pinned = dict(line.split("==") for line in done.stdout.splitlines())
    assert {plain(name) for name in pinned} >= names_of(PROJECT["dependencies"]).keys()
    assert pinned["numpy"] == "2.2"


def test_the_workflow_runs_on_the_pythons_that_are_promised() -> None:
    workflow = yaml.safe_load((HOME / ".github" / "workflows" / "checks.yml").read_text())
    promised = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert set(workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]) == promised
    assert "make test-lowest" in [step.get("run") for step in workflow["jobs"]["lowest"]["steps"]]
