"""`three_augment`: fine-tuning on clean labelled images with the views of DeiT III."""

from __future__ import annotations

from dataclasses import dataclass

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import Weights
from methods.training.finetune import FineTune, fine_tunings


class ThreeAugment(Recipe):
    """`source` with 3-Augment and colour jitter (DeiT III; Touvron et al. 2022, arXiv:2204.07118, section 3.2).

    After crop and flip, each view is made gray, solarised or blurred, each with probability one third; then brightness,
    contrast and saturation change by up to `jitter`. Everything else is that of `source`: its cost, optimiser and
    schedule, and its crops, which `area` and `flip` set (DeiT III crops areas from 0.08, or hardly at all in its simple
    random crop). Our blur is a Gaussian where the release has PIL's sums of boxes, and our jitter always has the same
    order.
    """

    tested_against = "golden"
    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60), "jitter": (0.0, 0.3)}

    @dataclass(frozen=True)
    class Config(FineTune):
        """Options of fine-tuning (methods.training.finetune.FineTune); `jitter` is that of DeiT III."""

        three_augment: bool = True
        jitter: float = 0.3

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check(self.three_augment, "three_augment", "true (run source for views without it)")

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        return {"": fine_tunings([stock], stock, source, self.config, (1.0,))[0]}
