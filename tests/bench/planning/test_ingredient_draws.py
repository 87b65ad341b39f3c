"""Label draws nested in draws of ingredients: which trainings are shared, what a record says, and repeating it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.core.conditions import Draws
from bench.core.errors import UsageError
from bench.planning.init_from import inherit
from bench.planning.plan import make_plan
from bench.runs.repeat import repeat
from bench.runs.run import run
from bench.settings.run_spec import make_spec
from leaderboards.store import Store
from leaderboards.verify import verify

SMALL = {
    "method": "source,selfsoup,selfsoup_clean",
    "shift": "digits-c",
    "corruption": "fog",
    "limit": 20,
    "launch": "serial",
    "set": {
        "source": {"epochs": 1},
        "selfsoup": {"steps": 2, "epochs": 1, "mixes": ["uniform"], "ingredients": ["mae", "mocov3"], "scales": [1.0]},
    },
}


def spec(**changes: Any) -> Any:
    return make_spec(SMALL, changes)


def kinds(plan: Any) -> Counter[str]:
    """Count the trainings without labels, and the fine-tunings."""
    labels = [task.label for task in plan.trainings]
    tuned = sum(label.startswith("fine-tune ") for label in labels)
    return Counter(ingredients=sum(label.startswith("ingredient ") for label in labels), tuned=tuned)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seeds": 3}, [(0, 0), (1, 1), (2, 2)]),
        ({"seeds": 4, "ingredient_draws": 2}, [(0, 0), (1, 1), (2, 0), (3, 1)]),
        ({"seeds": 2, "ingredient_seed": 7}, [(0, 7), (1, 7)]),
        ({"seeds": 4, "ingredient_draws": 2, "ingredient_seed": 10, "seed": 3}, [(3, 11), (4, 10), (5, 11), (6, 10)]),
    ],
)
def test_which_seeds_a_trial_has(given: dict[str, int], expected: list[tuple[int, int]]) -> None:
    made = spec(**given)
    assert [made.draws(seed) for seed in made.seed_list] == [Draws(*pair) for pair in expected]


def test_draws_divide_the_seeds_evenly() -> None:
    with pytest.raises(UsageError, match="give --seeds as a multiple of it, not 4"):
        spec(seeds=4, ingredient_draws=3)


def test_ingredients_are_trained_once_for_all_their_label_draws(tmp_path: Path, own_cache: Path) -> None:
    whole = make_plan(spec(seeds=4, out=tmp_path / "a"))
    shared = make_plan(spec(seeds=4, ingredient_draws=2, out=tmp_path / "a"))
    once = make_plan(spec(out=tmp_path / "a"))
    of_one = kinds(once)
    assert min(of_one.values()) > 0
    assert kinds(whole) == {name: 4 * count for name, count in of_one.items()}
    assert kinds(shared) == {"ingredients": 2 * of_one["ingredients"], "tuned": 4 * of_one["tuned"]}
    assert dict(shared.training_cost.counts) != dict(whole.training_cost.counts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run of four label draws on two draws of ingredients, and its cache."""
    home = tmp_path_factory.mktemp("nested")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUPBENCH_CACHE", str(home / "cache"))
        run(spec(seeds=4, ingredient_draws=2, out=home / "out"))
    return home / "out", home / "cache"


@pytest.fixture
def nested(made: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out, cache = made
    monkeypatch.setenv("SOUPBENCH_CACHE", str(cache))
    return out


def test_records_say_whose_ingredients_they_have(nested: Path) -> None:
    out = nested
    records = Store(out).records()
    assert {r.status for r in records} == {"done"}
    found = {(r.method, r.seed, r.data.ingredients) for r in records if r.part in (None, "soup")}
    assert {(0, None), (1, None), (2, 0), (3, 1)} == {(seed, i) for method, seed, i in found if method == "selfsoup"}
    assert {(seed, None) for seed in range(4)} == {(seed, i) for method, seed, i in found if method == "source"}
    assert not verify(out).problems
    # The first seeds are those of a run without draws; its records are reused.
    plan = make_plan(spec(seeds=2, out=out))
    assert not plan.missing
    assert make_plan(spec(seeds=3, out=out)).missing
    record = next(r for r in records if r.method == "selfsoup" and r.part == "soup" and r.seed == 3 and not r.clean)
    again = repeat(record, {"launch": "serial"})
    assert again["same"]
    assert again["same_identity"]


def test_a_classifier_of_another_run_keeps_its_ingredients(nested: Path) -> None:
    soup = f"{nested}:selfsoup"
    plain = {name: value for name, value in SMALL.items() if name != "set"}
    started = make_spec(plain, {"method": "tent", "seeds": 4, "init_from": soup})
    plan = make_plan(started)
    assert not plan.trainings
    base = inherit(soup, (0, 1, 2, 3), "cpu", make_plan)
    assert base.digest != replace(base, draws={seed: Draws(seed, seed) for seed in range(4)}).digest
    assert [entry.trial.draws for entry in plan.entries] == [Draws(0, 0), Draws(1, 1), Draws(2, 0), Draws(3, 1)]
    assert {i["data"]["ingredients"] for entry in plan.entries for i in entry.identities.values()} == {None, 0, 1}
