"""TENT: fully test-time adaptation by entropy minimisation of the normalisation layers (Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.identity import component
from methods.limits import Count
from methods.losses import gradients, recordable
from methods.online import NormAdapter, NormOptions


class Tent(NormAdapter):
    """Minimises the mean entropy of each batch over the affine parameters of the normalisation layers, online.

    Wang et al. 2021, arXiv:2006.10726, equation 1 and section 3.2. BatchNorm uses the statistics of the batch (or those
    of the source in a layer that sees one value per channel, see `use_batch_statistics`); LayerNorm, GroupNorm and the
    rest are adapted as in the release of SAR (Niu et al. 2023, arXiv:2302.12400), since the original supports only
    BatchNorm. Dropout and stochastic depth stay off. Costs one forward and one backward pass for each of its steps.
    """

    tested_against = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "optimizer": ("sgd", "adam"), "steps": (1, 2)}
    checked_with = {"lr": 0.02}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4},
        "imagenet-gn": {"lr": 2.5e-4},
        "imagenet-ln": {"lr": 1e-3},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam"},
    }
    rate_rules = {"imagenet-gn": "batch/32, at most 1", "imagenet-ln": "batch/64"}

    @component("methods.tent.Tent.Config")
    @dataclass(frozen=True)
    class Config(NormOptions):
        """Defaults of the paper for ImageNet.

        lr: step size; 2.5e-4 with SGD for ImageNet (batch 64), 1e-3 with Adam for CIFAR (batch 200); other sizes:
            `rate_rules`.
        steps: updates on each batch; the prediction comes from the last forward pass, before its update.
        """

        steps: Count = 1

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the (last) update."""
        images = recordable(images)
        with gradients():
            for _ in range(self.config.steps):
                logits: Tensor = self.model(images)
                self.descend(self.uncertainty(logits).mean())
        return logits.detach()
