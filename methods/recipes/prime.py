"""`prime`: fine-tuning on clean labelled images with PRIME, augmentations of maximum entropy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.data_parallel import Share
from methods.identity import component
from methods.nets.weights import Weights
from methods.training.augmentation import LARGE, Augmentation
from methods.training.finetune import FineTune, fine_tunings
from methods.views.prime import PUBLISHED, Strength, draw, prime


@component("methods.prime.Mixing")
@dataclass(frozen=True)
class PrimeMixing(Augmentation):
    """PRIME of each view; each augmentation of a batch has its own draws."""

    title: ClassVar[str] = "PRIME"

    strength: Strength = field(default_factory=Strength)

    def augment(self, images: Tensor, count: int, generator: torch.Generator, share: Share) -> Tensor:
        side = images.shape[-1]
        drawn = [draw(len(images), side, self.strength, generator, share) for _ in range(count)]
        return torch.stack([prime(images, each) for each in drawn], dim=1)


class Prime(Recipe):
    """`source` with PRIME (Modas et al. 2022, arXiv:2112.13547): random deformations, colour curves and filters.

    Three chains of one to three transforms are mixed with each other and with the image. For images of the size of
    CIFAR the loss is that of AugMix: cross-entropy of the clean view plus 12 times the divergence of it and two
    augmented views; for larger ones it is cross-entropy on one augmented view, both as in the release.

    Labels, linear probe, optimiser, schedule, crops and flips are those of `source`, not those of the release (SGD).
    Each image costs three forward and backward passes with the divergence and one without; `source` takes one. On a
    GPU, each view of a batch waits once for its random numbers.
    """

    tested_against = "golden"
    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60), "jsd": (True, False)}

    @dataclass(frozen=True)
    class Config(FineTune):
        """Options of fine-tuning (methods.training.finetune.FineTune) and of PRIME.

        strength: "cifar" (up to 100 modes and frequencies) or "imagenet" (500, curves of 20 frequencies, stronger), as
            published; None for "cifar" below 96 pixels, else "imagenet".
        jsd: ask for one prediction on three views; otherwise cross-entropy on one augmented view; None for the
            release's choice, only with the strength of CIFAR.
        """

        strength: Literal["cifar", "imagenet"] | None = None
        jsd: bool | None = None

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        config = self.config
        strength = config.strength or ("cifar" if stock.architecture.image_size < LARGE else "imagenet")
        jsd = strength == "cifar" if config.jsd is None else config.jsd
        mixing = PrimeMixing(jsd, PUBLISHED[strength])
        return {"": fine_tunings([stock], stock, source, config, (1.0,), mixing)[0]}
