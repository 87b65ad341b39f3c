"""Prototypes for RMT and SANTA: class means of source features, and the contrast that gathers features around them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import skip_init

from methods.base import Source
from methods.losses import at_least_float32
from methods.nets.feature_head_split import Split


@torch.no_grad()
def class_means(parts: Split, source: Source | None, images: int, method: str) -> Tensor:
    """Return the mean features of every class among the first labelled source images: [at most classes, dim].

    Reads whole batches until it has `images` of them. Raises ValueError without labelled images.
    """
    sums, counts = torch.empty(0), torch.empty(0)
    seen = 0
    for batch in source or ():
        if batch.labels is None:
            break
        features, logits = parts(batch.images)
        features = at_least_float32(features)
        if not seen:
            sums = features.new_zeros(logits.shape[1], features.shape[1])
            counts = features.new_zeros(logits.shape[1])
        sums.index_add_(0, batch.labels, features)
        counts.index_add_(0, batch.labels, torch.ones_like(features[:, 0]))
        seen += len(features)
        if seen >= images:
            break
    if not seen:
        raise ValueError(f"{method} needs labelled clean source images for its prototypes; give prepare() a source")
    present = counts > 0
    return sums[present] / counts[present, None]


def nearest(prototypes: Tensor, features: Tensor) -> Tensor:
    """Return the prototype with the largest cosine to each feature: [k, dim], [n, dim] -> [n, dim]."""
    cosines = normalize(features.detach(), dim=1) @ normalize(prototypes, dim=1).T
    return prototypes[cosines.argmax(1)]


def build_projector(prototypes: Tensor, width: int, generator: torch.Generator) -> nn.Sequential:
    """Return two linear layers with a ReLU between, behind which features are compared, on the prototypes' device.

    Initialised as torch does by default, but from a CPU generator, so that the numbers are the same on every device.
    """
    sizes = (prototypes.shape[1], width), (width, width)
    first, last = (cast(nn.Linear, skip_init(nn.Linear, *size)) for size in sizes)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for layer in (first, last):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last).to(prototypes)


def contrast(views: Tensor, temperature: float) -> Tensor:
    """Contrast of several views of each image, in nats: [views, n, dim] -> scalar.

    Every vector is distinguished from all others by its cosine to the other views of its image, over `temperature`; the
    mean over vectors and their other views (Khosla et al. 2020, arXiv:2004.11362, equation 2, each image its own
    class).
    """
    count, n, _ = views.shape
    vectors = normalize(at_least_float32(views).flatten(0, 1), dim=1)
    itself = torch.eye(count * n, dtype=torch.bool, device=views.device)
    log_p = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    # The columns of the other views of each row's image, in ascending order; numbers alone, so no device is waited for.
    rows = torch.arange(count * n, device=views.device)[:, None]
    other = torch.arange(count - 1, device=views.device)
    partners = (other + (other >= rows // n)) * n + rows % n
    return -log_p.gather(1, partners).mean()
