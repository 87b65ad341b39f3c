"""ActMAD: match the moments of activations to those of clean source images, place by place (Mirza et al. 2023)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.adapters.common.teachers import TeacherOptions, build_optimizer, descend, generators
from methods.base import Adapter, Source, Unsupported
from methods.limits import FiniteNotNegative, Whole, at_least
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import norm_layers
from methods.views.padded_crops import crop_padded, draw_crops

Moments = tuple[Tensor, Tensor]
"""Mean and variance over images of one activation map, each of the shape of the map, float32 at least."""


class ActMad(Adapter):
    """One step on all parameters towards maps of activations with the mean and the variance that source images give.

    Mirza et al. 2023, arXiv:2211.12870. A map is the output of a normalisation layer, whatever its shape ([c, h, w] in
    a convolutional network, [tokens, c] in a transformer); each of its values has a mean and an unbiased variance over
    the images of a batch. Those of the source are the means over batches of clean images, computed once. The loss is
    half the sum over layers of the mean absolute differences of both. BatchNorm keeps its source statistics, dropout
    and stochastic depth stay off. The prediction is that of the updated model. A batch of one image, which has no
    variance, changes nothing.

    `padding` and `flip` crop and mirror both source and test images at random before their moments are taken, as the
    release does on CIFAR; the prediction is of the image itself. That release keeps a reference to each map, so where
    an activation follows in place, it matches the maps after the activation; `official_quirks` does the same.

    A batch costs two forward passes, one of them without gradients, and one backward pass; before the stream,
    `source_images` pass forward once. The source's moments take two values for each activation of one image (88 MB for
    ResNet-50 at 224 px), and twice that with the copy to which `reset` returns.
    """

    tested_against = "golden"
    search = {"lr": (2.5e-4, 1e-3, 3e-3, 1e-2), "padding": (0, 4)}
    checked_with = {"lr": 0.05, "padding": 2, "flip": True, "source_images": 8}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4},
        "cifar-bn": {"lr": 1e-2, "padding": 4, "flip": True, "source_images": 50000, "official_quirks": True},
        "cifar100-bn": {"lr": 1e-3, "padding": 4, "flip": True, "source_images": 50000, "official_quirks": True},
    }

    @dataclass(frozen=True)
    class Config(TeacherOptions):
        """Defaults of the release for ImageNet.

        lr: step size; 2.5e-4 for ImageNet, 1e-2 for CIFAR-10, 1e-3 for CIFAR-100 (batch 128).
        weight_decay: of all parameters that have a gradient, at least 0.
        padding: black pixels around an image of which it is a random crop; 0 for none.
        source_images: largest number of clean source images for the moments, at least 2; all 50000 in the release.
        official_quirks: take maps after the activations that change them in place, as the CIFAR release does.
        """

        lr: float = 2.5e-4
        weight_decay: FiniteNotNegative = 5e-4
        padding: Whole = 0
        flip: bool = False
        source_images: Annotated[int, at_least(2)] = 10000
        official_quirks: bool = False

    def configure(self, source: Source | None) -> None:
        """Raises ValueError without source images, Unsupported for a model without normalisation layers."""
        if source is None:
            raise ValueError("actmad matches activations to the source's; give prepare() a source of clean images")
        if not norm_layers(self.model):
            raise Unsupported(
                "actmad matches the outputs of normalisation layers and this model has none; "
                "choose a model with BatchNorm, LayerNorm or GroupNorm, or a method that needs none, such as memo"
            )
        self.host_draws = generators(self.generator, self.model)[0]
        self.source_moments = self._of_source(source)
        self.parameters = list(self.model.requires_grad_(True).parameters())
        self.optimizer = build_optimizer(self.parameters, self.config, self.config.weight_decay)

    @torch.no_grad()
    def _of_source(self, source: Source) -> list[Moments]:
        """Return the mean over batches of their moments; every batch counts the same, as in the release."""
        sums: list[Moments] = []
        batches, left = 0, self.config.source_images
        for batch in source:
            images = batch.images[:left]
            if len(images) < 2:  # no variance
                break
            found = self.moments(self.view(images))
            sums = [(a + m, b + v) for (a, b), (m, v) in zip(sums, found, strict=True)] if sums else found
            batches, left = batches + 1, left - len(images)
        if batches == 0:
            raise ValueError("actmad needs at least two source images in a batch; give a larger source")
        return [(mean / batches, variance / batches) for mean, variance in sums]

    def view(self, images: Tensor) -> Tensor:
        """Return the images [n, 3, h, w] whose moments count: cropped and mirrored at random if the options say so."""
        if not (self.config.padding or self.config.flip):
            return images
        crops = draw_crops(len(images), self.config.padding, self.host_draws, flip=self.config.flip)
        return crop_padded(images, crops, self.config.padding)

    def moments(self, images: Tensor) -> list[Moments]:
        """Return the moments of all maps over a batch of two or more images, in the order of computation.

        A layer that runs several times has a map for each time. Raises Unsupported for outputs that are not one map for
        each image.
        """
        seen: list[Any] = []

        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if len(output) % len(images):
                raise Unsupported(
                    f"actmad needs maps of activations image by image and a {type(layer).__name__} of this model puts "
                    f"out {list(output.shape)} for {len(images)} images; choose a model that keeps images apart"
                )
            # A copy, as an activation in place would change what the gradient of the variance needs.
            seen.append(output if self.config.official_quirks else _moments(output.clone()))

        with ExitStack() as hooks:
            for layer in norm_layers(self.model).values():
                hooks.enter_context(layer.register_forward_hook(note))
            self.model(images)
        return [_moments(output) for output in seen] if self.config.official_quirks else seen

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from after the update.

        Raises RuntimeError under `torch.inference_mode()`, ValueError for images of another size than the source's.
        """
        images = recordable(images)
        with gradients():
            if len(images) > 1:
                self.optimizer.zero_grad(set_to_none=True)  # of an interrupted batch
                descend(self.distance(self.moments(self.view(images))), self.optimizer)
            with torch.no_grad():
                logits: Tensor = self.model(images)
        return logits

    def distance(self, found: list[Moments]) -> Tensor:
        """Return half the sum over maps of the mean absolute differences to the moments of the source, a scalar."""
        if [mean.shape for mean, _ in found] != [mean.shape for mean, _ in self.source_moments]:
            raise ValueError(
                "actmad compares activations place by place and the test images do not have the size of the source "
                "images; give both in one size"
            )
        pairs = list(zip(found, self.source_moments, strict=True))
        of_means = torch.stack([(ours - source).abs().mean() for (ours, _), (source, _) in pairs]).sum()
        of_variances = torch.stack([(ours - source).abs().mean() for (_, ours), (_, source) in pairs]).sum()
        return 0.5 * (of_means + of_variances)


def _moments(output: Tensor) -> Moments:
    variance, mean = torch.var_mean(at_least_float32(output), dim=0)
    return mean, variance
