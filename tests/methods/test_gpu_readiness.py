"""Trainings, objectives, views and soups on a pretended GPU: nothing in a wrong place, no wait but the known ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_waits import HostWaits

import methods.training.finetune
from methods.adapters.shot_im import ShotIM
from methods.adapters.tent import Tent
from methods.base import Labelled, Unlabelled
from methods.nets.masked_autoencoder import Decoder
from methods.nets.weights import Architecture, Weights, build_encoder, reset
from methods.recipes import shot_pool
from methods.recipes.augmix import AugMixing
from methods.recipes.pool_adaptation import Adaptation, adapt
from methods.recipes.prime import PrimeMixing as PrimeMixing
from methods.selfsoup.ingredients import Ingredient, inter_train, tensors_of
from methods.selfsoup.joint_training import Together, inter_train_together
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.soups import season, soup
from methods.soups.bn_recalibration import Remeasure, remeasured
from methods.training.augmentation import Augmentation
from methods.training.finetune import Probe, Repeat, fine_tune, probe

SMALL = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=16, decoder_heads=2)
COUNT = 24


def stock(seed: int = 0) -> Weights:
    encoder, decoder = build_encoder(SMALL), Decoder(SMALL)
    for part in (encoder, decoder):
        reset(part, torch.Generator().manual_seed(seed))
    return Weights(SMALL, tensors_of(encoder, "encoder") | tensors_of(decoder, "decoder"))


def classifier(seed: int = 0) -> Weights:
    body = stock(seed).tensors
    return Weights(
        SMALL,
        {name: tensor for name, tensor in body.items() if name.startswith("encoder.")}
        | {
            "head.weight": torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)),
            "head.bias": torch.ones(3),
        },
    )


def pool() -> Unlabelled:
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Unlabelled(images, "pool")


def labelled() -> Labelled:
    return Labelled(pool().images, "task", torch.arange(COUNT) % 3, 3)


def waits_of(work: Callable[[torch.Generator], object]) -> dict[tuple[str, str], int]:
    """The waits of each kind and function in one piece of work on the pretended device."""
    waits = HostWaits()
    generator = waits.generator()
    with waits:
        work(generator)
    return dict(waits.sites)


Training = Callable[[int, torch.Generator], object]
WIDTHS: dict[str, dict[str, Any]] = {
    "mocov3_official": {"hidden": 16, "out": 8},
    "mmcr_official": {"hidden": 16, "out": 8, "momentum": 0.9, "local": 0.5},
    "lejepa_official": {"hidden": 16, "out": 8},
}


def ingredient(name: str, steps: int, **more: Any) -> Ingredient:
    config = OBJECTIVES[name].Config(**WIDTHS.get(name, {}))
    return Ingredient(config, **{"steps": steps, "batch_size": 3, **more})


def inter_training(name: str, **more: Any) -> Training:
    return lambda steps, generator: inter_train([stock()], pool(), ingredient(name, steps, **more), generator)


def fine_tuning(augmentation: Augmentation | None = None, **more: Any) -> Training:
    def run(steps: int, generator: torch.Generator) -> object:
        data = Labelled(pool().images[: 3 * steps], "task", torch.arange(3 * steps) % 3, 3)
        config = Repeat(epochs=1, batch_size=3, augmentation=augmentation, **more)
        return fine_tune([classifier(), classifier()], data, config, generator)

    return run


def joint(steps: int, generator: torch.Generator) -> object:
    every = Together(tuple(ingredient(name, steps) for name in ("mae", "mocov3", "lejepa")), 3)
    return inter_train_together([stock()], pool(), every, generator)


def pretraining(steps: int, generator: torch.Generator) -> object:
    return pretrain([], pool(), Pretraining(SMALL, steps=steps, batch_size=3), generator)


def adaptation(rule: Any) -> Training:
    def run(steps: int, generator: torch.Generator) -> object:
        data = Unlabelled(pool().images[: 3 * steps], "pool")
        return adapt([classifier()], data, Adaptation(rule, passes=1, batch_size=3), generator)

    return run


def shot(steps: int, generator: torch.Generator) -> object:
    data = Unlabelled(pool().images[: 3 * steps], "pool")
    return shot_pool.shot([classifier()], data, shot_pool.Shot(passes=1, batch_size=3), generator)


TRAININGS: dict[str, Training] = {
    **{name: inter_training(name) for name in OBJECTIVES},
    "in parts": inter_training("mae", accumulate=3),
    "joint": joint,
    "pretraining": pretraining,
    "fine-tuning": fine_tuning(three_augment=True, jitter=0.3, label_smoothing=0.1),
    "fine-tuning with AugMix": fine_tuning(AugMixing()),
    "fine-tuning with PRIME": fine_tuning(PrimeMixing()),
    "tent on a pool": adaptation(Tent.Config()),
    "shot_im on a pool": adaptation(ShotIM.Config()),
    "shot_pool": shot,
}

# Waits of one step, with the reason. Those before the first step, after the last one, once an epoch and once in a
# hundred steps are not counted.
SVD = "cuSOLVER tells the host whether a decomposition converged"
DRAWS = "numbers that decide how many others are drawn, and which operation an image gets"
EACH_STEP: dict[str, dict[tuple[str, str], tuple[int, str]]] = {
    "mmcr": {("read", "methods/selfsoup/objectives/mmcr.py:capacity_loss"): (1, SVD)},
    "mmcr_official": {("read", "methods/selfsoup/objectives/mmcr_official.py:manifold_loss"): (2, SVD)},
    "fine-tuning with AugMix": {("read", "methods/views/augmix.py:augmix"): (1, DRAWS)},
    "fine-tuning with PRIME": {("read", "methods/views/prime.py:draw"): (2, DRAWS)},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_waits_for_nothing_but_what_is_stated(name: str) -> None:
    few, many = (waits_of(lambda generator, steps=steps: TRAININGS[name](steps, generator)) for steps in (2, 4))
    more = {site: count - few.get(site, 0) for site, count in many.items() if count != few.get(site, 0)}
    assert more == {site: 2 * count for site, (count, _) in EACH_STEP.get(name, {}).items()}


def season_all(generator: torch.Generator) -> object:
    """Each way to learn or measure a soup, once."""
    schedule = season.Schedule(epochs=1, batch_size=8, layerwise=True)
    ingredients, own = [stock(0), stock(1)], [classifier(0), classifier(1)]
    return (
        season.self_seasoned(ingredients, pool(), season.SelfSeasoning(epochs=1, batch_size=8), generator),
        season.learned_soup(own, labelled(), schedule, generator),
        season.supervised_seasoned(ingredients, labelled(), season.SupervisedSeasoning(draws=2), generator),
        soup.greedy_soup(own, labelled(), soup.Greedy(), generator),
        soup.connectivity(own, labelled(), soup.Line(3), generator),
        soup.fisher_soup(own, labelled(), soup.Fisher(), generator),
        remeasured(own[:1], pool(), Remeasure(), generator),
    )


def test_soups_and_the_linear_probe_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they wait is no matter: they are short. A tensor in a wrong place is an error."""
    for free in (1 << 40, 0):
        monkeypatch.setattr(season, "_free_memory", lambda device, free=free: free)
        assert waits_of(season_all)
    for limit in (1 << 24, 0):
        monkeypatch.setattr(methods.training.finetune, "IN_MEMORY", limit)
        assert waits_of(lambda generator: probe([stock()], labelled(), Probe(), generator))


def test_seasoning_reads_ingredients_from_the_host_only_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each where they fit, else in every step, and with the same shares."""

    class Counted(dict[str, torch.Tensor]):
        reads = 0

        def __getitem__(self, name: str) -> torch.Tensor:
            Counted.reads += 1
            return super().__getitem__(name)

    def shares(free: int, epochs: int) -> tuple[int, list[float]]:
        monkeypatch.setattr(season, "_free_memory", lambda device: free)
        Counted.reads = 0
        own = [Weights(SMALL, Counted(stock(seed).tensors)) for seed in (0, 1)]
        found: list[season.Mixed] = []
        config = season.SelfSeasoning(epochs=epochs, batch_size=8)
        waits_of(lambda generator: found.append(season.self_seasoned(own, pool(), config, generator)))
        return Counted.reads, list(found[0].shares["all"])

    (few, one), (more, two) = shares(1 << 40, 1), shares(1 << 40, 3)
    assert few == more
    (short, without), (long, other) = shares(0, 1), shares(0, 3)
    assert long > short > few
    assert (one, two) == (without, other)


def test_an_epoch_waits_once_for_its_order() -> None:
    """Batches are read in a second thread and go through pinned memory."""
    one, three = (waits_of(lambda generator, steps=steps: TRAININGS["mae"](steps, generator)) for steps in (8, 24))
    more = {site: count - one.get(site, 0) for site, count in three.items() if count != one.get(site, 0)}
    assert more == {("read", "methods/training/loop.py:Batches.__next__"): 2}
