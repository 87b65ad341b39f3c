"""LAME: corrects a batch's predictions so that images with near features get similar labels (Boudiaf et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.base import Adapter, Options, Source
from methods.limits import Count
from methods.nets.feature_head_split import split

Affinity = Literal["rbf", "knn", "linear"]

# Relative change of the energy at which the authors' release stops.
TOLERANCE = 1e-8
# Steps between two checks of convergence, at which the host waits for the device.
STEPS_PER_LOOK = 10


class Lame(Adapter):
    """Laplacian adjusted maximum-likelihood estimation: changes the outputs of each batch, never the model.

    Boudiaf et al. 2022, arXiv:2201.05718, equations 4-8: assignments Y reach a stationary point of sum_i KL(y_i || p_i)
    minus half of sum_ij w_ij y_i . y_j, for a symmetric affinity w of L2-normalised features, by the fixed point Y <-
    softmax(log p + W Y); the paper writes no half. BatchNorm keeps its source statistics. It helps if neighbours in the
    stream share their class and hurts if a batch holds many classes with few images each.
    """

    tested_against = "golden"
    search = {"affinity": ("rbf", "knn", "linear"), "neighbours": (1, 3, 5)}

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of most benchmarks; the authors choose affinity and neighbours for each model.

        affinity: "rbf" (exp(-d^2 / 2 s^2), s the mean distance to the k-th nearest), "knn" (1 for the k nearest others)
            or "linear" (cosine).
        neighbours: k, at least 1; for "rbf" the image itself counts as its nearest, as in the authors' release, so 1
            isolates it. In a smaller batch all images count. Without effect for "linear".
        steps: largest number of updates of a batch; updates stop earlier when the energy converges.
        """

        affinity: Affinity = "rbf"
        neighbours: Count = 5
        steps: Count = 100

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier that does not end in one linear layer."""
        self.parts = split(self.model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logarithm of the corrected probabilities, [n, classes]."""
        features, logits = self.parts(images)
        with torch.autocast(images.device.type, enabled=False):
            affinity = _AFFINITIES[self.config.affinity](normalize(features.float(), dim=1), self.config.neighbours)
            return correct(logits.float().softmax(dim=1), affinity, self.config.steps)


def correct(probabilities: Tensor, affinity: Tensor, steps: int) -> Tensor:
    """Return the logarithm of the assignments after at most `steps` updates: [n, classes], [n, n] -> [n, classes].

    Stops, from the third update on, when the energy sum(Y log Y - Y log p - Y (W Y')) (Y' the assignments before)
    changes by a relative amount of at most 1e-8, as the authors' release does.
    """
    likelihood = (probabilities + 1e-10).log()
    log_y = likelihood.log_softmax(dim=1)
    energy = likelihood.new_full((), torch.inf)
    still = torch.zeros((), dtype=torch.bool, device=likelihood.device)
    for step in range(steps):
        pairwise = affinity @ log_y.exp()
        new = (likelihood + pairwise).log_softmax(dim=1)
        y = new.exp()
        new_energy = (y * (new - likelihood - pairwise)).sum()
        # The update that reaches convergence counts; those after it, until the next check, do not.
        log_y = torch.where(still, log_y, new)
        if step > 1:
            still = still | ((new_energy - energy).abs() <= TOLERANCE * energy.abs())
        energy = new_energy
        if step % STEPS_PER_LOOK == STEPS_PER_LOOK - 1 and bool(still):
            break
    return log_y


def _distances(features: Tensor) -> Tensor:
    # The faster formula by matrix product gives an image a nonzero distance to itself.
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def rbf(features: Tensor, neighbours: int) -> Tensor:
    """Gaussian affinity of unit features [n, dim], [n, n]; if all k-th nearest are at 0, its limit (equality)."""
    distances = _distances(features)
    k = min(neighbours, len(features))
    deviation = distances.topk(k, dim=1, largest=False).values[:, -1].mean()
    smallest = torch.finfo(distances.dtype).tiny ** 0.5
    return torch.exp(-(distances / deviation.clamp_min(smallest)).square() / 2)


def knn(features: Tensor, neighbours: int) -> Tensor:
    """1 for the k nearest other images, else 0; not symmetric: unit features [n, dim] to [n, n]."""
    distances = _distances(features).fill_diagonal_(-1)
    nearest = distances.topk(min(neighbours + 1, len(features)), dim=1, largest=False).indices[:, 1:]
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def linear(features: Tensor, neighbours: int) -> Tensor:
    """Cosines of unit features [n, dim], [n, n]."""
    return features @ features.T


_AFFINITIES: dict[Affinity, Callable[[Tensor, int], Tensor]] = {"rbf": rbf, "knn": knn, "linear": linear}
