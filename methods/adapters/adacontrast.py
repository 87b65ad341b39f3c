"""AdaContrast: contrastive test-time adaptation with pseudo-labels refined by neighbours (Chen et al. 2022)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from methods.adapters.common.teachers import (
    TeacherOptions,
    build_optimizer,
    descend,
    generators,
    learnable,
    move_towards,
)
from methods.base import Adapter, Source
from methods.limits import Count, FiniteNotNegative, Fraction, NotNegative, Positive
from methods.losses import at_least_float32, gradients, recordable
from methods.nets.feature_head_split import split
from methods.norms import require_source_statistics, training_statistics
from methods.views.moco_views import strong_view
from methods.views.ssl_views import Views

# Area of a crop of side 224 in an image resized to 256.
_WEAK_AREA = (224 / 256) ** 2
# Addend inside the logarithm of the mean prediction.
ADDEND = 1e-8


class AdaContrast(Adapter):
    """Learns labels voted by nearby features, features that separate images of different labels, and diversity.

    Chen et al. 2022, arXiv:2204.10377, section 3, run online. The label of an image's weak view comes from the mean
    probabilities of its nearest neighbours (cosine) in a bank of weak views of the stream; before the bank holds
    `bank_start` images, from the model itself. With two strong views (`moco_views.strong_view`), three losses are
    summed: the student's cross-entropy on one view to these labels; the contrast of its features with those of the
    other view from the student's moving average, against a queue of earlier ones without those of the same label; and
    the negative entropy of the mean prediction. In every module the parameters named weight and bias step, with weight
    decay. As in the release, BatchNorm normalises with each batch while learning and its running averages follow; the
    prediction is made after the step, with these averages. Dropout and stochastic depth stay off. The queue starts with
    random vectors and labels.

    Two things of the releases are kept, as published numbers come from them. The labels of a batch enter the queue
    before the contrast and its keys after it, so the oldest keys count under the labels of those that replace them. And
    the first batch after the bank is full replaces the newest one; from the next on, the oldest are replaced.

    Costs 5 forward passes, two of them of the moving average, and 1 backward pass over what is learnt; keeps 2 *
    `queue` features.
    """

    tested_against = "golden"
    search = {"lr": (2e-5, 2e-4, 2e-3), "neighbours": (3, 10), "contrast_weight": (0.0, 1.0)}
    checked_with = {"lr": 1e-3, "queue": 8, "bank_start": 4, "neighbours": 2}
    presets = {"imagenet-bn": {"lr": 2e-4}, "imagenet-ln": {"lr": 2e-4}, "cifar-bn": {"lr": 2e-4}}

    @dataclass(frozen=True)
    class Config(TeacherOptions):
        """Defaults of the release.

        lr: step size; 2e-4 with SGD (batch 64, or 200 for CIFAR);
            the release keeps it for other batch sizes.
        weight_decay: of all parameters, at least 0.
        teacher_momentum: share of the moving average that stays at each step; in [0, 1].
        queue: number of images whose features are kept for the contrast, and for the votes (there the last batch that
            finds room enters as a whole).
        bank_start: number of images in the bank from which neighbours vote.
        neighbours: number of neighbours that vote.
        temperature: divisor of the cosines in the contrast; above 0.
        contrast_weight: weight of the contrast; at least 0.
        diversity_weight: weight of the negative entropy of the mean prediction; at least 0.
        """

        lr: float = 2e-4
        weight_decay: FiniteNotNegative = 1e-4
        teacher_momentum: Fraction = 0.999
        queue: Count = 16384
        bank_start: int = 1024
        neighbours: Count = 10
        temperature: Positive = 0.07
        contrast_weight: NotNegative = 1.0
        diversity_weight: NotNegative = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check(1 <= self.bank_start <= self.queue, "bank_start", "at least 1 and at most the queue")

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported without one linear head, or for a BatchNorm without source statistics."""
        require_source_statistics(self.model)
        self.parts = split(self.model)
        self.averaged = copy.deepcopy(self.parts)
        # Kept by name as well, since the content of a split is not saved as its state.
        self.teacher = self.averaged.model
        self.parameters, self.averages = learnable(self.model), learnable(self.teacher)
        self.optimizer = build_optimizer(self.parameters, self.config, self.config.weight_decay)
        self.host_draws, self.device_draws = generators(self.generator, self.model)
        self.weak_view = Views((_WEAK_AREA, _WEAK_AREA), (1, 1), self.config.flip, three_augment=False, jitter=0)
        # Empty until the first batch gives the number of classes.
        none = self.parameters[0].new_empty(0)
        self.keys, self.key_labels = none, none
        self.bank, self.bank_probabilities = none, none
        # Where the next batch goes.
        self.queue_place, self.bank_place = 0, 0

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes] from after the update."""
        images = recordable(images)
        with gradients(), training_statistics(self.model), training_statistics(self.teacher):
            with torch.no_grad():
                weak = self.weak_view(images.float() * 255, self.device_draws).to(images.dtype)
                labels = self.vote(*self.parts(weak))
                views = [strong_view(images, self.device_draws, flip=self.config.flip) for _ in range(2)]
                move_towards(self.averages, self.parameters, 1 - self.config.teacher_momentum)
                keys = _directions(self.averaged(views[1])[0])
                _write(self.key_labels, self.queue_place, labels)
            features, logits = self.parts(views[0])
            logits = at_least_float32(logits)
            loss = cross_entropy(logits, labels)
            loss = loss + self.config.contrast_weight * self.tell_apart(_directions(features), keys, labels)
            loss = loss + self.config.diversity_weight * diversity(logits)
            descend(loss, self.optimizer)
            self.remember(weak, keys)
        with torch.no_grad():
            answer: Tensor = self.model(images)
        return answer

    @torch.no_grad()
    def vote(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the label of each weak view, int64 [n]: by its nearest neighbours once there are enough images."""
        if self.keys.numel() == 0:
            self._fill(features.shape[1], logits.shape[1])
        if len(self.bank) < self.config.bank_start:
            return logits.argmax(1)
        bank: Tensor = self.bank
        near = (_directions(features) @ bank.T).topk(min(self.config.neighbours, len(bank)), dim=1).indices
        voted: Tensor = self.bank_probabilities[near].mean(1).argmax(1)
        return voted

    def _fill(self, dim: int, classes: int) -> None:
        like = at_least_float32(self.parameters[0].detach())
        drawn = torch.randn(self.config.queue, dim, generator=self.host_draws)
        self.keys = normalize(drawn.to(like), dim=1)
        self.key_labels = torch.randint(classes, (self.config.queue,), generator=self.host_draws).to(like.device)
        self.bank, self.bank_probabilities = like.new_empty(0, dim), like.new_empty(0, classes)

    def tell_apart(self, queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """InfoNCE of unit vectors [n, dim] to their keys, against queued keys of other labels; a scalar in nats."""
        others = (queries @ self.keys.T).masked_fill(labels[:, None] == self.key_labels, -torch.inf)
        cosines = torch.cat([(queries * keys).sum(1, keepdim=True), others], dim=1)
        scores: Tensor = cosines / self.config.temperature
        return -scores.log_softmax(1)[:, 0].mean()

    @torch.no_grad()
    def remember(self, weak: Tensor, keys: Tensor) -> None:
        """Put the keys into the queue, and the moving average's outputs for the weak views into the bank."""
        self.queue_place = _write(self.keys, self.queue_place, keys)
        features, logits = self.averaged(weak)
        directions, probabilities = _directions(features), at_least_float32(logits).softmax(1)
        if len(self.bank) < self.config.queue:
            self.bank = torch.cat([self.bank, directions])
            self.bank_probabilities = torch.cat([self.bank_probabilities, probabilities])
            self.bank_place = (self.bank_place + len(weak)) % len(self.bank)
        else:
            _write(self.bank, self.bank_place, directions)
            self.bank_place = _write(self.bank_probabilities, self.bank_place, probabilities)


def diversity(logits: Tensor) -> Tensor:
    """Negative entropy of the mean prediction in nats, [n, classes] -> scalar."""
    mean = logits.softmax(1).mean(0)
    return (mean * (mean + ADDEND).log()).sum()


def _directions(features: Tensor) -> Tensor:
    return normalize(at_least_float32(features), dim=1)


def _write(ring: Tensor, place: int, new: Tensor) -> int:
    """Write the last rows of `new` that fit into a ring, from a place on; return the place after them."""
    end = place + len(new)
    first = max(place, end - len(ring))
    ring[torch.arange(first, end, device=ring.device) % len(ring)] = new[first - end :]
    return end % len(ring)
