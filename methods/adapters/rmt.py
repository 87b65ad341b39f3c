"""RMT: a robust mean teacher for continual and gradual test-time adaptation (Doebler, Marsden and Yang 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.adapters.common.prototypes import build_projector, class_means, contrast, nearest
from methods.adapters.common.teachers import (
    TeacherOptions,
    build_optimizer,
    descend,
    generators,
    learnable,
    move_towards,
    symmetric_cross_entropy,
)
from methods.base import Adapter, Source, SourceBatch
from methods.limits import Count, Fraction, NotNegative, Positive, Whole
from methods.losses import at_least_float32, gradients, recordable
from methods.nets.feature_head_split import split
from methods.norms import use_batch_statistics
from methods.views.cotta_views import draw_view, make_view


@dataclass(frozen=True)
class ContrastOptions(TeacherOptions):
    """Options of a method that gathers features around source prototypes.

    lr: step size; 0.01 with SGD for ImageNet (batch 64), 1e-3 with Adam for CIFAR (batch 200);
        the release keeps it for other batch sizes.
    contrast_weight: weight of the contrast, added to the loss to the teacher or the source model; at least 0.
    temperature: divisor of the cosines in the contrast; above 0.
    projection: width of the projector.
    prototype_images: largest number of labelled source images for the class means.
    """

    contrast_weight: NotNegative = 1.0
    temperature: Positive = 0.1
    projection: Count = 128
    prototype_images: Count = 100_000


class Rmt(Adapter):
    """A student learns its average's predictions, gathers features around source prototypes, and replays the source.

    Doebler, Marsden and Yang 2023, arXiv:2211.13081, equations 1 to 6. The student steps on three losses: the symmetric
    cross-entropy of the batch and of a random view of it to the teacher; the contrast (see `prototypes.contrast`) of
    three vectors for each image, the projections of the nearest source prototype and of the features of the batch and
    of the view; and the cross-entropy of a labelled source batch. The teacher follows the student. The prediction is
    the sum of the logits of both from before the step. In every module the parameters named weight and bias are learnt.
    BatchNorm uses the statistics of each batch; dropout and stochastic depth stay off.

    Before the stream, prototypes are measured (one forward pass over `prototype_images`), and student and teacher warm
    up on `warm_up_images` at a rate that grows to `lr` (two forward passes and one backward pass each); a reset returns
    to the warmed-up state. A batch costs 4 forward passes, one of them the teacher's, and 3 backward passes.
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "optimizer": ("sgd", "adam"), "contrast_weight": (0.0, 0.5, 1.0)}
    checked_with = {"lr": 0.005, "warm_up_images": 8, "projection": 8}
    presets = {
        "imagenet-bn": {"lr": 0.01},
        "imagenet-gn": {"lr": 0.01},
        "imagenet-ln": {"lr": 0.01},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam"},
    }

    @dataclass(frozen=True)
    class Config(ContrastOptions):
        """Defaults of the release for ImageNet.

        source_weight: weight of the loss on source images, added to the loss to the teacher; at least 0.
        teacher_momentum: share of the teacher that stays at each step; in [0, 1].
        warm_up_images: largest number of source images to warm up on; 0 for none.
        """

        lr: float = 0.01
        source_weight: NotNegative = 1.0
        teacher_momentum: Fraction = 0.999
        warm_up_images: Whole = 50_000

    def configure(self, source: Source | None) -> None:
        """Raises ValueError without labelled source images, Unsupported for a model without one linear head."""
        use_batch_statistics(self.model)
        self.parts = split(self.model)
        self.prototypes = class_means(self.parts, source, self.config.prototype_images, "rmt")
        assert source is not None
        self.source, self.replayed = source, 0
        self.host_draws, self.device_draws = generators(self.generator, self.model)
        self.projector = build_projector(self.prototypes, self.config.projection, self.host_draws)
        self.teacher = copy.deepcopy(self.model)
        self.parameters, self.averages = learnable(self.model), learnable(self.teacher)
        self.optimizer = build_optimizer([*self.parameters, *self.projector.parameters()], self.config)
        self.warm_up()

    def warm_up(self) -> None:
        """Train student and teacher on source images, at a rate that grows in equal steps to `lr`."""
        if self.config.warm_up_images == 0:
            return
        steps = min(len(self.source), max(1, self.config.warm_up_images // len(self.source[0].images)))
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * ((step + 1) / steps)
            images = recordable(self.replay().images)
            with gradients():
                self.step(symmetric_cross_entropy(self.teach(images), self.model(images)).mean())

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the sum of both models' logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            target = self.teach(images)
            view = make_view(images, draw_view(self.host_draws, flip=self.config.flip), self.device_draws)
            features, logits = self.parts(images)
            features_of_view, logits_of_view = self.parts(view)
            losses = symmetric_cross_entropy(target, logits) + symmetric_cross_entropy(target, logits_of_view)
            vectors = torch.stack([nearest(self.prototypes, at_least_float32(features)), features, features_of_view])
            loss = 0.5 * losses.mean() + self.config.contrast_weight * contrast(
                self.projector(vectors), self.config.temperature
            )
            if self.config.source_weight > 0:
                source_images, labels = self.replay()
                assert labels is not None
                replayed = at_least_float32(self.model(recordable(source_images)))
                loss = loss + self.config.source_weight * cross_entropy(replayed, labels)
            self.step(loss)
        return logits.detach() + target

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Return the teacher's logits, [n, classes]."""
        logits: Tensor = self.teacher(images)
        return logits

    def replay(self) -> SourceBatch:
        """Return the next labelled source batch, cycling through the source."""
        batch = self.source[self.replayed % len(self.source)]
        self.replayed += 1
        return batch

    def step(self, loss: Tensor) -> None:
        """Step the student down the gradient, then move the teacher towards the student."""
        descend(loss, self.optimizer)
        move_towards(self.averages, self.parameters, 1 - self.config.teacher_momentum)
