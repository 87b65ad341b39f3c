"""What a Self-Soup recipe plans: orders, ways of mixing, held-out labels, several fine-tunings of each ingredient."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from methods.base import Job, Labelled, Unlabelled, Unsupported
from methods.nets.weights import Architecture, Classifier, Weights, ready
from methods.recipes.supervised_soup import SupervisedSoup
from methods.selfsoup.mixing_options import CONNECTIVITY, MIXES
from methods.selfsoup.recipe import CleanSelfSoup, ContinuedSoup, SelfSoup

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)


def stock() -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Weights(SMALL, {f"encoder.{n}": t for n, t in Classifier(SMALL, 3).weights().part("encoder").items()})


def pixels(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


SOURCE = Labelled(pixels(30, 0), "source", torch.arange(30) % 3, 3)
POOL = Unlabelled(pixels(20, 1), "pool")


def plan(**options: Any) -> dict[str, Job]:
    base = {"ingredients": ("mae", "mae:mask_ratio=0.5"), "steps": 2, "batch": 8, "epochs": 1, "batch_size": 10}
    return SelfSoup(SelfSoup.Config(**(base | options))).plan(stock(), SOURCE, POOL)


def cook(job: Job, done: dict[int, Weights]) -> Weights:
    if id(job) not in done:
        inputs = [part if isinstance(part, Weights) else cook(part, done) for part in job.inputs]
        done[id(job)] = job.function(inputs, job.data, job.config, torch.Generator().manual_seed(0))
    return done[id(job)]


def every_job(job: Job | Weights) -> list[Job]:
    return [job, *(j for part in job.inputs for j in every_job(part))] if isinstance(job, Job) else []


@pytest.mark.parametrize("order", ["tune_then_soup", "soup_then_tune", "no_tune"])
def test_every_way_of_mixing_cooks_in_its_order(order: str) -> None:
    kind = "classifiers" if order == "tune_then_soup" else "encoders"
    mixes = tuple(name for name, mix in MIXES.items() if mix.of in ("both", kind))
    quick = {
        "learned": ":epochs=1:batch_size=4",
        "seasoned": ":epochs=1:batch_size=8",
        "supervised_seasoned": ":draws=3",
        "shares": ":3:1",
    }
    mixes = tuple(name + quick.get(name, "") for name in mixes)
    parts = plan(order=order, mixes=mixes, holdout=0.2)
    assert (parts.pop(CONNECTIVITY, None) is not None) == (order == "tune_then_soup")
    assert list(parts) == [
        "soup",
        *(f"soup:{text}" for text in mixes[1:]),
        "ingredient:mae",
        "ingredient:mae:mask_ratio=0.5",
    ]
    done: dict[int, Weights] = {}
    made = {name: cook(job, done) for name, job in parts.items()}
    for weights in made.values():
        assert ready(weights)(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert len({weights.digest for weights in made.values()}) >= 4


@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_encoders_may_be_seasoned_by_the_labels_that_they_never_saw(holdout: float) -> None:
    """Neighbours are judged leaving each image out, so all labels serve unless some are held out."""
    parts = plan(order="no_tune", mixes=("supervised_seasoned:draws=3",), holdout=holdout)
    mixed = next(job for job in every_job(parts["soup"]) if job.function.__name__ == "supervised_seasoned")
    assert mixed.data is not None
    assert len(mixed.data) == (6 if holdout else 30)


@pytest.mark.parametrize("order", ["tune_then_soup", "no_tune"])
def test_a_grid_over_the_shares_is_one_soup_for_each_mixture(order: str) -> None:
    three = ("mae", "mae:mask_ratio=0.5", "mae:mask_ratio=0.25")
    parts = plan(order=order, ingredients=three, mixes=("uniform", "simplex:side=2", "shares:0:1:0"))
    assert list(parts)[:6] == [
        "soup", "soup:shares:1:1:4", "soup:shares:1:4:1", "soup:shares:4:1:1", "soup:shares:2:2:2", "soup:shares:0:1:0",
    ]  # fmt: skip
    done: dict[int, Weights] = {}
    made = {name: cook(job, done).part("encoder") for name, job in parts.items() if name != CONNECTIVITY}
    single = [made[f"ingredient:{text}"] for text in three]
    for name, tensor in made["soup:shares:1:4:1"].items():
        by_hand = sum(share * each[name].double() for share, each in zip((1, 4, 1), single, strict=True)) / 6
        torch.testing.assert_close(tensor.double(), by_hand, rtol=0, atol=1e-7)
    for name, tensor in made["soup:shares:0:1:0"].items():
        assert torch.equal(tensor, single[1][name])
        torch.testing.assert_close(made["soup:shares:2:2:2"][name], made["soup"][name], rtol=0, atol=1e-7)


def test_held_out_labels_are_never_trained_on() -> None:
    parts = plan(mixes=("greedy",), holdout=0.2)
    jobs = every_job(parts["soup"])
    chosen = next(job.data for job in jobs if job.function.__name__ == "greedy_soup")
    assert isinstance(chosen, Labelled)
    assert len(chosen) == 6
    held = {bytes(image.numpy().tobytes()) for image in chosen.images}
    assert chosen.labels.bincount().tolist() == [2, 2, 2]
    for job in jobs:
        if isinstance(job.data, Labelled) and job.data is not chosen:
            assert len(job.data) == 24
            assert held.isdisjoint(image.numpy().tobytes() for image in job.data.images)


def test_each_ingredient_is_tuned_at_each_rate() -> None:
    parts = plan(scales=(0.5, 1.0), lr=2e-3)
    names = [name for name in parts if name.startswith("ingredient:")]
    assert len(names) == 4
    assert [parts[name].config.lr for name in names] == [1e-3, 1e-3, 2e-3, 2e-3]
    assert len(parts["soup"].inputs) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixes": ("grredy",)}, "no way of mixing"),
        ({"mixes": ("greedy",)}, "set the option holdout"),
        ({"mixes": ("seasoned",)}, "soup_then_tune"),
        ({"mixes": ("greedy",), "holdout": 0.1, "order": "soup_then_tune"}, "tune_then_soup"),
        ({"mixes": ("ties:kep=1",)}, "no option 'kep'"),
        ({"mixes": ("ties:keep=7",)}, "must be in"),
        ({"mixes": ("wise:alpha=x",)}, "not a number"),
        ({"mixes": ()}, "at least one"),
        ({"mixes": ("shares:1",)}, "2 numbers of at least 0, one for each ingredient, as in shares:1:1"),
        ({"mixes": ("shares:2:-1",)}, "numbers of at least 0"),
        ({"mixes": ("shares:0:0",)}, "numbers of at least 0"),
        ({"mixes": ("shares:a:b",)}, "numbers of at least 0"),
        ({"mixes": ("simplex",), "scales": (0.5, 1.0)}, "over two or three ingredients, not 4"),
        ({"mixes": ("simplex:side=0",)}, "with N of at least 1"),
        ({"mixes": ("simplex:edge=2",), "order": "soup_then_tune"}, "must be 'simplex' or"),
        ({"select_on": "val"}, "not scored"),
        ({"select_on": "val", "holdout": 0.1}, "leave one of them out"),
    ],
)
def test_what_cannot_be_mixed_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        plan(**options)


def test_holding_out_needs_two_images_of_a_class() -> None:
    few = dataclasses.replace(SOURCE, images=SOURCE.images[:3], labels=SOURCE.labels[:3])
    with pytest.raises(ValueError, match="give more labels"):
        few.split(0.5)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        SOURCE.split(1.0)


def test_images_to_choose_by_may_be_given_and_are_never_trained_on() -> None:
    val = Labelled(pixels(9, 7), "val", torch.arange(9) % 3, 3)
    config = SelfSoup.Config(
        ingredients=("mae", "mae:mask_ratio=0.5"), steps=2, batch=8, mixes=("uniform", "greedy"), select_on="val"
    )
    parts = SelfSoup(config).plan(stock(), SOURCE, POOL, val)
    assert parts["soup:greedy"].data is val
    assert parts[CONNECTIVITY].data is val
    trained = [job for job in every_job(parts["soup:greedy"]) if job.function.__name__ in ("fine_tune", "inter_train")]
    assert {job.data.digest for job in trained if job.data} == {"source", "pool"}


def test_baselines_choose_and_average_the_same_number_of_models() -> None:
    options = {"mixes": ("uniform", "greedy", "best", "ensemble"), "holdout": 0.2, "scales": (0.5, 1.0)}
    soup = options | {"ingredients": ("mae", "mae:mask_ratio=0.5"), "steps": 2, "batch": 8}
    clean = Unlabelled(pixels(20, 2), "clean")
    plans = {
        "supervised": SupervisedSoup(SupervisedSoup.Config(**options)).plan(stock(), SOURCE, None),  # type: ignore[arg-type]
        "continued": ContinuedSoup(ContinuedSoup.Config(**soup)).plan(stock(), SOURCE, clean),  # type: ignore[arg-type]
        "clean": CleanSelfSoup(CleanSelfSoup.Config(**soup)).plan(stock(), SOURCE, clean),  # type: ignore[arg-type]
        "shift": SelfSoup(SelfSoup.Config(**soup)).plan(stock(), SOURCE, POOL),  # type: ignore[arg-type]
    }
    for name, parts in plans.items():
        assert list(parts)[:4] == ["soup", "soup:greedy", "soup:best", "soup:ensemble"], name
        assert len(parts["soup"].inputs) == (2 if name == "supervised" else 4)
    inter_trained = {
        name: {id(job) for job in every_job(parts["soup"]) if job.function.__name__ == "inter_train"}
        for name, parts in plans.items()
    }
    assert {name: len(jobs) for name, jobs in inter_trained.items()} == {
        "supervised": 0,
        "continued": 1,
        "clean": 2,
        "shift": 2,
    }
    assert len({job.config for job in plans["continued"]["soup"].inputs if isinstance(job, Job)}) == 4
