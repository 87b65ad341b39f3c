"""`augmix`: fine-tuning on clean labelled images with AugMix, whose views must be predicted alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.data_parallel import Share
from methods.identity import component
from methods.nets.weights import Weights
from methods.training.augmentation import LARGE, Augmentation
from methods.training.finetune import FineTune, fine_tunings
from methods.views.augmix import BLACK, augmix, draw


@component("methods.augmix.Mixing")
@dataclass(frozen=True)
class AugMixing(Augmentation):
    """AugMix of each view: three chains of one to three operations, weights from Dirichlet(1) and Beta(1, 1).

    severity: levels of the operations are uniform in [0.1, severity].
    """

    title: ClassVar[str] = "AugMix"

    severity: float = 3.0

    def augment(self, images: Tensor, count: int, generator: torch.Generator, share: Share) -> Tensor:
        uniforms = share.own(draw(share.whole(len(images)), count, generator))
        return augmix(images, uniforms, crop="none", flip=False, severity=self.severity, fill=BLACK)


class AugMix(Recipe):
    """`source` with AugMix and a Jensen-Shannon consistency loss (Hendrycks et al. 2020, arXiv:1912.02781).

    As in its release, three chains of one to three of nine operations are mixed with each other and with the image;
    operations that overlap with corruptions of ImageNet-C (contrast, colour, brightness, sharpness, cutout) are left
    out. The loss is the cross-entropy of the clean view plus 12 times the divergence of it and two AugMix views.

    Labels, linear probe, optimiser, schedule, crops and flips are those of `source`, not those of the release (SGD from
    scratch). Each image costs three forward and backward passes with the divergence and one without; `source` takes
    one. On a GPU, each batch waits once for its random numbers.
    """

    tested_against = "golden"
    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60), "severity": (1.0, 3.0)}

    @dataclass(frozen=True)
    class Config(FineTune):
        """Options of fine-tuning (methods.training.finetune.FineTune) and of AugMix.

        severity: largest level of the operations, in [0.1, 10]; None for that of the release: 3 for images below 96
            pixels (CIFAR), else 1 (ImageNet).
        jsd: ask for one prediction on three views; otherwise cross-entropy on one AugMix view, as `--no-jsd` of the
            release.
        """

        severity: float | None = None
        jsd: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            held = self.severity is None or 0.1 <= self.severity <= 10
            self.check(held, "severity", "None or in [0.1, 10]")

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        config = self.config
        published = 3.0 if stock.architecture.image_size < LARGE else 1.0
        mixing = AugMixing(config.jsd, published if config.severity is None else config.severity)
        return {"": fine_tunings([stock], stock, source, config, (1.0,), mixing)[0]}
