"""Small classifiers with every kind of normalisation, on which the conformance suite tests methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from methods.nets.masked_autoencoder import Decoder
from methods.nets.weights import Architecture, AutoencoderClassifier, Classifier

SIDE = 32
CLASSES = 10


class Chain(nn.Sequential):
    """Images [n, 3, 32, 32] in [0, 1] to logits [n, 10]; the last layer is the linear head."""

    image_size = SIDE


def _batch_norm() -> nn.Module:
    # The second map is 1 x 1, where a single image has no variance.
    return Chain(*_stem(nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, 8, 1), nn.BatchNorm2d(8), *_head(8))


def _group_norm() -> nn.Module:
    return Chain(*_stem(nn.GroupNorm(2, 8)), *_head(8, nn.Dropout(0.5), nn.LayerNorm(8)))


def _layer_norm() -> nn.Module:
    return Classifier(Architecture(image_size=SIDE, patch_size=16, dim=16, depth=2, heads=2), CLASSES)


def _no_norm() -> nn.Module:
    return Chain(*_stem(nn.Identity()), *_head(8))


def _frozen_batch_norm() -> nn.Module:
    return Chain(*_stem(FrozenBatchNorm2d(8)), *_head(8))


def _batch_norm_without_affine() -> nn.Module:
    return Chain(*_stem(nn.BatchNorm2d(8, affine=False)), *_head(8))


def _batch_norm_without_statistics() -> nn.Module:
    return Chain(*_stem(nn.BatchNorm2d(8, track_running_stats=False)), *_head(8))


def _shared_norms() -> nn.Module:
    used_twice, own_statistics = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    own_statistics.weight = used_twice.weight
    return Chain(
        *_stem(used_twice), nn.Conv2d(8, 8, 1), used_twice, nn.Conv2d(8, 8, 1), own_statistics, nn.ReLU(), *_head(8)
    )


def _rare_norms() -> nn.Module:
    inner = (nn.GroupNorm(1, 8), LayerNorm2d(8), nn.InstanceNorm2d(8, affine=True))
    return Chain(*_stem(nn.Sequential(*inner)), *_head(8, nn.BatchNorm1d(8), nn.RMSNorm(8)))


def _masked_autoencoder() -> nn.Module:
    shape = Architecture(image_size=SIDE, patch_size=8, dim=16, depth=2, heads=2, decoder_dim=16, decoder_heads=2)
    return AutoencoderClassifier(shape, CLASSES, Decoder(shape).state_dict())


class Contrasted(nn.Module):
    """A classifier with BatchNorm and a projection head: images [n, 3, 32, 32] in [0, 1] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.features = nn.Sequential(*_stem(nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), *pooled)
        self.projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def _stem(norm: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, 8, 3, 4, 1), norm, nn.ReLU()


def _head(width: int, *before: nn.Module) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), *before, nn.Linear(width, CLASSES)


_BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "no_norm": _no_norm,
    "frozen_batch_norm": _frozen_batch_norm,
    "batch_norm_without_affine": _batch_norm_without_affine,
    "batch_norm_without_statistics": _batch_norm_without_statistics,
    "shared_norms": _shared_norms,
    "rare_norms": _rare_norms,
}
EXAMPLES = tuple(_BUILDERS)
SPECIAL: Mapping[str, Callable[[], nn.Module]] = {"mae_probe": _masked_autoencoder, "source_contrast": Contrasted}
"""Classifiers with something beside their layers, by the recipe that trains such, for the methods that need it."""


def examples_for(needs: str | None) -> tuple[str, ...]:
    """Return the names of the example models for a method that needs the classifier of this recipe (None: any)."""
    return (*EXAMPLES, *(name for name in SPECIAL if name == needs))


def fitting_example(needs: str | None) -> str:
    """Return the name of an example model that has what a method needs."""
    if needs is None:
        return "batch_norm"
    return needs if needs in SPECIAL else "layer_norm"


def example_model(name: str) -> nn.Module:
    """Return a copy of a seeded classifier in eval mode, certain of some images and unsure of others.

    Its BatchNorm statistics come from training batches. "layer_norm" also has a head that tells rotations. Raises
    KeyError for a name that is neither in EXAMPLES nor in SPECIAL.
    """
    return copy.deepcopy(_made(name))


@cache
def _made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = {**_BUILDERS, **SPECIAL}[name]().train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            for _ in range(4):
                model(torch.rand(16, 3, SIDE, SIDE))
            logits = model.eval()(_pictures(16))
            head = head_of(model)
            # Scale the logits so that they differ between images by several units.
            scale = 4 / logits.std(0).mean()
            head.bias.sub_(logits.mean(0)).mul_(scale)
            head.weight.mul_(scale)
            if isinstance(model, Classifier):
                # Random numbers of its own, so that those of the classifier do not depend on it.
                model.rotation = nn.Linear(model.head.in_features, 4)
                for parameter in model.rotation.parameters():
                    parameter.normal_(generator=torch.Generator().manual_seed(2))
    return model


def head_of(model: nn.Module) -> nn.Linear:
    """Return the linear layer of an example model that makes its logits."""
    if isinstance(model, Classifier | Contrasted):
        return model.head
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def example_images(batches: int, size: int) -> Tensor:
    """Return a copy of smooth random pictures in [0, 1] on the grid of 8-bit values: [batches, size, 3, 32, 32]."""
    return _pictures(batches * size).view(batches, size, 3, SIDE, SIDE).clone()


@cache
def _pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")
    noisy = fine + 0.05 * torch.randn(fine.shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().div(255)
