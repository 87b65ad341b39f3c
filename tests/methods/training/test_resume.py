"""A training that is killed at any step and resumed gives bit-identical weights to an uninterrupted one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.adapters.shot_im import ShotIM
from methods.adapters.tent import Tent
from methods.base import Checkpointer, Labelled, Unlabelled
from methods.nets.small_resnets import SmallResNet
from methods.nets.weights import Architecture, Classifier, Weights
from methods.recipes import prime
from methods.recipes.augmix import AugMixing
from methods.recipes.pool_adaptation import Adaptation, adapt
from methods.recipes.shot_pool import Shot, shot
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.joint_training import Together, inter_train_together
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.training.finetune import FineTune, Repeat, fine_tune
from methods.training.supervised import Course, Supervised, train_classifier

SMALL = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=8, decoder_heads=2)
STEPS = 7


class Killed(Exception):
    pass


class Memory:
    """Keeps every `every`-th state and dies when `dies_after` states were kept."""

    def __init__(self, every: int = 1, dies_after: int | None = None) -> None:
        self.every, self.dies_after = every, dies_after
        self.state: dict[str, Any] | None = None
        self.steps = self.saved = 0
        self.losses = torch.empty(0)

    def load(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.state)

    def due(self) -> bool:
        self.steps += 1
        return self.steps % self.every == 0

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)
        self.saved += 1
        if self.saved == self.dies_after:
            raise Killed

    def finished(self, losses: Tensor) -> None:
        self.losses = losses


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


POOL = Unlabelled(pixels(20), "pool")
SOURCE = Labelled(pixels(20), "source", torch.arange(20) % 3, 3)


def stock() -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(SMALL, 3).weights()


Training = Callable[[Checkpointer | None], Weights]


def trainings() -> dict[str, Training]:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(11)

    found: dict[str, Training] = {}
    for name, module in OBJECTIVES.items():
        narrow: dict[str, int] = {"hidden": 32, "out": 16} if name.endswith("_official") else {}
        options = Ingredient(module.Config(**narrow), steps=STEPS, batch_size=8)
        found[name] = lambda keep, options=options: inter_train([stock()], POOL, options, seeded(), keep)
    average = OBJECTIVES["mocov3"].Config(symmetric=True, momentum=0.5)
    options = Ingredient(average, steps=STEPS, batch_size=8)
    found["mocov3 with momentum"] = lambda keep, options=options: inter_train([stock()], POOL, options, seeded(), keep)
    average = OBJECTIVES["mmcr_official"].Config(momentum=0.5, hidden=32, out=16)
    options = Ingredient(average, steps=STEPS, batch_size=8)
    found["mmcr with momentum"] = lambda keep, options=options: inter_train([stock()], POOL, options, seeded(), keep)
    pair = Together((Ingredient(steps=STEPS, batch_size=8), Ingredient(OBJECTIVES["mmcr"].Config(), STEPS, 8)), 8)
    found["lockstep"] = lambda keep: inter_train_together([stock()], POOL, pair, seeded(), keep)
    for rule in (Tent.Config(lr=1e-2), ShotIM.Config(lr=1e-2)):
        found[type(rule).__qualname__] = lambda keep, rule=rule: adapt(
            [stock()], POOL, Adaptation(rule, passes=4, batch_size=8), seeded(), keep
        )
    found["shot"] = lambda keep: shot([stock()], POOL, Shot(passes=4, batch_size=8, rate=1e-2), seeded(), keep)
    found["fine_tune"] = lambda keep: fine_tune([stock()], SOURCE, FineTune(epochs=3, batch_size=8), seeded(), keep)
    for augmentation in (AugMixing(), AugMixing(jsd=False), prime.PrimeMixing()):
        tuning = Repeat(epochs=3, batch_size=8, augmentation=augmentation)
        name = f"fine_tune with {augmentation.title}{'' if augmentation.jsd else ' alone'}"
        found[name] = lambda keep, tuning=tuning: fine_tune([stock()], SOURCE, tuning, seeded(), keep)
    found["pretrain"] = lambda keep: pretrain((), POOL, Pretraining(SMALL, steps=STEPS, batch_size=8), seeded(), keep)
    for norm in ("bn", "gn"):
        shape = SmallResNet(8, norm=norm, image_size=16)
        scratch = Supervised(shape, epochs=4, batch_size=8, padding=2)
        found[f"from scratch with {norm}"] = lambda keep, scratch=scratch: train_classifier(
            (), SOURCE, scratch, seeded(), keep, Course(SOURCE)
        )
    return found


@pytest.mark.parametrize("dies_after", [1, 2, 3, 4, 5])
def test_accuracies_of_epochs_survive_a_kill(dies_after: int) -> None:
    """Two steps an epoch: a kill falls at the end of an epoch, before it is measured, and inside one."""
    config = Supervised(SmallResNet(8, image_size=16), epochs=4, batch_size=8, padding=2)
    courses = [Course(SOURCE) for _ in range(3)]
    keep = Memory(dies_after=dies_after)

    def run(course: Course, keep: Memory | None) -> None:
        train_classifier((), SOURCE, config, torch.Generator().manual_seed(2), keep, course)

    run(courses[0], None)
    with pytest.raises(Killed):
        run(courses[1], keep)
    run(courses[2], keep)
    assert len(courses[0].learnt) == len(courses[0].held_out) == 4
    assert courses[2].state_dict() == courses[0].state_dict()


@pytest.mark.parametrize("name", list(trainings()))
def test_killed_and_continued_equals_undisturbed(name: str) -> None:
    training = trainings()[name]
    whole = Memory(every=100)
    expected = training(whole)
    assert training(None).digest == expected.digest
    for dies_after in (1, 3, 5):
        checkpointer = Memory(dies_after=dies_after)
        with pytest.raises(Killed):
            training(checkpointer)
        assert checkpointer.state is not None
        assert checkpointer.state["step"] == dies_after
        assert training(checkpointer).digest == expected.digest, dies_after
        assert torch.equal(checkpointer.losses, whole.losses), dies_after


def test_killed_again_and_again() -> None:
    training = trainings()["mae"]
    checkpointer = Memory(dies_after=1)
    for _ in range(STEPS - 1):
        checkpointer.saved = 0
        with pytest.raises(Killed):
            training(checkpointer)
    assert training(checkpointer).digest == training(None).digest
