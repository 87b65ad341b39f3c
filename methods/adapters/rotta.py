"""RoTTA: robust test-time adaptation in dynamic scenarios, by a balanced memory and robust statistics (Yuan 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from methods.adapters.common.memory import FREE, held_slots, place, smoothed_entropies
from methods.adapters.common.teachers import (
    TeacherOptions,
    build_optimizer,
    cross_entropy_to,
    descend,
    generators,
    move_towards,
)
from methods.base import Adapter, Source, Unsupported
from methods.limits import Count, Fraction, NotNegative
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import batch_norm_layers, input_normalised_by, norm_parameters, require_source_statistics
from methods.online import margin
from methods.private_apis import _BatchNorm
from methods.views.cotta_views import draw_view, make_view


class Rotta(Adapter):
    """A student learns its running average's predictions on a class-balanced memory of the stream.

    Yuan, Xie and Li 2023, arXiv:2303.13899, equations 1 to 9. The prediction is the teacher's, with the statistics in
    its BatchNorm layers. Every image is offered to a memory of `capacity` images under the class that the teacher
    predicts. If that class has its share, the image competes with that class, else, if the memory is full, with the
    largest class: it replaces the image with the highest score (age and entropy), if that score is above its own. After
    every `update_every` images the student predicts one random view of the memory and the teacher the memory itself;
    the student steps on the cross-entropy, in which newer images weigh more, and the teacher's parameters follow. Only
    in that pass do the statistics of every BatchNorm layer move to those of the memory by `statistics_share`, and
    gradients flow through them. BatchNorm and other normalisation layers are adapted; dropout and stochastic depth stay
    off.
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "statistics_share": (0.01, 0.05, 0.1), "teacher_share": (0.001, 0.01)}
    checked_with = {"lr": 0.01, "capacity": 8, "update_every": 4}
    presets = {"imagenet-bn": {"lr": 1e-3}, "imagenet-ln": {"lr": 1e-3}, "cifar-bn": {"lr": 1e-3}}

    @dataclass(frozen=True)
    class Config(TeacherOptions):
        """Defaults of the release.

        lr: step size; it does not follow the batch size, as each step is on the images of the memory.
        capacity: images in the memory.
        update_every: images of the stream between two steps.
        teacher_share: how far the teacher moves to the student at each step; in [0, 1].
        statistics_share: how far the statistics move to those of the memory at each step; in [0, 1].
        age_weight: of age in the score of an image, at least 0.
        entropy_weight: of entropy in the score of an image, at least 0.
        """

        lr: float = 1e-3
        optimizer: Literal["sgd", "adam"] = "adam"
        capacity: Count = 64
        update_every: Count = 64
        teacher_share: Fraction = 0.001
        statistics_share: Fraction = 0.05
        age_weight: NotNegative = 1.0
        entropy_weight: NotNegative = 1.0

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported without affine parameters to adapt or without source statistics in a BatchNorm."""
        require_source_statistics(self.model)
        self.teacher = copy.deepcopy(self.model)
        self.parameters = list(norm_parameters(self.model).values())
        self.averages = list(norm_parameters(self.teacher).values())
        if not self.parameters:
            raise Unsupported(
                "rotta adapts the affine parameters of normalisation layers and this model has none; "
                "choose a model with BatchNorm, LayerNorm or GroupNorm, or a method that needs none, such as memo"
            )
        self.optimizer = build_optimizer(self.parameters, self.config)
        self.host_draws, self.device_draws = generators(self.generator, self.model)
        # Values for decisions on the host, one for each slot; the images, on their device, come with the first batch.
        self.labels = torch.full((self.config.capacity,), FREE)
        self.uncertainty = torch.zeros(self.config.capacity, dtype=torch.float64)
        self.born = torch.zeros(self.config.capacity, dtype=torch.int64)
        self.images = self.parameters[0].new_empty(0)
        self.seen = 0

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the teacher's logits [n, classes] from before any update by this batch.

        Raises RuntimeError under `torch.inference_mode()`, ValueError for a model with a single class.
        """
        images = recordable(images)
        with gradients():
            with torch.no_grad():
                logits: Tensor = self.teacher(images)
                entropy = smoothed_entropies(logits).sum(1) / margin(logits, 1.0)
                # One copy to the host, which manages the memory; its images stay on the device.
                labels, uncertainty = torch.stack([logits.argmax(1).double(), entropy.double()]).cpu()
            start = 0
            while start < len(images):
                stop = min(len(images), start + self.config.update_every - self.seen % self.config.update_every)
                classes = logits.shape[1]
                self.remember(images[start:stop], labels[start:stop], uncertainty[start:stop], classes)
                if self.seen % self.config.update_every == 0:
                    self.update()
                start = stop
        return logits

    def remember(self, images: Tensor, labels: Tensor, uncertainty: Tensor, classes: int) -> None:
        """Offer images in order to the memory; labels (float64 [n]) and uncertainty (float64 [n]) are on the CPU."""
        if self.images.numel() == 0:
            self.images = images.new_zeros(self.config.capacity, *images.shape[1:])
        slots = []
        for label, unsure in zip(labels.long().tolist(), uncertainty.tolist(), strict=True):
            slot = self.slot(label, unsure, classes)
            if slot != FREE:
                self.labels[slot], self.uncertainty[slot], self.born[slot] = label, unsure, self.seen
            slots.append(slot)
            self.seen += 1
        place(self.images, images, slots)

    def slot(self, label: int, unsure: float, classes: int) -> int:
        """Return the slot for a new image, or FREE (-1) for none."""
        labels = self.labels.numpy()
        if (labels == label).sum() >= self.config.capacity / classes:
            candidates = labels == label
        elif (labels == FREE).any():
            return int((labels == FREE).argmax())
        else:
            occupancy = np.bincount(labels, minlength=classes)
            candidates = occupancy[labels] == occupancy.max()
        scores = np.where(candidates, self.score(self.seen - self.born.numpy(), self.uncertainty.numpy()), -np.inf)
        newcomer = self.score(np.zeros(1), np.full(1, unsure))[0]
        return int(scores.argmax()) if scores.max() > newcomer else FREE

    def score(self, age: np.ndarray, unsure: np.ndarray) -> np.ndarray:
        """Return the score for removal of each image, [n]: by age in images and entropy as a fraction of ln C."""
        timeliness = 1 / (1 + np.exp(-age / self.config.capacity))
        score: np.ndarray = self.config.age_weight * timeliness + self.config.entropy_weight * unsure
        return score

    def update(self) -> None:
        """Take one step of the student on the memory and move the teacher towards it."""
        # Sorted, so that the noise of a view depends on the content of the memory and not on slots.
        held = held_slots(self.labels, self.born)
        images = self.images[held.to(self.images.device, non_blocking=True)]
        age = (self.seen - self.born[held]) / self.config.capacity
        view = make_view(images, draw_view(self.host_draws, flip=self.config.flip), self.device_draws)
        with robust_statistics(self.teacher, self.config.statistics_share), torch.no_grad():
            target: Tensor = self.teacher(images)
        with robust_statistics(self.model, self.config.statistics_share):
            losses = cross_entropy_to(target, self.model(view))
        weights = torch.sigmoid(-age).to(losses, non_blocking=True)
        descend((losses * weights).mean(), self.optimizer)
        move_towards(self.averages, self.parameters, self.config.teacher_share)


@contextmanager
def robust_statistics(model: nn.Module, share: float) -> Iterator[None]:
    """Inside, each BatchNorm moves its statistics to those of its input by `share`, then normalises with them.

    The variance is the biased one, and gradients flow through the input's part of the statistics. The model stays in
    eval mode.
    """
    with ExitStack() as hooks:
        for layer in batch_norm_layers(model):
            hooks.enter_context(layer.register_forward_pre_hook(partial(_move_statistics, share=share)))
        yield


def _move_statistics(layer: nn.Module, inputs: tuple[Any, ...], *, share: float) -> tuple[Tensor] | None:
    norm = cast(_BatchNorm, layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values: Tensor = at_least_float32(inputs[0])
    variance, mean = torch.var_mean(values, dim=[dim for dim in range(values.ndim) if dim != 1], correction=0)
    mean = (1 - share) * norm.running_mean + share * mean
    variance = (1 - share) * norm.running_var + share * variance
    # New tensors: autograd may still hold those of an earlier pass through the same layer. In the layer's precision.
    norm.running_mean = mean.detach().to(norm.running_mean.dtype)
    norm.running_var = variance.detach().to(norm.running_var.dtype)
    if not mean.requires_grad:
        return None
    # Eval mode gives no gradient of the statistics. This input has the same value, up to rounding, and the gradient
    # that the layer would have.
    shape = [1, -1, *[1] * (values.ndim - 2)]
    return (input_normalised_by(norm, values, mean.view(shape), variance.view(shape)).to(inputs[0].dtype),)
