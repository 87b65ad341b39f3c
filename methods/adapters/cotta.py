"""CoTTA: continual test-time adaptation with an averaged teacher and stochastic restoration (Wang et al. 2022)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.adapters.common.teachers import (
    TeacherOptions,
    build_optimizer,
    cross_entropy_to,
    descend,
    generators,
    learnable,
    move_towards,
    symmetric_cross_entropy,
)
from methods.base import Adapter, Source, Unsupported
from methods.limits import Fraction, FractionBelowOne, NotNegative
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import use_batch_statistics
from methods.views.cotta_views import draw_view, make_view


class Cotta(Adapter):
    """A student learns the predictions of its running average; single weights return to the source at random.

    Wang et al. 2022, arXiv:2203.13591, algorithm 1. If the mean confidence of the source model (the anchor) on a batch
    is below `threshold`, the target is the mean of the teacher's logits over `views` random views of the batch, else
    the teacher's logits of the batch itself. The student steps towards the target, the teacher follows the student, and
    each weight of the student returns to the source with probability `restore`. The prediction is the target, made
    before the step. In every module the parameters named weight and bias are learnt, as in the release: tokens and
    position embeddings are not. BatchNorm uses the statistics of each batch in student, teacher and anchor; dropout and
    stochastic depth stay off.

    Views are made only for batches that need them (the release for CIFAR always makes them). Costs 3 forward passes, or
    2 + `views` if the confidence is low (2 with a threshold of 0), and one backward pass over all parameters.
    """

    tested_against = "golden"
    search = {
        "lr": (1e-4, 1e-3, 1e-2),
        "optimizer": ("sgd", "adam"),
        "restore": (0.001, 0.01),
        "threshold": (0.1, 0.72, 0.92),
    }
    checked_with = {"views": 2, "threshold": 0.6}
    presets = {
        "imagenet-bn": {"lr": 0.01, "restore": 0.001, "threshold": 0.1},
        "imagenet-ln": {"lr": 5e-3, "nesterov": False, "restore": 0.001, "threshold": 0.1},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam", "restore": 0.01, "threshold": 0.92, "symmetric": False},
        "cifar100-bn": {"lr": 1e-3, "optimizer": "adam", "restore": 0.01, "threshold": 0.72, "symmetric": False},
    }

    @dataclass(frozen=True)
    class Config(TeacherOptions):
        """Defaults of the release for ImageNet.

        lr: step size; 0.01 with SGD for ImageNet (batch 64), 1e-3 with Adam for CIFAR (batch 200);
            the release keeps it for other batch sizes.
        teacher_momentum: how much of the teacher stays at each step; in [0, 1].
        restore: share of the weights that return to the source at each step, drawn one by one; in [0, 1).
        threshold: mean confidence of the anchor below which views are averaged; 0 never does, above 1 always.
        views: number of views; 32 in the paper.
        symmetric: the mean of both cross-entropies between target and student, as for ImageNet, instead of the
            student's to the target, as for CIFAR.
        """

        lr: float = 0.01
        teacher_momentum: Fraction = 0.999
        restore: FractionBelowOne = 0.001
        threshold: NotNegative = 0.1
        views: int = 32
        symmetric: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check(self.views >= 1, "views", "at least 1 (set threshold to 0 for no views)")

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without parameters named weight or bias."""
        use_batch_statistics(self.model)
        self.teacher, self.anchor = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.parameters = learnable(self.model)
        self.averages, self.originals = learnable(self.teacher), learnable(self.anchor)
        if not self.parameters:
            raise Unsupported("cotta learns weights and biases and this model has none; choose a model with parameters")
        self.optimizer = build_optimizer(self.parameters, self.config)
        self.host_draws, self.device_draws = generators(self.generator, self.model)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the teacher's logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            target = self.teach(images)
            logits: Tensor = self.model(images)
            losses = (symmetric_cross_entropy if self.config.symmetric else cross_entropy_to)(target, logits)
            self.learn(losses.mean())
        move_towards(self.averages, self.parameters, 1 - self.config.teacher_momentum)
        self.restore()
        return target

    def learn(self, loss: Tensor) -> None:
        """Take one step of the student down the gradient of a scalar loss."""
        descend(loss, self.optimizer)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Return the teacher's logits [n, classes], averaged over views of the batch if the anchor is unsure of it."""
        if self.config.threshold > 0:
            confidence = at_least_float32(self.anchor(images)).softmax(1).amax(1).mean()
            if bool(confidence < self.config.threshold):
                return torch.stack([self.teacher(self.view(images)) for _ in range(self.config.views)]).mean(0)
        logits: Tensor = self.teacher(images)
        return logits

    def view(self, images: Tensor) -> Tensor:
        """Return one random view of a batch, [n, 3, h, w]."""
        return make_view(images, draw_view(self.host_draws, flip=self.config.flip), self.device_draws)

    @torch.no_grad()
    def restore(self) -> None:
        """Return each weight to the source independently with probability `restore`."""
        sizes = [parameter.numel() for parameter in self.parameters]
        drawn = draw_places(sizes, self.config.restore, self.host_draws, self.device_draws)
        for parameter, original, flat in zip(self.parameters, self.originals, drawn, strict=True):
            if len(flat):
                places = torch.unravel_index(flat, parameter.shape)
                parameter[places] = original[places]


def draw_places(
    sizes: Sequence[int], probability: float, host_draws: torch.Generator, device_draws: torch.Generator
) -> list[Tensor]:
    """Draw positions in flat tensors of these sizes, each with a probability: int64 [any number] for each size.

    A Poisson number of positions drawn with replacement, with mean -ln(1 - probability) for each position, hits every
    position independently with exactly this probability, at a cost proportional to the hits. `host_draws` is a
    generator on the CPU, `device_draws` one on the device of the result.
    """
    means = -math.log1p(-probability) * torch.tensor(sizes, dtype=torch.float64)
    counts = torch.poisson(means, generator=host_draws).long().tolist()
    return [
        torch.randint(size, (count,), generator=device_draws, device=device_draws.device)
        for size, count in zip(sizes, counts, strict=True)
    ]
