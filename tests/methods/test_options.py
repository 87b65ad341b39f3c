"""Defaults that were published, orders and ingredients: what the options of a Self-Soup mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from methods.base import Job, Labelled, Unlabelled, Unsupported
from methods.nets.weights import Architecture, Classifier, Weights
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.mixing_options import CONNECTIVITY
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.recipe import ContinuedSoup, SelfSoup, SingleIngredient, read_ingredient
from methods.soups.season import Schedule, SelfSeasoning, SupervisedSeasoning

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mae", {"mask_ratio": 0.75, "norm_pix": False, "decoder_depth": None}),
        ("mocov3", {"temperature": 1.0, "symmetric": None, "momentum": None, "key_head": None}),
        ("mmcr", {"local": True}),
        ("lejepa", {"balance": 0.05, "slices": 256, "projection": 64, "crops": 2}),
        (
            "mocov3_official",
            {"temperature": 0.2, "momentum": 0.99, "hidden": 4096, "out": 256, "freeze_patches": True},
        ),
        (
            "mmcr_official",
            {"crops": 2, "local": 0.0, "momentum": 0.0, "divide": False, "hidden": 8192, "out": 512},
        ),
        (
            "lejepa_official",
            {
                "balance": 0.05,
                "globals_": 2,
                "locals_": 6,
                "global_area": 0.3,
                "local_smallest": 0.05,
                "slices": 1024,
                "hidden": 2048,
                "out": 64,
            },
        ),
    ],
)
def test_defaults_of_objectives_are_the_published_ones(name: str, published: dict[str, Any]) -> None:
    config: Any = OBJECTIVES[name].Config()
    assert dataclasses.asdict(config) == published


def test_defaults_of_training_and_seasoning_are_the_published_ones() -> None:
    made = read_ingredient("mae", SelfSoup.Config())
    assert (made.weight_decay, made.warmup, made.head_warmup) == (0.01, 0.1, 0.01)
    assert (made.views.scale, made.views.three_augment, made.views.jitter) == ((0.08, 1.0), True, 0.3)
    assert (made.views.ratio, made.views.blur, made.views.flip) == ((3 / 4, 4 / 3), (0.1, 2.0), True)
    plain = read_ingredient("mae", SelfSoup.Config(ssl_augment=False, ssl_area=0.3))
    assert (plain.views.scale, plain.views.three_augment, plain.views.jitter) == ((0.3, 1.0), False, 0.0)
    tuning = SelfSoup.Config()
    assert (tuning.weight_decay, tuning.warmup, tuning.label_smoothing) == (0.01, 0.1, 0.0)
    schedule = Schedule()
    assert (schedule.epochs, schedule.batch_size, schedule.rate(0)) == (100, 256, 0.1)
    assert schedule.rate(100) == pytest.approx(0.01)
    assert (SelfSeasoning().neighbours, SelfSeasoning().temperature) == (16, 0.07)
    assert (SupervisedSeasoning().draws, SupervisedSeasoning().neighbours, SupervisedSeasoning().temperature) == (
        1000,
        20,
        0.07,
    )


def test_an_ingredient_can_have_a_schedule_of_its_own() -> None:
    made = read_ingredient("lejepa:decay=0.05:warmup=0.2:head_warmup=0.2:rate=5e-4:steps=7:batch=9", SelfSoup.Config())
    assert (made.weight_decay, made.warmup, made.head_warmup) == (0.05, 0.2, 0.2)
    assert (made.lr, made.steps, made.batch_size) == (5e-4, 7, 9)
    assert made == dataclasses.replace(
        read_ingredient("lejepa:rate=5e-4:steps=7:batch=9", SelfSoup.Config()),
        weight_decay=0.05,
        warmup=0.2,
        head_warmup=0.2,
    )


def stock() -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = Classifier(SMALL, 3).weights()
    decoder = OBJECTIVES["mae"].Config().build(Weights(SMALL, {}), torch.Generator().manual_seed(1)).decoder
    tensors = {f"encoder.{name}": tensor for name, tensor in weights.part("encoder").items()}
    return Weights(SMALL, tensors | {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()})


def pixels(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


SOURCE = Labelled(pixels(30, 0), "source", torch.arange(30) % 3, 3)
POOL = Unlabelled(pixels(20, 1), "pool")


def plan(recipe: Any = SelfSoup, **options: Any) -> dict[str, Job]:
    base = {"ingredients": ("mae", "mocov3"), "steps": 2, "batch": 8, "epochs": 1, "batch_size": 10}
    made: dict[str, Job] = recipe(recipe.Config(**(base | options))).plan(stock(), SOURCE, POOL)
    return made


def cook(job: Job | Weights, done: dict[int, Weights]) -> Weights:
    if isinstance(job, Weights):
        return job
    if id(job) not in done:
        inputs = [cook(part, done) for part in job.inputs]
        done[id(job)] = job.function(inputs, job.data, job.config, torch.Generator().manual_seed(0))
    return done[id(job)]


def every_job(job: Job | Weights) -> list[Job]:
    return [job, *(j for part in job.inputs for j in every_job(part))] if isinstance(job, Job) else []


@pytest.mark.parametrize("lockstep", [False, True])
def test_tuning_first_inter_trains_the_classifier_and_keeps_its_head(lockstep: bool) -> None:
    parts = plan(order="tune_first", mixes=("uniform", "best"), holdout=0.2, lockstep=lockstep)
    done: dict[int, Weights] = {}
    tuned = next(job for job in every_job(parts["soup"]) if job.function.__name__ == "fine_tune")
    classifier = cook(tuned, done)
    assert [name for name in parts if name.startswith("ingredient:")] == ["ingredient:mae", "ingredient:mocov3"]
    trained = [job for job in every_job(parts["soup"]) if job.function.__name__.startswith("inter_train")]
    assert all(not isinstance(job.data, Labelled) for job in trained)
    for job in trained:
        start = cook(job.inputs[0], done)
        assert start.part("decoder").keys() == stock().part("decoder").keys()
        assert all(torch.equal(t, start.part("encoder")[n]) for n, t in classifier.part("encoder").items())
    for name in ("ingredient:mae", "ingredient:mocov3", "soup"):
        found = cook(parts[name], done)
        assert torch.equal(found.tensors["head.weight"], classifier.tensors["head.weight"])
        assert not torch.equal(found.tensors["encoder.norm.bias"], classifier.tensors["encoder.norm.bias"])
    # Nothing is fine-tuned after it has seen the pool.
    assert [job.function.__name__ for job in every_job(parts["soup"])].count("fine_tune") >= 1
    assert not [job for job in every_job(tuned) if job.function.__name__.startswith("inter_train")]


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("order", ["tune_then_soup", "soup_then_tune", "no_tune", "tune_first"])
def test_the_stock_can_be_an_ingredient(order: str, lockstep: bool) -> None:
    kind = {"soup_then_tune": ("uniform", "seasoned:epochs=1:batch_size=8"), "no_tune": ("uniform",)}
    parts = plan(
        ingredients=("mae", "stock"), order=order, mixes=kind.get(order, ("uniform", "wise")), lockstep=lockstep
    )
    done: dict[int, Weights] = {}
    made = {name: cook(job, done) for name, job in parts.items() if name != CONNECTIVITY}
    assert [name for name in made if name.startswith("ingredient:")] == ["ingredient:mae", "ingredient:stock"]
    if order == "no_tune":
        own = made["ingredient:stock"].part("encoder")
        assert all(torch.equal(tensor, own[name]) for name, tensor in stock().part("encoder").items())
        trained = made["ingredient:mae"].tensors["encoder.norm.bias"]
        between = (trained.double() + stock().tensors["encoder.norm.bias"].double()) / 2
        assert torch.equal(made["soup"].tensors["encoder.norm.bias"], between.float())


def test_controls_train_something_else_than_the_stock() -> None:
    parts = plan(ContinuedSoup, ingredients=("stock", "mocov3"))
    trained = next(j.config for j in every_job(parts["soup"]) if isinstance(j.config, Ingredient))
    assert trained.objective == OBJECTIVES["mocov3"].Config()
    with pytest.raises(Unsupported, match="beside 'stock'"):
        plan(ContinuedSoup, ingredients=("stock",))


@pytest.mark.parametrize(
    ("ingredients", "steps"),
    [
        (("stock", "mae:steps=3"), 3),
        (("mae:steps=100", "mae:steps=50:rate=2e-3"), 150),
        (("mae:steps=100:mask_ratio=0.5", "mae:steps=100:mask_ratio=0.5:rate=1"), 200),
        (("mae:steps=100", "mocov3:steps=100"), 340),
        (("mae:steps=100", "mae:steps=100:batch=16"), 300),
        (("mocov3:steps=100",), 240),
    ],
)
def test_the_single_ingredient_has_the_compute_of_all(ingredients: tuple[str, ...], steps: int) -> None:
    """As many steps as its own kind would take for the same time, whatever its batch and mask are."""
    single = plan(SingleIngredient, ingredients=ingredients)[""]
    (trained,) = (job.config for job in every_job(single) if job.function is inter_train)
    assert trained.steps == steps


def test_an_ingredient_named_twice_is_refused() -> None:
    with pytest.raises(Unsupported, match="named twice"):
        plan(ingredients=("mae", "mocov3", "mae"))


def test_batches_that_cannot_be_cut_are_refused_before_anything_runs() -> None:
    for options, sentence in (
        ({"batch": 9, "batch_size": 10}, r"batch = 9 .*accumulate = 2"),
        ({"batch": 8, "batch_size": 9}, r"batch_size = 9 .*accumulate = 2"),
    ):
        with pytest.raises(Unsupported, match=sentence):
            plan(accumulate=2, **options)
    assert plan(accumulate=2)
