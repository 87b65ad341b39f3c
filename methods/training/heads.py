"""Heads on a frozen encoder: a linear probe, and nearest neighbours as in evaluations of self-supervised encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from methods.base import Job, Labelled, Work
from methods.identity import component
from methods.nets import flops
from methods.nets.weights import Weights
from methods.training.finetune import Probe, frozen, probe

Head = Literal["probe", "knn"]


@component("methods.heads.Neighbours")
@dataclass(frozen=True)
class Neighbours:
    """Options of nearest neighbours; 20 and 0.07 are those of arXiv:1805.01978's successors and of arXiv:2602.02890."""

    neighbours: int = 20
    temperature: float = 0.07


def headed(encoder: Job | Weights, stock: Weights, source: Labelled, head: Head, l2: float) -> Job:
    """Return the job that puts a head on an encoder, which stays as it is. l2: that of a probe (see Probe).

    `stock` is what the encoder started from: the network whose features are computed once for each labelled image.
    """
    name = encoder.label if isinstance(encoder, Job) else "the stock"
    work = Work(len(source) * flops.forward(stock.architecture))
    if head == "probe":
        return Job(probe, Probe(l2), (encoder,), source, f"linear probe of {name}", work=work)
    return Job(nearest_neighbours, Neighbours(), (encoder,), source, f"neighbours of {name}", work=work)


@component("methods.heads.nearest_neighbours")
def nearest_neighbours(
    inputs: Sequence[Weights], data: Labelled, config: Neighbours, generator: torch.Generator
) -> Weights:
    """Return the encoder of `inputs[0]`, unchanged, with the labelled images that vote; a job function.

    See `methods.nets.weights.NeighbourClassifier`. Draws no random numbers; `generator` only names the device. Holds
    4 bytes for each feature of each image. Raises TypeError for images without labels, ValueError for images of another
    size.
    """
    stock = inputs[0]
    encoder, features = frozen(stock, data, generator.device)
    bank = torch.cat([functional.normalize(found, dim=1).cpu() for found in features])
    settings = torch.tensor([data.classes, config.neighbours, config.temperature], dtype=torch.float64)
    voters = {"neighbours.bank": bank, "neighbours.labels": data.labels.cpu(), "neighbours.settings": settings}
    return Weights(stock.architecture, encoder | voters)
