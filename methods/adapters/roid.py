"""ROID: universal test-time adaptation by weighting, weight ensembling and consistency (Marsden et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.adapters.common.teachers import (
    TeacherOptions,
    build_optimizer,
    generators,
    move_towards,
    symmetric_cross_entropy,
)
from methods.base import Source
from methods.limits import Fraction, Positive
from methods.losses import at_least_float32, entropy, gradients, recordable
from methods.online import NormAdapter, refuse_float16
from methods.views.cotta_views import draw_view, make_view

# Constants of the release: largest probability in the loss, addend inside its logarithm.
LARGEST = 0.99
ADDEND = 1e-5
# Share of the old value in the running mean of predictions.
MEMORY = 0.9


@dataclass(frozen=True)
class RoidOptions(TeacherOptions):
    """Options of a method that learns as ROID does.

    lr: step size; 2.5e-4 with SGD for ImageNet (batch 64), 1e-3 with Adam for CIFAR (batch 200);
        the release keeps it for other batch sizes.
    temperature: of the weights; a smaller one separates images more.
    """

    temperature: Positive = 1 / 3


class Roid(NormAdapter):
    """Learns from certain and diverse images by a soft likelihood ratio and by consistency, near the source.

    Marsden, Doebler and Yang 2024, arXiv:2306.00650, equations 1 to 9. In each batch an image counts if its prediction
    is at least as far (cosine) from the running mean of predictions as the average image's. Its weight is exp(diversity
    * certainty / temperature), both scaled to [0, 1] over the batch. The loss is the negative soft likelihood ratio
    -sum q log(q / (1 - q)) (q cut at 0.99) plus the symmetric cross-entropy to one augmented view, summed and divided
    by the size of the largest batch so far, so that a short last batch moves less. After each step the parameters
    return to the source by `source_share`. The prediction is the logits from before the update times the smoothed mean
    prediction of the batch (the release's prior correction, which multiplies logits).

    If all images of a batch are equally diverse or certain (one image, the same image many times), this measure is 0
    for each of them; the release divides 0 by 0 there.
    """

    tested_against = "golden"
    search = {"lr": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "optimizer": ("sgd", "adam"), "source_share": (0.001, 0.01, 0.1)}
    checked_with = {"lr": 0.01}
    presets = {
        "imagenet-bn": {"lr": 2.5e-4},
        "imagenet-gn": {"lr": 2.5e-4},
        "imagenet-ln": {"lr": 2.5e-4},
        "cifar-bn": {"lr": 1e-3, "optimizer": "adam"},
    }

    @dataclass(frozen=True)
    class Config(RoidOptions):
        """Defaults of the paper for ImageNet.

        source_share: how far the parameters return to the source after each step, in [0, 1].
        """

        source_share: Fraction = 0.01

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a model without affine parameters to adapt, or in float16."""
        super().configure(source)
        refuse_float16(self.parameters, "the weighted gradients of this method exceed the range of float16")
        self.anchor = [parameter.detach().clone() for parameter in self.parameters]
        # Empty until the first batch gives the number of classes.
        self.mean = self.parameters[0].new_empty(0)
        self.batch_size = 0
        self.host_draws, self.device_draws = generators(self.generator, self.model)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.parameters, self.config)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the corrected logits [n, classes] from before the update."""
        images = recordable(images)
        self.batch_size = max(self.batch_size, len(images))
        with gradients():
            logits: Tensor = self.model(images)
            weights = self.weigh(logits.detach())
            kept = weights.nonzero()[:, 0]
            view = make_view(
                images[kept],
                draw_view(self.host_draws, smooth=False, flip=self.config.flip),
                self.device_draws,
                padding="reflect",
            )
            chosen = logits[kept]
            losses = likelihood_ratio(chosen) + symmetric_cross_entropy(self.model(view), chosen)
            self.descend((losses * weights[kept]).sum() / self.batch_size)
        self.settle()
        return correct_prior(logits.detach())

    @torch.no_grad()
    def weigh(self, logits: Tensor) -> Tensor:
        """Return the weight of each image, 0 for excluded ones: [n, classes] -> [n]; updates the running mean."""
        probabilities = at_least_float32(logits).softmax(1)
        if self.mean.numel() == 0:
            self.mean = torch.full_like(probabilities[0], 1 / logits.shape[1])
        diversity = _rescaled(1 - cosine_similarity(self.mean[None], probabilities, dim=1))
        weights = torch.exp(diversity * _rescaled(-entropy(logits)) / self.config.temperature)
        self.mean = MEMORY * self.mean + (1 - MEMORY) * probabilities.mean(0)
        return torch.where(diversity < diversity.mean(), 0.0, weights)

    def settle(self) -> None:
        """After each step, move the parameters towards the source by `source_share`."""
        move_towards(self.parameters, self.anchor, self.config.source_share)


def likelihood_ratio(logits: Tensor) -> Tensor:
    """Negative soft likelihood ratio -sum q log(q / (1 - q) + 1e-5), q = min(p, 0.99): [n, classes] -> [n]."""
    q = at_least_float32(logits).softmax(1).clamp(max=LARGEST)
    return -(q * (q / (1 - q) + ADDEND).log()).sum(1)


@torch.no_grad()
def correct_prior(logits: Tensor) -> Tensor:
    """Return logits [n, classes] times the mean prediction of the batch, smoothed more for fewer images."""
    n, classes = logits.shape
    prior = at_least_float32(logits).softmax(1).mean(0)
    smoothing = max(1 / n, 1 / classes) / prior.max()
    return logits * ((prior + smoothing) / (1 + smoothing * classes)).to(logits.dtype)


def _rescaled(values: Tensor) -> Tensor:
    """Return values [n] scaled to [0, 1]; zeros if they are all equal."""
    least, most = values.aminmax()
    return (values - least) / (most - least).clamp_min(torch.finfo(values.dtype).tiny)
