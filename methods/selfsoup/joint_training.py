"""Joint training of several ingredients: every image is decoded and corrupted once and used by all of them.

The ingredients share no parameters, so a step on the sum of their losses is a step of each: AdamW works entry by entry.
They share the order of the images; views, masks and heads have random draws of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Checkpointer, Labelled, Unlabelled, Unsupported
from methods.data_parallel import ALONE, DataParallelGroup
from methods.identity import component
from methods.nets.weights import Normalise, Weights
from methods.selfsoup.ingredients import Ingredient, pool_order, started, tensors_of
from methods.training.loading import loaded_for_views
from methods.training.loop import Progress, check_size, train
from methods.views.ssl_views import Stretched


@component("methods.selfsoup.lockstep.Together")
@dataclass(frozen=True)
class Together:
    """Ingredients of equal length, batch size and precision that share their images. Raises Unsupported otherwise."""

    ingredients: tuple[Ingredient, ...]
    batch_size: int = 128

    def __post_init__(self) -> None:
        kinds = {(i.steps, i.batch_size, i.weight_decay, i.bf16, i.compile) for i in self.ingredients}
        if len(kinds) != 1:
            raise Unsupported(
                "ingredients in lockstep need one number of steps and one batch size; or leave lockstep out"
            )
        if any((ingredient.accumulate or 1) > 1 for ingredient in self.ingredients):
            raise Unsupported("ingredients in lockstep take whole batches; leave accumulate or lockstep out")


@component("methods.selfsoup.lockstep.Member")
@dataclass(frozen=True)
class Member:
    """The number of the encoder to select."""

    number: int


class MemberDraws:
    """A generator whose state can be saved."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> Tensor:
        return self.generator.get_state()

    def load_state_dict(self, state: Tensor) -> None:
        self.generator.set_state(state)


@component("methods.selfsoup.lockstep.inter_train_together")
def inter_train_together(
    inputs: Sequence[Weights],
    data: Unlabelled,
    config: Together,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Train all encoders (`members.0.encoder.*`, …) of the ingredients; a job function, resumable and shared.

    An ingredient's weights depend on its position in the list, not on the other ingredients. Raises as `inter_train`
    does.
    """
    if isinstance(data, Labelled):
        raise TypeError("self-supervised training never sees labels; pass data.without_labels()")
    stock, device = inputs[0], generator.device
    check_size(data, stock.architecture)
    seeds = [torch.randint(2**62, (), generator=generator, device=device) for _ in range(1 + len(config.ingredients))]
    shared, *own = (torch.Generator(device=device).manual_seed(int(seed)) for seed in seeds)
    normalise = Normalise(stock.architecture.mean, stock.architecture.std).to(device)
    members = [started(stock, ingredient, draws) for ingredient, draws in zip(config.ingredients, own, strict=True)]
    encoders, objectives, groups = zip(*members, strict=True)
    pipelines = [
        objective.pipelines(ingredient.views)
        for ingredient, objective in zip(config.ingredients, objectives, strict=True)
    ]
    orders = [pool_order(data, objective, config.batch_size, shared, parallel=parallel) for objective in objectives]
    order = orders[0]

    def stream() -> Iterator[tuple[Tensor, Stretched | None]]:
        own = lambda indices: parallel.share(len(indices)).own(indices)  # noqa: E731
        for _, images, stretched in loaded_for_views(data, stock.architecture.image_size, order, device, own):
            yield images, stretched

    def loss(batch: tuple[Tensor, Stretched | None]) -> Tensor:
        images, stretched = batch
        total = torch.zeros((), device=device)
        for encoder, objective, makers, draws in zip(encoders, objectives, pipelines, own, strict=True):
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                views = [normalise(make(images, draws, objective.share, stretched)) for make in makers]
            total = total + objective.loss(encoder, views, draws)
        return total

    first = config.ingredients[0]
    parts: list[Any] = [*encoders, *objectives, order, *map(MemberDraws, own)]
    train(
        loss,
        stream(),
        [group for each in groups for group in each],
        steps=first.steps,
        weight_decay=first.weight_decay,
        bf16=first.bf16,
        progress=Progress(keep, parts, shared) if keep is not None else None,
        parallel=parallel,
    )
    tensors: dict[str, Tensor] = {}
    for number, encoder in enumerate(encoders):
        tensors |= tensors_of(encoder, f"members.{number}.encoder")
    return Weights(stock.architecture, tensors)


@component("methods.selfsoup.lockstep.member")
def member(inputs: Sequence[Weights], data: None, config: Member, generator: torch.Generator | None = None) -> Weights:
    """Select one of the encoders of `inter_train_together`; a job function."""
    return Weights(inputs[0].architecture, inputs[0].part(f"members.{config.number}"))
