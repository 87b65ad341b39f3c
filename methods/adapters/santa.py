"""SANTA: source anchoring network and target alignment for continual adaptation (Chakrabarty et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.adapters.common.prototypes import build_projector, class_means, contrast, nearest
from methods.adapters.common.teachers import build_optimizer, cross_entropy_to, generators
from methods.adapters.rmt import ContrastOptions
from methods.base import Source
from methods.losses import at_least_float32, gradients, recordable
from methods.nets.feature_head_split import split
from methods.online import NormAdapter
from methods.views.cotta_views import draw_view, make_view


class Santa(NormAdapter):
    """Keeps predictions near the source model's on each batch, and gathers features around source prototypes.

    Chakrabarty, Sreenivas and Biswas 2023 (TMLR). The affine parameters of normalisation layers and a small projector
    step on two losses. The first is -sum p log a, for the probabilities p of the batch (and of one random view of it)
    and a of the source model on the batch itself. The second is the contrast (see `prototypes.contrast`) of three
    vectors for each image, the projections of the nearest source prototype and of the features of the batch and of the
    view. The gradient of the first flows through p, so predictions become certain in favour of what the source model
    finds likely. The prediction is the logits from before the step. The source model also uses the statistics of each
    batch.

    Prototypes are class means over labelled source images, as benchmarks run it: one forward pass over
    `prototype_images` before the stream. A batch costs 3 forward passes, one of them without gradients, and 2 backward
    passes.
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "optimizer": ("sgd", "adam"), "contrast_weight": (0.0, 0.5, 1.0)}
    checked_with = {"projection": 8}
    presets = {
        "imagenet-bn": {"lr": 0.01},
        "imagenet-gn": {"lr": 0.01},
        "imagenet-ln": {"lr": 0.01},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam"},
    }

    @dataclass(frozen=True)
    class Config(ContrastOptions):
        """Defaults that benchmarks use for ImageNet."""

        lr: float = 0.01

    def configure(self, source: Source | None) -> None:
        """Raises ValueError without labelled source images, Unsupported without parameters to adapt or a head."""
        super().configure(source)
        self.parts = split(self.model)
        self.prototypes = class_means(self.parts, source, self.config.prototype_images, "santa")
        self.anchor = copy.deepcopy(self.model).requires_grad_(False)
        self.host_draws, self.device_draws = generators(self.generator, self.model)
        self.projector = build_projector(self.prototypes, self.config.projection, self.host_draws)
        self.optimizer.add_param_group({"params": list(self.projector.parameters())})

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.parameters, self.config)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            with torch.no_grad():
                anchored: Tensor = self.anchor(images)
            view = make_view(images, draw_view(self.host_draws, flip=self.config.flip), self.device_draws)
            features, logits = self.parts(images)
            features_of_view, logits_of_view = self.parts(view)
            losses = cross_entropy_to(logits, anchored) + cross_entropy_to(logits_of_view, anchored)
            vectors = torch.stack([nearest(self.prototypes, at_least_float32(features)), features, features_of_view])
            gathered = contrast(self.projector(vectors), self.config.temperature)
            self.descend(0.5 * losses.mean() + self.config.contrast_weight * gathered)
        return logits.detach()
