"""DeYO: entropy minimisation on images whose prediction depends on the shape of objects (Lee et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from methods.limits import Count, Finite, FractionAboveZero
from methods.losses import at_least_float32, gradients, recordable
from methods.online import (
    NormAdapter,
    NormOptions,
    below_the_official_top,
    below_the_top,
    margin,
    rows_where,
)


def shuffle_patches(images: Tensor, patches: int, generator: torch.Generator) -> Tensor:
    """Cut each image [3, h, w] into patches x patches tiles and reassemble them in a random order: [n, 3, h, w].

    Each image has its own order. Sides that `patches` does not divide are resized (bilinear, antialiased) down to a
    multiple of it, and back. Raises ValueError for an image with fewer pixels than patches on a side.
    """
    n, channels, height, width = images.shape
    if min(height, width) < patches:
        raise ValueError(
            f"images of {height} x {width} cannot be cut into {patches} x {patches} tiles; use fewer patches"
        )
    h, w = height // patches, width // patches
    order = torch.rand(n, patches**2, generator=generator, device=generator.device).argsort(-1).to(images.device)
    tiles = _resized(images, (h * patches, w * patches)).view(n, channels, patches, h, patches, w)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, patches**2, channels, h, w)
    tiles = tiles[torch.arange(n, device=images.device)[:, None], order]
    tiles = tiles.view(n, patches, patches, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    return _resized(tiles.reshape(n, channels, h * patches, w * patches), (height, width))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


class Deyo(NormAdapter):
    """Minimises the weighted entropy of fairly certain images whose prediction depends on the order of their patches.

    Lee et al. 2024, arXiv:2403.07366, section 4. An image is learnt from if its entropy H is below `margin` * ln C and
    PLPD, the probability of its predicted class minus the same after `shuffle_patches`, is above `plpd`; its weight is
    exp(E0 - H) + exp(PLPD), with E0 = `weight_margin` * ln C. If no image remains, nothing changes. Only images that
    pass the first test are predicted again. Layers of the top quarter stay unchanged (see `below_the_top`). Costs at
    most two forward passes, one of them without gradients, and one backward pass.
    """

    tested_against = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "plpd": (0.1, 0.2, 0.3, 0.5), "optimizer": ("sgd", "adam")}
    checked_with = {"lr": 0.02, "margin": 0.7, "plpd": 0.0}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4, "plpd": 0.3},
        "imagenet-gn": {"lr": 2.5e-4, "plpd": 0.2},
        "imagenet-ln": {"lr": 1e-3, "plpd": 0.2},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam", "plpd": 0.2},
    }
    rate_rules = {
        "imagenet-bn": "batch/32, at most 1, twice that for 1",
        "imagenet-gn": "batch/32, at most 1, twice that for 1",
        "imagenet-ln": "batch/64, twice that for 1",
    }

    @dataclass(frozen=True)
    class Config(NormOptions):
        """Defaults of the paper for ImageNet and ResNet-50.

        lr: step size; 2.5e-4 with SGD for ResNet-50, 1e-3 for ViT-B/16 (batch 64); other sizes:
            `rate_rules`.
        margin: the largest entropy to learn from, as a fraction of ln C; in (0, 1].
        weight_margin: E0 of the weights, as a fraction of ln C; in (0, 1].
        plpd: the smallest drop of probability under shuffling to learn from; 0.3 for BatchNorm, 0.2 for the others.
        patches: number of tiles along each side of an image.
        official_names: find the top by the timm names in the release; to compare with its numbers.
        """

        margin: FractionAboveZero = 0.5
        weight_margin: FractionAboveZero = 0.4
        plpd: Finite = 0.3
        patches: Count = 4
        official_names: bool = False

    def chosen(self) -> dict[str, nn.Parameter]:
        return below_the_official_top(self.model) if self.config.official_names else below_the_top(self.model)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        images = recordable(images)
        with gradients():
            logits: Tensor = self.model(images)
            uncertainty = self.uncertainty(logits)
            certain = rows_where(uncertainty.detach() < margin(logits, self.config.margin))
            if len(certain):
                fall = self.fall_of_probability(images[certain], logits.detach()[certain])
                shaped = rows_where(fall > self.config.plpd)
                if len(shaped):
                    kept = uncertainty[certain][shaped]
                    # Divided rather than exponentiated with the other sign: rounds as the release does.
                    weights = 1 / (kept.detach() - margin(logits, self.config.weight_margin)).exp()
                    weights = weights + 1 / (-fall[shaped]).exp()
                    self.descend(kept.mul(weights).mean())
        return logits.detach()

    @torch.no_grad()
    def fall_of_probability(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the PLPD: the drop of the predicted class's probability under shuffling of patches, [n] in [-1, 1]."""
        shuffled: Tensor = self.model(shuffle_patches(images, self.config.patches, self.generator))
        before, after = (at_least_float32(values).softmax(-1) for values in (logits, shuffled))
        predicted = before.argmax(-1, keepdim=True)
        return (before.gather(-1, predicted) - after.gather(-1, predicted))[:, 0]
