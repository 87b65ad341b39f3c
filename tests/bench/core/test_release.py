"""The version, the digest of the packages and the declared requirements."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from bench import __version__
from bench.core import environment as fingerprint
from bench.core import version as version_module
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


def test_the_version_stands_nowhere_but_in_tags() -> None:
    assert Version(__version__)
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    cited = yaml.safe_load((HOME / "CITATION.cff").read_text())
    assert ("date-released" in cited) == ("version" in cited)
    released = re.findall(r"^## ([0-9.]+)$", (HOME / "CHANGELOG.md").read_text(), re.M)
    assert [cited["version"]] == released[:1] if "version" in cited else not released


def test_what_is_built_has_the_version_that_runs() -> None:
    hatch = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert hatch.stdout.strip() == __version__, hatch.stderr


class Checkout:
    """A repository with the version's file alone, whose commits and tags are made here."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "bench" / "core" / "version.py"
        self.file.parent.mkdir(parents=True)
        for name in ("bench/core/version.py", ".git_archival.txt", ".gitattributes"):
            shutil.copy(HOME / name, home / name)
        self.git("init", "-q")
        self.commit()

    def git(self, *words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
        done = subprocess.run(["git", *own, *words], cwd=self.home, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "--short=12", "HEAD")


def version_of(home: Path) -> str:
    """As the build backend asks: the file alone, in a fresh process and from another folder."""
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['version']())"
    words = [sys.executable, "-I", "-c", code, str(home / "bench" / "core" / "version.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=home.parent)
    found = done.stdout.strip()
    assert str(Version(found)) == found  # normal form of PEP 440
    return found


@pytest.mark.parametrize(
    ("tag", "base", "upcoming"), [("v0.2.0", "0.2.0", "0.2.1"), ("v1.0.0rc1", "1.0.0rc1", "1.0.0rc2")]
)
def test_versions_follow_from_tags(tmp_path: Path, tag: str, base: str, upcoming: str) -> None:
    checkout = Checkout(tmp_path / "a")
    commit = checkout.git("rev-parse", "--short=12", "HEAD")
    assert version_of(checkout.home) == f"0.dev0+g{commit}"
    checkout.git("tag", "docs-1")
    assert version_of(checkout.home) == f"0.dev0+g{commit}"
    checkout.git("tag", tag)
    assert version_of(checkout.home) == base
    checkout.file.write_text(checkout.file.read_text() + "# edited\n")
    dirty = version_of(checkout.home)
    assert dirty == f"{upcoming}.dev0+g{commit}.dirty"
    checkout.commit()
    later = checkout.commit()
    assert version_of(checkout.home) == f"{upcoming}.dev2+g{later}"
    assert Version(base) < Version(dirty) < Version(version_of(checkout.home)) < Version(upcoming)


def test_versions_without_the_history(tmp_path: Path) -> None:
    """A shallow clone, an archive, a source distribution, and a copy inside of another repository."""
    checkout = Checkout(tmp_path / "a")
    checkout.git("tag", "v0.2.0")
    later = checkout.commit()
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", "--no-tags", checkout.home.as_uri(), str(tmp_path / "shallow")],
        check=True,
    )
    assert version_of(tmp_path / "shallow") == f"0.dev0+g{later}"

    for commit, version in (("HEAD", f"0.2.1.dev1+g{later}"), ("v0.2.0", "0.2.0")):
        archive = tmp_path / f"{commit}.tar"
        checkout.git("archive", "-o", str(archive), commit)
        shutil.unpack_archive(archive, tmp_path / commit, filter="data")
        assert version_of(tmp_path / commit) == version

    copy = tmp_path / "copy"
    shutil.copytree(checkout.home, copy, ignore=shutil.ignore_patterns(".git"))
    assert version_of(copy) == "0+unknown"
    (copy / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: soupbench\nVersion: 0.3.0\n")
    assert version_of(copy) == "0.3.0"
    around = Checkout(tmp_path / "around")
    around.git("tag", "v9.9.9")
    shutil.copytree(copy, around.home / "vendored")
    assert version_of(around.home / "vendored") == "0.3.0"
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)  # a packager's repository
    assert version_of(copy) == "0.3.0"


def test_without_git_the_program_a_checkout_says_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(version_module, "_installed", lambda: None)
    version_module.version.cache_clear()
    assert version_module.version() == "0+unknown"
    version_module.version.cache_clear()


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
