"""TENT: fully test-time adaptation by entropy minimisation of the normalisation layers (Wang et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Adapter, Source, Unsupported
from methods.losses import entropy, gradients, recordable
from methods.norms import norm_parameters, use_batch_statistics
from methods.table import Access


class Tent(Adapter):
    """Minimises the mean entropy of each batch over the affine parameters of the normalisation layers, online.

    Wang et al. 2021, arXiv:2006.10726, equation 1 and section 3.2. BatchNorm uses the statistics of the batch
    (a layer that sees one value per channel the source's, see `use_batch_statistics`); LayerNorm, GroupNorm and the
    rest are adapted as in the release of SAR (Niu et al. 2023, arXiv:2302.12400), since the original knows BatchNorm
    alone. Dropout and stochastic depth stay off.
    """

    tested_against = "golden"
    access: ClassVar[Access] = Access(test="stream", state="online", backprop="norm")
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "optimizer": ("sgd", "adam"),
        "steps": (1, 2),
    }

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper for ImageNet.

        lr: step size; 2.5e-4 with SGD for ImageNet (batch 64), 1e-3 with Adam for CIFAR (batch 200).
        optimizer: "sgd" (with momentum, without Nesterov) or "adam" (betas `momentum` and 0.999). No weight decay.
        momentum: of SGD, or the first beta of Adam; in [0, 1).
        steps: updates on each batch; the prediction is that of the last forward pass, made before its update.
        """

        lr: float = 2.5e-4
        optimizer: Literal["sgd", "adam"] = "sgd"
        momentum: float = 0.9
        steps: int = 1

        def __post_init__(self) -> None:
            if not (math.isfinite(self.lr) and self.lr >= 0):
                raise ValueError(f"tent.lr must be a finite number of at least 0, not {self.lr}")
            if self.optimizer not in ("sgd", "adam"):
                raise ValueError(f'tent.optimizer must be "sgd" or "adam", not "{self.optimizer}"')
            if not 0 <= self.momentum < 1:
                raise ValueError(f"tent.momentum must lie in [0, 1), not {self.momentum}")
            if self.steps < 1:
                raise ValueError(f"tent.steps must be at least 1, not {self.steps}")

    def configure(self, source: Source | None) -> None:
        use_batch_statistics(self.model)
        self.parameters = list(norm_parameters(self.model).values())
        if not self.parameters:
            raise Unsupported(
                "tent adapts the affine parameters of normalisation layers and this model has none; "
                "choose a model with BatchNorm, LayerNorm or GroupNorm, or a method that needs no such layer, as memo"
            )
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = self.build_optimizer()

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of `self.parameters` that the options name."""
        if self.config.optimizer == "adam":
            return torch.optim.Adam(self.parameters, lr=self.config.lr, betas=(self.config.momentum, 0.999))
        return torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the (last) update.

        Raises RuntimeError under `torch.inference_mode()`.
        """
        images = recordable(images)
        with gradients():
            for _ in range(self.config.steps):
                logits: Tensor = self.model(images)
                entropy(logits).mean().backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()
