"""EATA: ETA with parameters anchored to the source by their importance for it (Niu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.adapters.eta import Eta, EtaOptions
from methods.base import Source
from methods.limits import Count, FiniteNotNegative
from methods.losses import at_least_float32, gradients, recordable


class Eata(Eta):
    """ETA plus beta * sum F (theta - theta_0)^2, which keeps parameters that matter for the source near it.

    Niu et al. 2022, arXiv:2204.02610, equations 7 to 9. F is the mean over batches of the squared gradient of a batch's
    mean cross-entropy to the model's own labels, on clean source images without labels, with the statistics of the
    batch; squared per batch as in the release, so it depends on the batch size. If no image is learnt from, the
    regulariser does not change the parameters either. Costs one forward and backward pass over `fisher_images` before
    the stream.
    """

    search = {
        "lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "epsilon": (0.05, 0.1, 0.2, 0.4),
        "beta": (1.0, 10.0, 100.0, 2000.0),
        "optimizer": ("sgd", "adam"),
    }
    checked_with = {**Eta.checked_with, "beta": 1.0}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4, "epsilon": 0.05, "beta": 2000.0},
        "imagenet-gn": {"lr": 2.5e-4, "epsilon": 0.05, "beta": 2000.0},
        "imagenet-ln": {"lr": 1e-3, "epsilon": 0.05, "beta": 2000.0},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.4, "beta": 1.0},
        "cifar100-bn": {"lr": 1e-3, "optimizer": "adam", "epsilon": 0.1, "beta": 1.0},
    }

    @dataclass(frozen=True)
    class Config(EtaOptions):
        """Defaults of the paper for ImageNet.

        beta: strength of the regulariser; 2000 for ImageNet, 1 for CIFAR.
        fisher_images: largest number of clean source images for the estimate of F.
        """

        beta: FiniteNotNegative = 2000.0
        fisher_images: Count = 2000

    def configure(self, source: Source | None) -> None:
        """Raises ValueError without source images, Unsupported for a model without affine parameters to adapt."""
        super().configure(source)
        if source is None or len(source) == 0:
            raise ValueError(
                "eata needs clean source images for its Fisher information; give prepare() a source, or use eta"
            )
        self.fisher = self.measure_fisher(source)
        self.anchor = [parameter.detach().clone() for parameter in self.parameters]

    def measure_fisher(self, source: Source) -> list[Tensor]:
        """Return the diagonal Fisher information of each adapted parameter, in the parameter's shape."""
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        batches, left = 0, self.config.fisher_images
        with gradients():
            for batch in source:
                images = recordable(batch.images[:left])
                logits = at_least_float32(self.model(images))
                loss = cross_entropy(logits, logits.argmax(1))
                slopes = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
                for sum_of_squares, slope in zip(total, slopes, strict=True):
                    sum_of_squares += slope**2
                batches, left = batches + 1, left - len(images)
                if left <= 0:
                    break
        return [sum_of_squares / batches for sum_of_squares in total]

    def regularise(self) -> None:
        for parameter, fisher, anchor in zip(self.parameters, self.fisher, self.anchor, strict=True):
            if parameter.grad is not None:
                # In closed form: autograd would launch several more small kernels for each parameter.
                parameter.grad += 2 * self.config.beta * fisher * (parameter - anchor)


class EataVal(Eata):
    """EATA with F from clean images of the test set's adapt half, as the release takes it from ImageNet's val images.

    Niu et al. 2022, arXiv:2204.02610. For data without train images. It has the options of eata and belongs to track C,
    as it is given images of the test set before scoring, though clean ones.
    """

    tested_against = "restatement"
