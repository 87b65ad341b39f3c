"""TTT: test-time training, which learns the rotations of a test image before predicting it (Sun et al. 2020)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapters.common.side_heads import with_side_head
from methods.adapters.common.teachers import descend, generators
from methods.base import Adapter, Options, Source
from methods.limits import Count, FiniteNotNegative, Fraction
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import training_statistics
from methods.views.augmix import PADDING, Crop, draw, resized_crops
from methods.views.padded_crops import crop_padded, draw_crops
from methods.views.rotations import TURNS, all_rotations, rotate


class Ttt(Adapter):
    """For each image alone: steps on telling the rotations of its views, then predict it and return to the source.

    Sun et al. 2020, arXiv:1909.13231. The classifier needs a second head that tells by how many quarter turns an image
    was rotated, trained together with the first (recipe `source_rotation`). Each step makes `copies` views of the
    image, by a random crop and mirroring, rotates them, and descends the cross-entropy of the second head over the
    encoder and that head. The image itself is predicted with the updated parameters. In a step BatchNorm normalises
    with the views and moves its running averages, which the prediction uses; dropout and stochastic depth stay off.

    Views depend on the generator and on an image's position in the stream, never on the batch size. An image costs
    `steps` * `copies` (four times as many with rotations = "expand") forward and backward passes, and one forward pass
    for the prediction, with `threshold` below 1 one more.
    """

    tested_against = "golden"
    needs = "source_rotation"
    search = {"lr": (1e-4, 1e-3, 1e-2), "steps": (1, 3, 10)}
    checked_with = {"lr": 0.1, "steps": 2, "copies": 4}
    presets = {
        "imagenet-gn": {"lr": 1e-3, "steps": 10, "copies": 64, "crop": "resized", "flip": True},
        "cifar-bn": {"lr": 1e-3, "steps": 10, "copies": 32, "crop": "padded", "flip": True},
        "cifar-gn": {"lr": 1e-3, "steps": 10, "copies": 32, "crop": "padded", "flip": True},
    }

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the release for CIFAR-10.

        lr: step size of SGD, without momentum and weight decay.
        steps: updates for each image; 10 from the source, 1 along the stream.
        copies: views of an image in a step.
        rotations: of each view, a random one ("rand") or all four ("expand").
        crop: of each view, "padded" (out of the image with 4 black pixels around it: CIFAR), "resized" (area 0.08-1,
            stretched: ImageNet) or "none".
        flip: mirror views with probability one half; switch it off where mirrored classes differ, as digits do.
        threshold: adapt to images whose probability of being upright is below this; 1 for all.
        fix_bn: let BatchNorm keep its source statistics.
        fix_head: adapt the encoder alone and not the second head.
        """

        lr: FiniteNotNegative = 1e-3
        steps: Count = 10
        copies: Count = 32
        rotations: Literal["rand", "expand"] = "rand"
        crop: Crop = "padded"
        flip: bool = True
        threshold: Fraction = 1.0
        fix_bn: bool = False
        fix_head: bool = False

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier without a rotation head."""
        head = find_rotation_head(self.model).rotation
        fixed = {id(parameter) for parameter in head.parameters()} if self.config.fix_head else set()
        self.parameters = [value for value in self.model.parameters() if id(value) not in fixed]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.config.lr)
        # A CPU generator gives an image the same numbers whatever its batch; GPU generators do not.
        self.host_draws = generators(self.generator, self.model)[0]
        self.source_values = [value.detach().clone() for value in self.values()] if self.forgets else []

    @property
    def forgets(self) -> bool:
        """Whether every image starts from the source."""
        return self.access.state == "episodic"

    def values(self) -> list[Tensor]:
        """Return all that a step changes, or may change: parameters and buffers."""
        return [*self.model.parameters(), *self.model.buffers()]

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, s, s] in [0, 1] to logits [n, classes], each from after the steps on its image.

        Raises RuntimeError under `torch.inference_mode()`, ValueError for images that are not square.
        """
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"ttt rotates images, which must be square and are {tuple(images.shape[2:])}; crop them")
        images = recordable(images)
        with gradients():
            return torch.cat([self.of_one(image[None]) for image in images])

    def of_one(self, image: Tensor) -> Tensor:
        """Adapt to one image [1, 3, s, s] and return its logits [1, classes]."""
        try:
            if self.is_unsure(image):
                self.adapt(image)
            with torch.no_grad():
                logits: Tensor = self.model(image)
        finally:
            if self.forgets:
                with torch.no_grad():
                    for value, before in zip(self.values(), self.source_values, strict=True):
                        value.copy_(before)
        return logits

    @torch.no_grad()
    def is_unsure(self, image: Tensor) -> bool:
        """Return whether the second head finds an image [1, 3, s, s] too little upright to leave the model as it is."""
        if self.config.threshold == 1:
            return True
        scores = at_least_float32(find_rotation_head(self.model).rotation_logits(image))
        return bool(scores.softmax(1)[0, 0] < self.config.threshold)

    def views(self, image: Tensor) -> Tensor:
        """Return the views of one image [1, 3, s, s], upright: [copies, 3, s, s]."""
        copies, flip = self.config.copies, self.config.flip
        if self.config.crop == "resized":
            made = resized_crops(image, draw(1, copies, self.host_draws), flip=flip)
            return made[0].to(image.dtype)
        padding = PADDING if self.config.crop == "padded" else 0
        crops = draw_crops(copies, padding, self.host_draws, flip=flip)
        return crop_padded(image.expand(copies, -1, -1, -1), crops, padding)

    def adapt(self, image: Tensor) -> None:
        """Take the steps on one image [1, 3, s, s]."""
        network = find_rotation_head(self.model)
        with nullcontext() if self.config.fix_bn else training_statistics(self.model):
            for _ in range(self.config.steps):
                views = self.views(image)
                if self.config.rotations == "expand":
                    views, turns = all_rotations(views)
                else:
                    turns = torch.randint(TURNS, (len(views),), generator=self.host_draws).to(
                        views.device, non_blocking=True
                    )
                    views = rotate(views, turns)
                self.optimizer.zero_grad(set_to_none=True)
                descend(F.cross_entropy(at_least_float32(network.rotation_logits(views)), turns), self.optimizer)


class TttOnline(Ttt):
    """TTT that goes on from image to image: each starts where the one before it ended (Sun et al. 2020, TTT-Online)."""

    presets = {
        "imagenet-gn": {"lr": 1e-3, "steps": 1, "copies": 64, "crop": "resized", "flip": True},
        "cifar-bn": {"lr": 1e-3, "steps": 1, "copies": 32, "crop": "padded", "flip": True},
        "cifar-gn": {"lr": 1e-3, "steps": 1, "copies": 32, "crop": "padded", "flip": True},
    }

    @dataclass(frozen=True)
    class Config(Ttt.Config):
        """As above, but one step for each image."""

        steps: int = 1


def find_rotation_head(model: nn.Module) -> Any:
    """Return the module in a classifier with a rotation head: `rotation`, a module, and `rotation_logits`, a method.

    `rotation_logits` maps images [n, 3, s, s] in [0, 1] to scores [n, 4] of 0 to 3 quarter turns anticlockwise, and
    `rotation` holds what it does not share with the classifier. Raises Unsupported unless there is exactly one.
    """
    return with_side_head(
        model,
        "rotation",
        "rotation_logits",
        "test-time training needs a classifier with one head that tells rotations",
        "use source_rotation+ttt, or the adapter alone on a stock, which trains such a classifier",
    )
