"""`source_contrast`: the stock fine-tuned on labels and on a contrast of views together, the source of TTT++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from methods.adapters.common.prototypes import contrast
from methods.base import Checkpointer, Job, Labelled, Recipe, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup, Share
from methods.identity import component
from methods.limits import FinitePositive, Fraction
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.training.finetune import FineTune, classification, fit, joint_training
from methods.views.simclr_views import simclr_view

SIDE_HEAD = "projection"
VIEWS = 2
SCALE = 0.07
"""The contrast is weighed by the temperature over this, as in the code that both releases took it from."""


@component("methods.source_contrast.Contrasting")
@dataclass(frozen=True)
class Contrasting(FineTune):
    """Options of fine-tuning on labels and a contrast together; see `SourceContrast.Config`."""

    area: float = 0.2
    jitter: float = 0.4
    balance: Fraction = 0.9
    temperature: FinitePositive = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(not self.three_augment, "three_augment", "false (the views are those of SimCLR)")

    @property
    def views(self) -> Callable[[Tensor, torch.Generator, Share], Tensor]:
        """What makes of a batch, uint8 [n, 3, h, w], two views of each image: float [n, 2, 3, h, w] in [0, 1]."""
        options: dict[str, Any] = {"area": self.area, "flip": self.flip, "jitter": self.jitter}

        def pairs(images: Tensor, generator: torch.Generator, share: Share) -> Tensor:
            pixels = images.float() / 255
            return torch.stack([simclr_view(pixels, generator, share=share, **options) for _ in range(VIEWS)], dim=1)

        return pairs


@component("methods.source_contrast.fine_tune_contrastively")
def fine_tune_contrastively(
    inputs: Sequence[Weights],
    data: Labelled,
    config: Contrasting,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Train a classifier with a projection head (`projection.*`); a job function, resumable and shared.

    Inputs, steps and errors are those of `methods.training.finetune.fine_tune`.
    """

    def loss(model: Classifier, images: Tensor, labels: Tensor, share: Share) -> Tensor:
        features = share.everyone(model.features(images.transpose(0, 1).flatten(0, 1)), VIEWS)
        of_labels = VIEWS * classification(model.head(features), labels.repeat(VIEWS), config)
        assert model.projection is not None
        projected = model.projection(features).unflatten(0, (VIEWS, -1))
        of_views = config.temperature / SCALE * contrast(projected, config.temperature)
        return config.balance * of_labels + (1 - config.balance) * of_views

    return fit(inputs, data, config, generator, loss, keep, parallel, side_head=SIDE_HEAD)


class SourceContrast(Recipe):
    """Linear probe, then fine-tuning of the stock on labels and a contrast of views, as TTT++ needs.

    Liu et al. 2021 (TTT++), as in the release of their joint training: two views of each image (`simclr_view`) pass
    through the encoder; the loss is `balance` times the sum of both views' cross-entropies to the label plus 1 -
    `balance` times `temperature` / 0.07 times a contrast of their projections (SimCLR, arXiv:2002.05709), by which each
    view must find the other among all views of the batch. The projection head has two layers on the features of the
    encoder. Predictions do not use it. With `accumulate`, each part of a batch contrasts its own views.

    Linear probe, optimiser and schedule are those of `source`, not those of the release (SGD at a rate of 1 for 500
    epochs, from a classifier). A step passes two views of each image forward and backward; `source` passes one.
    """

    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60), "balance": (0.5, 0.9)}

    @dataclass(frozen=True)
    class Config(Contrasting):
        """Options of fine-tuning (see methods.training.finetune.FineTune) and of the contrast, as in the release.

        area: smallest share of an image that a view shows; in (0, 1].
        jitter: by how much brightness, contrast and saturation of a view change, and four times the turn of its hue.
        balance: share of the labels in the loss, in [0, 1]; 0.9 in the release's script.
        temperature: divisor of the cosines in the contrast; above 0.
        """

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        """Raises Unsupported where batches cannot be cut into equal parts."""
        config = Contrasting(**{field.name: getattr(self.config, field.name) for field in fields(Contrasting)})
        dim = stock.architecture.dim
        heads = flops.layers((dim, source.classes)) + flops.layers((dim, dim, 128))
        image = VIEWS * (flops.training(stock.architecture) + 3 * heads)
        return {"": joint_training(fine_tune_contrastively, config, stock, source, image, SIDE_HEAD, "a contrast")}
