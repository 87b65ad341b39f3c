"""Invalid options of any method are refused in one sentence before a training starts."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.planning.plan import make_plan
from bench.settings.methods import build_config, parse_method
from bench.settings.run_spec import make_spec
from methods import METHODS

RECIPES = [name for name, row in METHODS.items() if row.kind == "recipe"]


@pytest.mark.parametrize("name", METHODS)
def test_no_option_takes_what_is_no_number(name: str) -> None:
    row = METHODS[name]
    options = [option for option in fields(load_object(row.path).Config) if isinstance(option.default, float)]
    for option in options:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(UsageError, match=rf"^{name}\.{option.name} must .*not -?(nan|inf)"):
                build_config(row, {option.name: value})


WRONG: dict[str, list[Any]] = {
    "epochs": [0, -1],
    "batch_size": [0, -1],
    "lr": [-1e-3],
    "weight_decay": [-0.1],
    "probe_l2": [-1.0],
    "warmup": [-0.1, 1.1],
    "label_smoothing": [-0.1, 1.0],
    "area": [0.0, -0.5, 1.5],
    "jitter": [-0.1, 1.1],
    "accumulate": [0],
    "scales": [[1.0, -1.0], [math.nan]],
    "holdout": [-0.1, 1.0],
    "steps": [0, -1],
    "rate": [-1e-3],
    "batch": [0, -1],
    "passes": [0],
    "ssl_area": [0.0, 2.0],
}
EDGE: dict[str, list[Any]] = {
    "epochs": [1],
    "lr": [0.0],
    "warmup": [0.0, 1.0],
    "label_smoothing": [0.0],
    "area": [1.0],
    "jitter": [0.0, 1.0],
    "accumulate": [1],
    "scales": [[0.0, 2.0]],
    "holdout": [0.0],
    "steps": [1],
    "batch": [1],
    "passes": [1],
    "ssl_area": [1.0],
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_refuse_what_they_could_not_train_with(name: str) -> None:
    row = METHODS[name]
    for option in fields(load_object(row.path).Config):
        for value in WRONG.get(option.name, []):
            with pytest.raises(UsageError, match=rf"^{name}\.{option.name} must be .*bench show method {name}"):
                build_config(row, {option.name: value})
        for value in EDGE.get(option.name, []):
            build_config(row, {option.name: value})


@pytest.mark.parametrize(
    "option", ["steps=0", "batch=0", "rate=-1", "rate=nan", "decay=-1", "decay=inf", "warmup=2", "head_warmup=-0.1"]
)
@pytest.mark.parametrize("lockstep", [False, True])
def test_ingredients_refuse_what_they_could_not_train_with(tmp_path: Path, option: str, lockstep: bool) -> None:
    settings = {"method": "selfsoup", "shift": "digits-c", "limit": 10, "corruption": "fog", "out": tmp_path / "out"}
    options = {"selfsoup": {"ingredients": [f"mae:{option}"], "lockstep": lockstep}}
    with pytest.raises(UsageError, match=option.partition("=")[0]) as caught:
        make_plan(make_spec(settings, {"set": options}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_runs_on_the_recipe_that_it_needs() -> None:
    for text, recipe in (("ttt_mae", "mae_probe"), ("source+ttt_mae", "source"), ("tent", "source")):
        assert parse_method(text).recipe.name == recipe
        assert parse_method(text).text == text
    assert all(METHODS[row.needs].kind == "recipe" for row in METHODS.values() if row.needs)
