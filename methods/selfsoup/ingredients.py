"""Inter-training: continue a stock by self-supervision on unlabelled images to make one ingredient of a Self-Soup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from methods.base import Checkpointer, Labelled, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup
from methods.identity import component
from methods.nets.weights import Normalise, Weights
from methods.selfsoup.objectives import base, mae
from methods.training.loading import Order, loaded_for_views
from methods.training.loop import Batches, ParameterGroup, Progress, check_size, compile_blocks, train
from methods.views.ssl_views import Views


@component("methods.selfsoup.ingredients.Ingredient")
@dataclass(frozen=True)
class Ingredient:
    """Options of one ingredient (Fuller et al. 2026, arXiv:2602.02890, section 4 and the released code).

    lr: peak learning rate of encoder and head alike; warm-up takes the fraction `warmup` of the steps for the encoder
    and `head_warmup` for the head or decoder, each followed by a cosine to 0. bf16: autocast on a GPU. accumulate: cut
    each batch into this many parts; images are compared only within a part (None: one). compile: compile the blocks.
    """

    objective: base.Config = field(default_factory=mae.Config)
    steps: int = 300
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    head_warmup: float = 0.01
    views: Views = field(default_factory=Views)
    bf16: bool = False
    accumulate: int | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps and batch of an ingredient must be at least 1, not {self.steps}, {self.batch_size}"
            )
        for name, value in (("rate", self.lr), ("decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"the {name} of an ingredient must be a finite number of at least 0, not {value}")
        for name, value in (("warmup", self.warmup), ("head_warmup", self.head_warmup)):
            if not 0 <= value <= 1:
                raise ValueError(f"the {name} of an ingredient must lie in [0, 1], not {value}")

    @property
    def cost(self) -> float:
        """Time of one step relative to an MAE step of 128 images."""
        return self.objective.cost * self.batch_size / 128


@component("methods.selfsoup.ingredients.inter_train")
def inter_train(
    inputs: Sequence[Weights],
    data: Unlabelled,
    config: Ingredient,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Continue the encoder of `inputs[0]` by self-supervision; a job function, resumable and shared (methods.base.Job).

    Starts from `encoder.*` and, where the objective can use it, `decoder.*` of the stock; returns `encoder.*` alone.
    Runs on `generator.device`; the images may lie elsewhere. Batches are drawn without replacement in each epoch; the
    ragged last one is dropped unless the pool is smaller than a batch.

    Raises TypeError for labelled images, ValueError for images of another size, for batches (or their parts) that are
    too small for the objective and for batches that cannot be cut, FloatingPointError if training diverges.
    """
    stock = inputs[0]
    parts = config.accumulate or 1
    encoder, objective, groups = started(stock, config, generator)
    if parts > 1 and objective.once_a_step:
        raise ValueError(
            f"{type(objective).__name__} averages once a step, so its batches stay whole; set accumulate to 1"
        )
    order = pool_order(data, objective, config.batch_size, generator, parts, parallel)
    stream = view_batches(stock, data, config.views, objective, order, generator, parallel, parts)
    train(
        lambda views: objective.loss(encoder, views, generator),
        stream,
        groups,
        steps=config.steps,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        accumulate=parts,
        progress=Progress(keep, (encoder, objective, order), generator) if keep is not None else None,
        parallel=parallel,
    )
    return Weights(stock.architecture, tensors_of(encoder, "encoder"))


def started(
    stock: Weights, ingredient: Ingredient, generator: torch.Generator
) -> tuple[nn.Module, base.Objective, list[ParameterGroup]]:
    """Return the encoder of the stock, the objective that an ingredient trains, and what is trained of both."""
    encoder = stock.architecture.build().to(generator.device)
    encoder.load_state_dict(stock.part("encoder"))
    objective = ingredient.objective.build(stock, generator)
    objective.prepare(encoder, ingredient.steps)
    if ingredient.compile:
        compile_blocks(encoder, objective)
    rises = ((encoder, ingredient.warmup), (objective, ingredient.head_warmup))
    groups = [
        ParameterGroup([p for p in module.parameters() if p.requires_grad], ingredient.lr, rise)
        for module, rise in rises
    ]
    return encoder, objective, groups


def pool_order(
    data: Unlabelled,
    objective: base.Objective,
    batch_size: int,
    generator: torch.Generator,
    parts: int = 1,
    parallel: DataParallelGroup = ALONE,
) -> Batches:
    """Return index batches of a pool, all of one size, and tell the objective its share of them.

    Raises ValueError where batches, or their parts, are too small or cannot be cut.
    """
    whole = min(batch_size, len(data))
    size = whole // parts
    if size < objective.smallest_batch:
        raise ValueError(
            f"{type(objective).__name__} compares images with one another and needs batches of at least "
            f"{objective.smallest_batch}, not {size}"
        )
    objective.share = replace(parallel.share(whole, parts), parts=1)
    return Batches(len(data), batch_size, generator, data.images.device, drop_last=True)


def view_batches(
    stock: Weights,
    data: Unlabelled,
    views: Views,
    objective: base.Objective,
    order: Order,
    generator: torch.Generator,
    parallel: DataParallelGroup = ALONE,
    parts: int = 1,
) -> Iterator[list[Tensor]]:
    """Yield batches of normalised views on the generator's device, as many views of each image as the objective takes.

    Each process of a group gets its share of each of the `parts` into which a batch will be cut.

    Raises TypeError for labelled images, ValueError for images of another size, before the first batch.
    """
    if isinstance(data, Labelled):
        raise TypeError("self-supervised training never sees labels; pass data.without_labels()")
    check_size(data, stock.architecture)
    normalise = Normalise(stock.architecture.mean, stock.architecture.std).to(generator.device)
    device = generator.device
    pipelines = objective.pipelines(views)

    def stream() -> Iterator[list[Tensor]]:
        def own(indices: Tensor) -> Tensor:
            return parallel.share(len(indices), parts).own(indices)

        for indices, images, stretched in loaded_for_views(data, stock.architecture.image_size, order, device, own):
            share = parallel.share(len(indices), parts)
            yield [normalise(pipeline(images, generator, share, stretched)) for pipeline in pipelines]

    return stream()


def tensors_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return copies on the CPU of a module's tensors, with `prefix` before their names."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
