"""Losses that test-time methods share, stable for huge and for masked (-inf) logits, and gradient helpers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Return the logits in float32 if they are in half precision, which cannot hold small probabilities."""
    return logits.float() if logits.element_size() < 4 else logits


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax(logits) over the last dimension: [..., classes] -> [...].

    0 log 0 = 0, also in the gradient, so classes masked with -inf neither count nor give NaN.
    """
    logits = at_least_float32(logits)
    # Two softmaxes rather than exp(log p): rounds as the authors' releases do, and long streams amplify rounding.
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the mean of the views' predictions: [..., views, classes] -> [...].

    Averages in log space, so a probability too small for the dtype costs nothing (Zhang et al. 2022,
    arXiv:2110.09506, equation 1).
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    lowest = torch.finfo(log_p.dtype).min
    log_mean = log_p.clamp(min=lowest).logsumexp(-2) - math.log(logits.shape[-2])
    log_mean = log_mean.clamp(min=lowest)
    return -(log_mean * log_mean.exp()).sum(-1)


@contextmanager
def gradients() -> Iterator[None]:
    """Record gradients inside, even under an outer `torch.no_grad()`.

    Raises RuntimeError under `torch.inference_mode()`, which cannot be undone from inside.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "this method adapts by gradients, which torch.inference_mode() forbids; "
            "call predict outside it or under torch.no_grad()"
        )
    with torch.enable_grad():
        yield


def recordable(images: Tensor) -> Tensor:
    """Return the images without history, copied if they come from inference mode, which forbids saving for backward."""
    return images.clone() if images.is_inference() else images.detach()
