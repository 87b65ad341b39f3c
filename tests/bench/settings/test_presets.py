"""Published options: where they apply, which options override them, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.cli.catalogue import _method
from bench.planning.plan import make_plan
from bench.settings.methods import literal_of, parse_method, preset_options
from bench.settings.run_spec import make_spec
from bench.shifts.digits import Digits
from methods import METHODS
from methods.base import Adapter

PLUGIN = """
from dataclasses import dataclass
from methods.base import Adapter
from methods.table import Access

class Base(Adapter):
    access = Access(test="stream", state="{state}")
    presets = {{"cifar-ln": {{"lr": 0.4, "steps": 3}}, "cifar-bn": {{"lr": 0.2}}}}
    tested_against = "restatement"

    @dataclass(frozen=True)
    class Config:
        lr: float = 0.1
        steps: int = 1
        margin: float = 0.5

    def predict(self, images):
        return self.model(images)

class Mine(Base):
    pass
"""


def plugin(folder: Path, state: str = "online") -> str:
    file = folder / f"{state}.py"
    file.write_text(PLUGIN.format(state=state))
    return f"{file}:Mine"


def test_rates_scale_with_the_batch_on_layer_norms_where_learning_goes_on(tmp_path: Path) -> None:
    online, fixed = (parse_method(plugin(tmp_path, state)).adapter for state in ("online", "episodic"))
    assert online is not None
    assert fixed is not None
    assert preset_options(online, "cifar", "ln", 64) == {"lr": 0.4, "steps": 3}
    assert preset_options(online, "cifar", "ln", 16) == {"lr": pytest.approx(0.1), "steps": 3}
    assert preset_options(online, "cifar", "bn", 16) == {"lr": 0.2}
    assert preset_options(fixed, "cifar", "ln", 16) == {"lr": 0.4, "steps": 3}
    assert preset_options(online, "imagenet", "ln", 16) == {}
    assert preset_options(METHODS["source"], "cifar", "ln", 16) == {}


def test_presets_go_over_defaults_and_under_what_is_asked_for(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolved(**options: Any) -> Any:
        spec = make_spec(
            {**settings, "method": plugin(tmp_path), "batch_size": 32}, {"set": {"online.py:Mine": options}}
        )
        return make_plan(spec).entries[0].trial.options["online.py:Mine"]

    assert resolved() == {"lr": 0.1, "steps": 1, "margin": 0.5}  # digits are no family with published options
    monkeypatch.setattr(Digits, "family", "cifar")
    assert resolved() == {"lr": pytest.approx(0.2), "steps": 3, "margin": 0.5}
    assert resolved(lr=7.0) == {"lr": 7.0, "steps": 3, "margin": 0.5}
    monkeypatch.setattr(
        "bench.settings.method_options.tuned_options", lambda _, name: {} if name == "source" else {"steps": 9}
    )
    assert resolved() == {"lr": pytest.approx(0.2), "steps": 9, "margin": 0.5}
    assert resolved(steps=2)["steps"] == 2


def test_literals_are_read_from_text_through_bases(tmp_path: Path) -> None:
    row = parse_method(plugin(tmp_path)).adapter
    assert row is not None
    assert literal_of(row, "tested_against", "none") == "restatement"
    assert literal_of(row, "presets", {})["cifar-bn"] == {"lr": 0.2}
    assert literal_of(row, "nothing", 3) == 3


@pytest.mark.parametrize("name", [row.name for row in METHODS.values() if row.kind == "adapter"])
def test_what_is_shown_is_what_the_class_says(name: str) -> None:
    from bench.core.import_object import load_object

    cls: type[Adapter] = load_object(METHODS[name].path)
    shown = _method(name)
    assert shown["tested_against"] == cls.tested_against
    assert shown["presets"] == cls.presets
    assert {key.rpartition("-")[2] for key in cls.presets} <= {"bn", "ln", "gn"}
    assert {key.rpartition("-")[0] for key in cls.presets} <= {"imagenet", "cifar", "cifar100"}
    for options in cls.presets.values():
        cls.Config(**options)
