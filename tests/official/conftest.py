"""The module that runs official scripts, for the tests in this folder, which are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _loaded() -> ModuleType:
    if "official_scripts" not in sys.modules:
        spec = importlib.util.spec_from_file_location("official_scripts", Path(__file__).with_name("official.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["official_scripts"] = module
        spec.loader.exec_module(module)
    return sys.modules["official_scripts"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case; those that run a published loop over the pixels of a large picture are slow."""
    if "case" in metafunc.fixturenames:
        module = _loaded()
        runs_official = "runs_official" in metafunc.function.__name__
        metafunc.parametrize(
            "case",
            [
                pytest.param(
                    case,
                    id=module.name_of(case),
                    marks=[pytest.mark.slow] if runs_official and case[0] != "cifar32" else [],
                )
                for case in module.cases()
            ],
        )


@pytest.fixture(scope="session")
def official() -> ModuleType:
    """The module `official`."""
    return _loaded()
