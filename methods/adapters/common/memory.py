"""Memories of images of the stream, and the base of methods that learn from one that is balanced over classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from methods.adapters.common.teachers import generators
from methods.base import Source
from methods.limits import Count, FinitePositive, Fraction
from methods.losses import at_least_float32, gradients, recordable
from methods.norms import batch_norm_layers, require_source_statistics
from methods.online import NormAdapter, NormOptions

FREE = -1


def place(memory: Tensor, images: Tensor, slots: Sequence[int]) -> None:
    """Write images, in order, into their slots of a memory on the same device; FREE (-1) is for images to leave out.

    Of several images for one slot the last stays.
    """
    last = {slot: row for row, slot in enumerate(slots) if slot != FREE}
    into, rows = (torch.tensor(list(each), dtype=torch.int64) for each in (last.keys(), last.values()))
    device = memory.device
    memory[into.to(device, non_blocking=True)] = images[rows.to(device, non_blocking=True)]


def held_slots(labels: Tensor, born: Tensor) -> Tensor:
    """Return the slots that hold an image, int64 [k], by class and age.

    The content of the memory alone then determines a batch made of it. `labels` (FREE where there is no image) and
    `born` are int64 [capacity] on the CPU.
    """
    order = np.lexsort((born.numpy(), labels.numpy()))
    return torch.from_numpy(order[labels.numpy()[order] != FREE])


def smoothed_entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return -p log(p + 1e-6) in nats of each class, p = softmax(logits / temperature): [n, classes] to equal shape."""
    probabilities = (at_least_float32(logits) / temperature).softmax(1)
    return -(probabilities * (probabilities + 1e-6).log())


@dataclass(frozen=True)
class MemoryOptions(NormOptions):
    """Options of a method that learns from a memory.

    lr: step size.
    capacity: images in the memory.
    update_every: images of the stream between two steps.
    statistics_share: how far the running statistics move to those of the memory in each pass of it; in [0, 1].
    temperature: of the softmax whose entropy is minimised; above 0.
    """

    lr: float = 1e-3
    optimizer: Literal["sgd", "adam"] = "adam"
    capacity: Count = 64
    update_every: Count = 64
    statistics_share: Fraction = 0.1
    temperature: FinitePositive = 1.0


class MemoryAdapter(NormAdapter):
    """Predicts with running statistics and learns from images of the stream, which it keeps by predicted class.

    Every image is predicted with the source or adapted running statistics of BatchNorm, so that no prediction depends
    on other images of its batch, and is then offered to the memory. After every `update_every` images, `update` learns
    from the memory, also within a batch: predictions do not depend on how the stream is cut into batches.

    A full memory replaces an image of a class that holds the most: of the newcomer's own class, if it is one of these
    and `may_replace` agrees, else of one at random.
    """

    def configure(self, source: Source | None) -> None:
        """Raises Unsupported without affine parameters to adapt or without source statistics in a BatchNorm."""
        super().configure(source)
        self.draws, _ = generators(self.generator, self.model)
        # For decisions on the host; the images, on their device, and the counts of classes come with the first batch.
        self.labels = torch.full((self.config.capacity,), FREE)
        self.born = torch.zeros(self.config.capacity, dtype=torch.int64)
        self.offered = torch.zeros(0, dtype=torch.int64)
        self.images = self.parameters[0].new_empty(0)
        self.seen = 0

    def choose_statistics(self) -> None:
        require_source_statistics(self.model)
        for layer in batch_norm_layers(self.model):
            layer.momentum = self.config.statistics_share

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to logits [n, classes], each from before any update by its image."""
        images = recordable(images)
        answers = []
        with gradients():
            while len(images):
                until = self.config.update_every - self.seen % self.config.update_every
                now, images = images[:until], images[until:]
                with torch.no_grad():
                    answers.append(self.classify(now))
                    self.remember(now, answers[-1])
                if self.seen % self.config.update_every == 0 and (self.labels != FREE).any():
                    held = held_slots(self.labels, self.born)
                    self.update(self.images[held.to(self.images.device, non_blocking=True)])
        return torch.cat(answers)

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits of images, with running statistics."""
        logits: Tensor = self.model(images)
        return logits

    @abstractmethod
    def update(self, images: Tensor) -> None:
        """Learn from the images in the memory, float [k, 3, h, w]."""

    def remember(self, images: Tensor, logits: Tensor) -> None:
        """Offer images in order to the memory, under the class that their logits make the most probable."""
        if self.images.numel() == 0:
            self.images = images.new_zeros(self.config.capacity, *images.shape[1:])
            self.offered = torch.zeros(logits.shape[1], dtype=torch.int64)
        confidence = at_least_float32(logits).softmax(1).amax(1)
        # One copy to the host, which manages the memory; its images stay on the device.
        labels, confidences = torch.stack([logits.argmax(1).double(), confidence.double()]).tolist()
        draws = torch.rand(len(images), 3, generator=self.draws, dtype=torch.float64).tolist()
        slots = []
        for label, certain, uniforms in zip(map(int, labels), confidences, draws, strict=True):
            self.offered[label] += 1
            slot = self.slot(label, *uniforms) if self.may_enter(certain) else FREE
            if slot != FREE:
                self.labels[slot], self.born[slot] = label, self.seen
            slots.append(slot)
            self.seen += 1
        place(self.images, images, slots)

    def slot(self, label: int, coin: float, which: float, position: float) -> int:
        """Return the slot for a new image of a class, or FREE for none; the last three are uniform in [0, 1)."""
        labels = self.labels.numpy()
        if (labels == FREE).any():
            return int((labels == FREE).argmax())
        sizes = np.bincount(labels, minlength=len(self.offered))
        largest = np.flatnonzero(sizes == sizes.max())
        if label in largest and not self.may_replace(label, int(sizes[label]), coin):
            return FREE
        loser = label if label in largest else largest[int(which * len(largest))]
        held = np.flatnonzero(labels == loser)
        held = held[self.born.numpy()[held].argsort()]
        return int(held[int(position * len(held))])

    def may_enter(self, confidence: float) -> bool:
        """Return whether an image of this largest probability may enter the memory."""
        return True

    def may_replace(self, label: int, held: int, coin: float) -> bool:
        """Return whether a new image may replace one of the `held` images of its class; `coin` is uniform in [0, 1)."""
        return True
