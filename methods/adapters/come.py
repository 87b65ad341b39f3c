"""COME: entropy of an opinion that can express "I do not know", instead of the usual entropy (Zhang et al. 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.adapters.eata import Eata
from methods.adapters.sar import Sar
from methods.adapters.tent import Tent
from methods.losses import at_least_float32
from methods.online import NormAdapter

SMALL = 1e-7


def opinion_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the opinion that logits express under subjective logic: [..., classes] -> [...].

    The opinion consists of C beliefs and the uncertainty: b = exp(x) / S and u = C / S with S = sum exp(x) + C, which
    is the softmax of x with ln C appended. The norm of the logits is held constant under differentiation, x = logits /
    |logits| * |logits|, so a model cannot become certain by scaling them (Zhang et al. 2025, arXiv:2410.10894,
    equations 6 to 9). As in the release, 1e-7 is added to each belief and to the uncertainty. Classes masked with -inf
    have no belief, and do not count in the norm.
    """
    logits = at_least_float32(logits)
    masked = torch.isneginf(logits)
    x = logits.masked_fill(masked, 0.0)
    length = x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    x = (x / length * length.detach()).masked_fill(masked, -math.inf)
    unsure = x.new_full((*x.shape[:-1], 1), math.log(x.shape[-1]))
    z = torch.cat([x, unsure], -1)
    # The logarithm of 1 is 0, so a masked class adds nothing.
    p = (z.softmax(-1) + SMALL).masked_fill(torch.isneginf(z), 1.0)
    return -(p * p.log()).sum(-1)


class _Conservative(NormAdapter):
    """Learns from the entropy of opinions instead of the entropy of probabilities."""

    rate_rules = {"imagenet-bn": "batch/32, at most 1", "imagenet-gn": "batch/32, at most 1", "imagenet-ln": "batch/64"}

    def uncertainty(self, logits: Tensor) -> Tensor:
        return opinion_entropy(logits)


class ComeTent(_Conservative, Tent):
    """TENT that minimises `opinion_entropy`.

    Zhang et al. 2025, arXiv:2410.10894, section 4, with the options of TENT.
    """

    tested_against = "golden"
    Config = Tent.Config


class ComeEata(_Conservative, Eata):
    """EATA that selects, weights and minimises by `opinion_entropy`, with the thresholds of EATA.

    Zhang et al. 2025, arXiv:2410.10894, section 4.
    """

    tested_against = "golden"
    Config = Eata.Config


class ComeSar(_Conservative, Sar):
    """SAR that selects, minimises and detects collapse by `opinion_entropy`, with the thresholds of SAR.

    Zhang et al. 2025, arXiv:2410.10894, section 4.
    """

    tested_against = "golden"
    Config = Sar.Config
