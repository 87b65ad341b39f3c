"""TENT and SHOT-IM for several epochs over the pool of shifted images, before the stream: controls for a Self-Soup.

Online methods see each scored image once. These methods see the same images as the ingredients of a Self-Soup, without
labels and for several passes, and then predict without further changes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from methods.adapters.shot_im import ShotIM
from methods.adapters.tent import Tent
from methods.base import Adapter, Checkpointer, Job, Labelled, Recipe, Unlabelled, Unsupported, Work
from methods.identity import component
from methods.limits import Count, FiniteNotNegative
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.recipes.source import SourceOptions, source_classifier
from methods.training.loading import loaded
from methods.training.loop import Batches, check_size

_ADAPTERS: Mapping[type, type[Adapter]] = {Tent.Config: Tent, ShotIM.Config: ShotIM}


@component("methods.offline.Adaptation")
@dataclass(frozen=True)
class Adaptation:
    """How to adapt on a pool: the options of an adapter, the number of passes and the batch size."""

    rule: Any = field(default_factory=Tent.Config)
    passes: int = 5
    batch_size: int = 64


@component("methods.offline.adapt")
def adapt(
    inputs: Sequence[Weights],
    data: Unlabelled,
    config: Adaptation,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
) -> Weights:
    """Return the classifier `inputs[0]` after an adapter has seen a pool in random order; a resumable job function.

    Every pass has a new order; its ragged last batch is dropped unless it is the only one. Raises TypeError for
    labelled images, ValueError for images of another size, Unsupported if the adapter cannot work on the model,
    FloatingPointError if it diverges.
    """
    if isinstance(data, Labelled):
        raise TypeError("adaptation never sees labels; pass data.without_labels()")
    check_size(data, inputs[0].architecture)
    model = Classifier.of(inputs[0]).to(generator.device)
    adapter = _ADAPTERS[type(config.rule)](model, config.rule, generator)
    adapter.prepare()
    order = Batches(len(data), config.batch_size, generator, data.images.device, drop_last=True)
    state = keep.load() if keep is not None else None
    done = 0
    if state is not None:
        done = state["step"]
        adapter.load_state_dict(state["adapter"])
        order.load_state_dict(state["order"])
    steps = steps_of(config, len(data))
    for step, (_, images) in zip(range(done, steps), loaded(data.images, order, generator.device), strict=False):
        adapter.predict(images.float() / 255)
        if keep is not None and step + 1 < steps and keep.due():
            # The adapter's state includes the generator, which also draws the order.
            keep.save({"step": step + 1, "adapter": adapter.state_dict(), "order": order.state_dict()})
    if not all(torch.isfinite(parameter).all() for parameter in adapter.model.parameters()):
        raise FloatingPointError(f"{type(adapter).__name__} diverged on the pool; lower its rate")
    adapted = adapter.model
    assert isinstance(adapted, Classifier)
    return adapted.weights()


def steps_of(config: Adaptation, count: int) -> int:
    """Return the number of batches to adapt on."""
    return config.passes * max(1, count // config.batch_size)


def need_pool(pool: Unlabelled | None) -> Unlabelled:
    """Return the pool. Raises Unsupported where there is none."""
    if pool is None:
        raise Unsupported("this method adapts on unlabelled images; run it on a shift that gives an adapt half")
    return pool


@dataclass(frozen=True)
class PoolOptions(SourceOptions):
    """Options of the source classifier (methods.recipes.source.SourceOptions) and of the adaptation.

    rate: step size on the pool.
    passes: passes over the whole pool.
    batch: images in a batch of the pool.
    """

    rate: FiniteNotNegative = 1e-4
    passes: Count = 5
    batch: Count = 64


class _OnPool(Recipe):
    """Fine-tunes the source classifier, then runs an adapter on the pool."""

    pool = "shifted"

    @dataclass(frozen=True)
    class Config(PoolOptions):
        """Options of the source classifier and of the adaptation."""

    @abstractmethod
    def rule(self) -> Any:
        """Return the options of the adapter."""

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        pool = need_pool(pool)
        config = self.config
        adaptation = Adaptation(self.rule(), config.passes, config.batch)
        steps = steps_of(adaptation, len(pool))
        images = steps * min(config.batch, len(pool))
        head = 3 * flops.layers((stock.architecture.dim, source.classes))
        work = Work(images * (flops.training(stock.architecture) + head), steps)
        tuned = source_classifier(stock, source, config)
        label = f"{type(self).__name__} at rate {config.rate:g}"
        return {"": Job(adapt, adaptation, (tuned,), pool, label, resumable=True, work=work)}


class PoolTent(_OnPool):
    """TENT for several epochs over the pool (Wang et al. 2021, arXiv:2006.10726; its offline setting), with Adam."""

    search = {"rate": (3e-5, 1e-4, 3e-4, 1e-3), "passes": (1, 3, 5)}

    def rule(self) -> Tent.Config:
        return Tent.Config(lr=self.config.rate, optimizer="adam")


class PoolShotIM(_OnPool):
    """Information maximisation for several epochs over the pool, as published (Liang et al. 2020, arXiv:2002.08546)."""

    search = {"rate": (1e-5, 3e-5, 1e-4, 3e-4), "passes": (1, 3, 5)}

    def rule(self) -> ShotIM.Config:
        return ShotIM.Config(lr=self.config.rate)
