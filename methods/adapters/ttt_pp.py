"""TTT++: learns to tell views apart and keeps the moments of features at those of the source (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.adapters.common.prototypes import contrast
from methods.adapters.common.side_heads import with_side_head
from methods.adapters.common.teachers import generators
from methods.base import Adapter, Options, Source
from methods.limits import Count, FiniteNotNegative, FinitePositive, FractionBelowOne, at_least
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import batch_norm_layers, training_statistics
from methods.views.simclr_views import simclr_view

# The contrast counts the temperature over this, the difference of means half of that of covariances.
BASE_TEMPERATURE, MEAN_SHARE = 0.07, 0.5


class TttPp(Adapter):
    """One step on a contrast of two views of each image and towards the mean and covariance of source features.

    Liu et al. 2021, TTT++: When Does Self-Supervised Test-Time Training Fail or Thrive? (NeurIPS). The classifier needs
    a projection head that learnt with it to tell views apart (recipe `source_contrast`). Three losses are summed: the
    contrast of the projections of two views (`simclr_view`), times `temperature` / 0.07 as in the release, and for the
    features of the encoder and for their projections the squared differences of mean and covariance between images of
    the stream and clean source images. Of the stream these are the images of the batch and, once it has filled, a queue
    of the features before them; no gradient flows through the queue. Each difference is divided by what two parts of
    the source differ by, so that its scale says how much it counts.

    As in the release, the encoder learns and the head of the projection stays; there is no weight decay. In a step
    BatchNorm normalises with each pass and moves its running averages, once for the two views and once for each
    space of features, and the prediction, of the updated model, uses them. A batch enters the queue before the queue is
    read, so its features count twice, once without a gradient. Dropout and stochastic depth stay off.

    The release goes over all test images for up to 500 epochs, of which the first move BatchNorm alone and the next
    leave out the alignment; it lowers its rate and stops by the test error, for which it reads labels. Here each batch
    takes one step and is predicted.

    A batch costs 5 forward passes of its images, 4 without BatchNorm, and 3 backward passes; before the stream,
    `source_images` pass forward once. It keeps `queue` features and a covariance of the encoder (16 MB for 2048).
    """

    tested_against = "golden"
    search = {"lr": (1e-4, 1e-3, 1e-2), "encoder_scale": (0.05, 0.5, 5.0), "projection_scale": (0.2, 20.0)}
    checked_with = {"lr": 1e-3, "queue": 6, "encoder_scale": 1e-3, "projection_scale": 1e-3}
    needs = "source_contrast"
    presets = {
        "cifar-bn": {
            "lr": 1e-2,
            "queue": 1536,
            "encoder_scale": 0.05,
            "projection_scale": 0.2,
            "source_images": 50000,
        },
        "cifar100-bn": {
            "lr": 1e-4,
            "queue": 2048,
            "encoder_scale": 5.0,
            "projection_scale": 20.0,
            "source_images": 50000,
        },
    }

    @dataclass(frozen=True)
    class Config(Options):
        """Defaults of the release; its scripts for CIFAR set other scales and longer queues (batch 256).

        lr: step size of SGD.
        momentum: of SGD; in [0, 1).
        contrast: learn to tell views apart; without it, only the moments of features are aligned.
        temperature: divisor of the cosines in the contrast; above 0.
        encoder_scale: weight of the alignment of the encoder's features; 0 for none.
        projection_scale: weight of the alignment of their projections; 0 for none.
        queue: images whose moments are taken together, those of the batch included; a queue of less than two batches
            is not used.
        fix_head: adapt the encoder alone and not the projection head, as the release's scripts do.
        flip: mirror views with probability one half; switch it off where mirrored classes differ, as digits do.
        source_images: largest number of clean source images for the moments; all 50000 in the release.
        """

        lr: FiniteNotNegative = 1e-3
        momentum: FractionBelowOne = 0.9
        contrast: bool = True
        temperature: FinitePositive = 0.5
        encoder_scale: FiniteNotNegative = 0.5
        projection_scale: FiniteNotNegative = 0.2
        queue: Count = 256
        fix_head: bool = True
        flip: bool = True
        source_images: Annotated[int, at_least(4)] = 10000

        def __post_init__(self) -> None:
            super().__post_init__()
            learns = self.contrast or self.encoder_scale > 0 or self.projection_scale > 0
            self.check(learns, "contrast", "true where both scales are 0, else there is nothing to learn")

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported for a classifier without a projection head, ValueError for too few source images."""
        if source is None:
            raise ValueError("ttt_pp aligns features with the source's; give prepare() a source of clean images")
        head = self.network.projection
        fixed = {id(parameter) for parameter in head.parameters()} if self.config.fix_head else set()
        self.parameters = [value for value in self.model.parameters() if id(value) not in fixed]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum)
        self.device_draws = generators(self.generator, self.model)[1]
        self.targets = self._of_source(source) if any(self.scales) else []
        self.queues = [target["mean"].new_zeros(self.config.queue, len(target["mean"])) for target in self.targets]
        self.queued = 0

    @property
    def network(self) -> Any:
        """The module in the model that has a projection head: `projection`, a module, and `features`, a method.

        `features` maps images [n, 3, h, w] in [0, 1] to what the classifier's last layer reads, [n, dim], and
        `projection` that to [n, k]. Raises Unsupported unless there is exactly one.
        """
        return with_side_head(
            self.model,
            "projection",
            "features",
            "ttt_pp needs a classifier with one projection head, behind which it learnt to tell views apart,",
            "use source_contrast+ttt_pp, or the adapter alone on a stock, which trains such a classifier",
        )

    @property
    def scales(self) -> list[float]:
        """The weights of the alignment, of the encoder's features and of their projections."""
        return [self.config.encoder_scale, self.config.projection_scale]

    def spaces(self, images: Tensor) -> list[Tensor]:
        """Return the features that are aligned: of the encoder, [n, dim], and their projections, [n, k]."""
        features = self.network.features(images)
        return [at_least_float32(each) for each in (features, self.network.projection(features))]

    @torch.no_grad()
    def _of_source(self, source: Source) -> list[dict[str, Tensor]]:
        """Return the moments of source images in each space, and what two parts of the source differ by there.

        As in the release, the first part is compared with each of the others, and the moments are those of the others.
        """
        found: list[list[Tensor]] = []
        left = self.config.source_images
        for batch in source:
            images = simclr_view(batch.images[:left], self.device_draws, flip=self.config.flip, colours=False)
            found.append(self.spaces(images))
            left -= len(images)
            if left <= 0:
                break
        size = max(self.config.queue, len(found[0][0])) if found else self.config.queue
        every = [torch.cat(of_space) for of_space in zip(*found, strict=True)]
        given = len(every[0]) if every else 0
        if given < 2 * size:
            raise ValueError(
                f"ttt_pp compares parts of {size} clean source images (the queue or a batch) and was given {given}; "
                f"give at least {2 * size} or lower ttt_pp.queue and the batch size"
            )
        whole = given - given % size
        return [_target(torch.split(features[:whole], size)) for features in every]

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from after the update."""
        images = recordable(images)
        with gradients():
            self.optimizer.zero_grad(set_to_none=True)  # of an interrupted batch
            with training_statistics(self.model):
                if self.config.contrast:
                    self.tell_apart(images).backward()  # type: ignore[no-untyped-call]
                if any(self.scales):
                    self.align(images)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                logits: Tensor = self.model(images)
        return logits

    def tell_apart(self, images: Tensor) -> Tensor:
        """Return the contrast of two views of each image, a scalar."""
        views = [simclr_view(images, self.device_draws, flip=self.config.flip) for _ in range(2)]
        projected: Tensor = self.network.projection(self.network.features(torch.cat(views))).unflatten(0, (2, -1))
        factor: float = self.config.temperature / BASE_TEMPERATURE
        return factor * contrast(projected, self.config.temperature)

    def align(self, images: Tensor) -> None:
        """Add the gradient of the distance to the source's moments, and put the features into the queue."""
        samples = [self.with_queue(place, features) for place, features in enumerate(self.spaces(images))]
        if len(samples[0]) > 1:  # else there is no covariance
            weighed = zip(self.scales, samples, self.targets, strict=True)
            distances = [scale * _distance(features, target) for scale, features, target in weighed if scale]
            torch.stack(distances).sum().backward()  # type: ignore[no-untyped-call]
        self.queued = min(self.queued + len(images), self.config.queue)
        if all(self.scales) and batch_norm_layers(self.model):
            with torch.no_grad():  # the release passes the batch once for each space, so the averages move twice
                self.network.features(images)

    def with_queue(self, place: int, features: Tensor) -> Tensor:
        """Return features [n, dim] with those of the queue, if it has filled, and put them into it: [<= queue, dim]."""
        before = self.config.queue - len(features)
        self.queues[place] = torch.cat([features.detach(), self.queues[place]])[: self.config.queue]
        if before < len(features) or self.queued < before:
            return features
        return torch.cat([features, self.queues[place][:before]])


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [dim] and the covariance [dim, dim] of features [n, dim], n at least 2."""
    with torch.autocast(features.device.type, enabled=False):
        mean = features.mean(0)
        centred = features - mean
        return mean, centred.T @ centred / (len(features) - 1)


def _distance(features: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Return how far the moments of features [n, dim] are from those of the source, in those of a part of it."""
    mean, covariance = _moments(features)
    of_covariance = (covariance - target["covariance"]).square().mean() / target["usual_of_covariance"]
    total: Tensor = of_covariance + MEAN_SHARE * (mean - target["mean"]).square().mean() / target["usual_of_mean"]
    return total


def _target(parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the moments of all parts of the source but the first, [n, dim] each, and the usual distance to it."""
    mean, covariance = _moments(parts[0])
    others = [_moments(part) for part in parts[1:]]
    usual = {
        "usual_of_mean": torch.stack([(mean - other).square().mean() for other, _ in others]).mean(),
        "usual_of_covariance": torch.stack([(covariance - other).square().mean() for _, other in others]).mean(),
    }
    if not all(value > 0 for value in usual.values()):
        raise ValueError("ttt_pp found source features that do not vary, or are not finite; give other source images")
    mean, covariance = _moments(torch.cat(list(parts[1:])))
    return {"mean": mean, "covariance": covariance, **usual}
