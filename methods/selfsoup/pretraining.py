"""Pre-training of a stock from scratch: masked autoencoding (He et al. 2022, arXiv:2111.06377) or another objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from methods.base import Checkpointer, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup
from methods.identity import component
from methods.nets.weights import AnyArchitecture, Architecture, Weights
from methods.selfsoup.ingredients import pool_order, tensors_of, view_batches
from methods.selfsoup.objectives import base, mae
from methods.training.loop import ParameterGroup, Progress, train
from methods.views.ssl_views import Views


@component("methods.pretrain.Pretraining")
@dataclass(frozen=True)
class Pretraining:
    """Options of pre-training a stock; weight decay, betas, mask ratio and crops are the paper's (table 8).

    lr: peak learning rate. stop: end after this many steps of the schedule, to check a recipe at a fraction of its
    cost. objective: the loss, None for masked autoencoding with the mask ratio and pixels given here.
    """

    architecture: AnyArchitecture = field(default_factory=Architecture)
    steps: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.1
    mask_ratio: float = 0.75
    norm_pix: bool = False
    views: Views = field(default_factory=lambda: Views(scale=(0.2, 1.0), three_augment=False, jitter=0.0))
    bf16: bool = False
    stop: int | None = None
    objective: base.Config | None = None


@component("methods.pretrain.pretrain")
def pretrain(
    inputs: Sequence[Weights],
    data: Unlabelled,
    config: Pretraining,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Train a stock from random weights; a resumable, shared job function (methods.base.Job).

    Returns `encoder.*` and, after masked autoencoding, `decoder.*`. `inputs` must be empty. Runs on `generator.device`;
    the generator also draws the initial weights.

    Raises TypeError for labelled images, ValueError for images of another size or if `inputs` is not empty,
    FloatingPointError if training diverges.
    """
    if inputs:
        raise ValueError("pre-training takes no input weights; to continue from weights use inter_train")
    encoder = config.architecture.initial(generator)
    start = Weights(config.architecture, tensors_of(encoder, "encoder"))
    learnt_by = config.objective or mae.Config(config.mask_ratio, config.norm_pix)
    objective = learnt_by.build(start, generator)
    objective.prepare(encoder, config.steps)
    parameters = [p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    order = pool_order(data, objective, config.batch_size, generator, parallel=parallel)
    train(
        lambda views: objective.loss(encoder, views, generator),
        view_batches(start, data, config.views, objective, order, generator, parallel),
        [ParameterGroup(parameters, config.lr, config.warmup)],
        steps=config.steps,
        weight_decay=config.weight_decay,
        betas=config.betas,
        bf16=config.bf16,
        stop=config.stop,
        progress=Progress(keep, (encoder, objective, order), generator) if keep is not None else None,
        parallel=parallel,
    )
    decoder = objective.decoder if isinstance(objective, mae.MaskedAutoencoding) else nn.Module()
    return Weights(config.architecture, tensors_of(encoder, "encoder") | tensors_of(decoder, "decoder"))
