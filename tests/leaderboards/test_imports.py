"""Reading results is light: no torch ever, no pandas, and nothing at all before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import leaderboards

ROOT = Path(leaderboards.__file__).parents[1]


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nsys.stdout.write(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    assert not loaded_by("import leaderboards") & {"numpy", "pydantic", "scipy", "pandas", "torch", "rich"}


def test_records_need_only_pydantic() -> None:
    assert not loaded_by("from leaderboards import Record") & {"numpy", "scipy", "pandas", "torch", "rich"}


def test_everything_works_without_heavy_packages() -> None:
    code = "import leaderboards, leaderboards.verify\nfor name in leaderboards.__all__: getattr(leaderboards, name)"
    assert not loaded_by(code) & {"torch", "torchvision", "timm", "pandas", "scipy", "seaborn", "bench", "methods"}


@pytest.mark.parametrize("name", leaderboards.__all__)
def test_every_offered_name_is_there(name: str) -> None:
    assert getattr(leaderboards, name).__name__ == name
    assert name in dir(leaderboards)


def test_other_names_are_refused_with_the_list() -> None:
    with pytest.raises(AttributeError, match="make_board"):
        leaderboards.nonsense  # noqa: B018
