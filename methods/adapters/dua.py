"""DUA: dynamic unsupervised adaptation of BatchNorm statistics, image by image (Mirza et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.adapters.common.teachers import generators
from methods.base import Adapter, Options, Source
from methods.limits import Count, Fraction, Whole
from methods.norms import batch_norm_layers, need_batch_norm, require_source_statistics, training_statistics


class Dua(Adapter):
    """The first images of the stream, one by one, move the running statistics of every BatchNorm layer.

    Mirza et al. 2022, arXiv:2112.00463, section 3. A batch of random views of one image (crops, mirrors, turns) passes
    the model, whose BatchNorm layers normalise with that batch and update their running statistics as in training, by
    the momentum m_k + `minimum`, where m_k = `decay` * m_(k-1) and m_0 = `momentum`. After `images` images the
    statistics stay. Every batch of the stream is predicted with the running statistics, after its own images have
    moved them. No parameter changes; dropout and stochastic depth stay off. A layer that sees one value per channel,
    which has no variance, keeps its averages and uses them.

    The release adapts to the first 80 images of a test set, predicts the whole set after each, and reports the step
    with the smallest error, which takes labels. On ImageNet it crops 32 pixels from the image as stored; here crops
    always have the size of the image. Costs `views` + 1 forward passes an image while adapting, one after that.
    """

    tested_against = "golden"
    search = {"images": (80, 320, 0), "decay": (0.9, 0.94, 0.98), "minimum": (0.001, 0.005, 0.02)}
    checked_with = {"images": 6, "views": 4, "momentum": 0.5}
    presets = {"cifar-bn": {"images": 80, "momentum": 0.1, "decay": 0.94, "minimum": 0.005, "views": 64, "padding": 4}}

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the release.

        images: images of the stream to adapt to; 0 for all of them.
        momentum: the share of a new batch before the first decay, in [0, 1].
        decay: factor of the momentum from image to image, in [0, 1].
        minimum: share of a new batch that never decays, at least 0; with the first decayed momentum at most 1.
        views: random views of each image; at least 1.
        padding: black pixels around the image before it is cropped to its size again; at least 0.
        flip: mirror views with probability one half; switch it off where mirrored classes differ, as digits do.
        rotate: turn views by a random multiple of 90 degrees, for square images only.
        """

        images: Whole = 80
        momentum: Fraction = 0.1
        decay: Fraction = 0.94
        minimum: float = 0.005
        views: Count = 64
        padding: Whole = 4
        flip: bool = True
        rotate: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            largest = 1 - self.momentum * self.decay
            self.check(math.isfinite(self.minimum) and 0 <= self.minimum <= largest, "minimum", f"in [0, {largest:g}]")

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without BatchNorm, or with one that has no source statistics."""
        need_batch_norm(self.model, "dua moves the statistics of BatchNorm layers")
        require_source_statistics(self.model)
        # A CPU generator gives an image the same views on every device.
        self.draws, _ = generators(self.generator, self.model)
        self.momentum: float = self.config.momentum
        self.seen = 0

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] with the statistics that these images moved.

        Raises ValueError for images that are not square if `rotate` is on.
        """
        left = self.config.images - self.seen if self.config.images else len(images)
        for image in images[: max(left, 0)]:
            self.momentum *= self.config.decay
            for layer in batch_norm_layers(self.model):
                layer.momentum = self.momentum + self.config.minimum
            with training_statistics(self.model):
                self.model(self.augmented(image))
            self.seen += 1
        logits: Tensor = self.model(images)
        return logits

    def augmented(self, image: Tensor) -> Tensor:
        """Return random views of one image: float [3, h, w] to [views, 3, h, w], on its device."""
        _, height, width = image.shape
        if self.config.rotate and height != width:
            raise ValueError(
                f"dua turns views by 90 degrees, which these images of {height} x {width} pixels do not allow; "
                "use dua.rotate=false for images that are not square"
            )
        views, margin = self.config.views, self.config.padding
        top, left = torch.randint(2 * margin + 1, (2, views), generator=self.draws)
        mirrored = torch.rand(views, generator=self.draws) < 0.5
        turns = torch.randint(4, (views,), generator=self.draws)
        # For each pixel of each view, its row and column in the padded image: first in the turned view, then before it
        # was turned, before it was mirrored, and before it was cropped.
        rows = torch.arange(height).view(1, -1, 1).expand(views, height, width)
        columns = torch.arange(width).view(1, 1, -1).expand(views, height, width)
        if self.config.rotate:
            for turn in (1, 2, 3):
                turned = (turns >= turn).view(-1, 1, 1)
                rows, columns = torch.where(turned, columns, rows), torch.where(turned, height - 1 - rows, columns)
        if self.config.flip:
            columns = torch.where(mirrored.view(-1, 1, 1), width - 1 - columns, columns)
        padded = torch.nn.functional.pad(image, [margin] * 4)
        places = (rows + top.view(-1, 1, 1)) * (width + 2 * margin) + columns + left.view(-1, 1, 1)
        return padded.flatten(1)[:, places.to(image.device)].transpose(0, 1)
