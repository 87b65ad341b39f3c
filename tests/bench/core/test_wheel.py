"""What is built holds what a user needs and nothing else, and works where there is no checkout."""

from __future__ import annotations

import email
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

HOME = Path(__file__).resolve().parents[3]
PACKAGES = ("bench", "corruptions", "methods", "leaderboards")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is made from it, as `python -m build` makes both."""
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(HOME)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr + done.stdout
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def tracked() -> set[str]:
    done = subprocess.run(["git", "ls-files", *PACKAGES], cwd=HOME, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {info.filename for info in wheel.infolist()}
        assert wheel.testzip() is None
        for name in tracked() & names:
            assert wheel.read(name) == (HOME / name).read_bytes(), name
    information = {name for name in names if ".dist-info/" in name}
    published = {name for name in tracked() if name.startswith("leaderboards/results/") and name.endswith(".jsonl")}
    assert names - information == tracked() - published
    assert built[1].stat().st_size < 3 << 20


def test_the_source_distribution_can_be_tested_and_built_again(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert tracked() <= names
    for name in (
        "tests/conftest.py",
        "pyproject.toml",
        "hatch_build.py",
        "LICENSE",
        "docs/architecture.md",
        ".github/workflows/release.yml",
    ):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_metadata_are_those_that_an_index_takes(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        (file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(wheel.read(file))
    assert facts["Name"] == "soupbench"
    assert str(Version(facts["Version"])) == facts["Version"]
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["Description-Content-Type"] == "text/markdown"
    assert str(facts.get_payload()).lstrip().startswith("# ")
    for line in facts.get_all("Requires-Dist") or ():
        assert Requirement(line).specifier, line
    assert "://" not in " ".join(facts.get_all("Requires-Dist") or ())


def test_the_wheel_works_where_there_is_no_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Its own tests pass in an environment with the wheel, and with the libraries of this one."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = next(home.glob("[bS]*/python*"))
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(built[1])]
    subprocess.run(install, check=True, capture_output=True)
    asked = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    shutil.copytree(HOME / "tests" / "installed", tmp_path / "elsewhere" / "tests")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "5 passed" in done.stdout
