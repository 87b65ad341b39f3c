"""Train a classifier from random weights on clean labelled images, as convolutional networks usually are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Checkpointer, Labelled, Options
from methods.identity import component
from methods.limits import Count, FiniteNotNegative, Fraction, FractionBelowOne, Whole
from methods.nets.small_resnets import SmallResNet
from methods.nets.weights import AnyArchitecture, Classifier, Weights
from methods.norms import norm_family, training_statistics
from methods.training.loading import InOrder, loaded, upload
from methods.training.loop import Batches, ParameterGroup, Progress, check_size, train
from methods.views.padded_crops import crop_padded, draw_crops

_TEST_BATCH = 500


@component("methods.supervised.Supervised")
@dataclass(frozen=True)
class Supervised(Options):
    """Options of training a classifier from scratch by gradient descent with Nesterov momentum.

    lr: peak learning rate, reached after the fraction `warmup` of all steps, then a cosine to 0. weight_decay acts on
    all parameters. padding, flip: each image is padded by this many black pixels, cut back to its size at a random
    place, and mirrored with probability one half (methods.views.padded_crops). bf16: convolutions in bfloat16,
    parameters in float32; on a CPU with AMX twice as fast. stop: end after this many steps of the schedule, to check a
    recipe at a fraction of its cost.

    The defaults are for ResNet-20 on CIFAR-10 and follow He et al. (arXiv:1512.03385, section 4.2) in network, batch
    size, peak rate, momentum and augmentation. They differ in length (50 epochs, not 164), schedule (warm-up and
    cosine, not steps), weight decay (5e-4, not 1e-4, which suits the shorter training), Nesterov momentum, and in
    padding by black instead of mean pixels. Raises ValueError for values outside their range.
    """

    architecture: AnyArchitecture = field(default_factory=SmallResNet)
    epochs: Count = 50
    batch_size: Count = 128
    lr: FiniteNotNegative = 0.1
    momentum: FractionBelowOne = 0.9
    weight_decay: FiniteNotNegative = 5e-4
    warmup: Fraction = 0.1
    label_smoothing: FractionBelowOne = 0.0
    padding: Whole = 4
    flip: bool = True
    bf16: bool = False
    stop: int | None = None

    def steps(self, images: int) -> int:
        """Return the steps of all epochs; a last batch that is not full is left out, unless it is the only one."""
        return self.epochs * max(1, images // self.batch_size)


class Course:
    """The accuracy of each epoch so far, in [0, 1]; a part of a training's checkpoint.

    learnt: on the augmented images of the epoch, as the network met them. held_out: on images that are not trained on,
    with the weights at its end; empty without such images.
    """

    def __init__(self, images: Labelled | None = None) -> None:
        self.images = images
        self.learnt: list[float] = []
        self.held_out: list[float] = []
        self._seen = 0
        self._right = torch.zeros((), dtype=torch.int64)

    def count(self, logits: Tensor, labels: Tensor) -> None:
        """Note the answers to a batch: scores [n, classes] and labels, int64 [n]."""
        self._seen += len(labels)
        self._right = self._right.to(labels.device) + (logits.detach().argmax(1) == labels).sum()

    def close(self, model: Classifier, images: int) -> None:
        """End the epoch if this many images were met: note its accuracies."""
        if self._seen < images:
            return
        self.learnt.append(int(self._right) / self._seen)
        if self.images is not None:
            weights = Classifier.of(model.weights()).eval()
            self.held_out.append(accuracy(weights.to(next(model.parameters()).device), self.images))
        self._seen, self._right = 0, torch.zeros_like(self._right)

    def state_dict(self) -> dict[str, Any]:
        return {
            "learnt": list(self.learnt),
            "held_out": list(self.held_out),
            "seen": self._seen,
            "right": int(self._right),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learnt, self.held_out = list(state["learnt"]), list(state["held_out"])
        self._seen, self._right = state["seen"], torch.tensor(state["right"])


@torch.no_grad()
def accuracy(model: nn.Module, data: Labelled) -> float:
    """Return the fraction of images that a classifier in eval mode, which is on its device, labels correctly."""
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    for rows, pixels in loaded(data.images, InOrder(len(data), _TEST_BATCH, data.images.device), device):
        labels = upload(data.labels[rows.to(data.labels.device)], device)
        right += (model(pixels.float() / 255).argmax(1) == labels).sum()
    return int(right) / len(data)


@component("methods.supervised.train_classifier")
def train_classifier(
    inputs: Sequence[Weights],
    data: Labelled,
    config: Supervised,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    course: Course | None = None,
) -> Weights:
    """Train a classifier (`encoder.*`, `head.*`) from random weights; a resumable job function (methods.base.Job).

    `inputs` must be empty. Runs on `generator.device`; the generator also draws the initial weights. The head starts at
    zero. `course` is given the accuracy of each epoch.

    Raises TypeError for images without labels, ValueError for images of another size or if `inputs` is not empty,
    FloatingPointError if training diverges.
    """
    if inputs:
        raise ValueError("training from scratch takes no input weights; to continue from weights use fine_tune")
    if not isinstance(data, Labelled):
        raise TypeError("a classifier learns from labelled images; pass a Labelled data set")
    check_size(data, config.architecture)
    course = course if course is not None else Course()
    device = generator.device
    model = _untrained(config.architecture, data.classes, generator)
    order = Batches(len(data), config.batch_size, generator, data.images.device, drop_last=True)
    epoch = config.steps(len(data)) // config.epochs * min(config.batch_size, len(data))

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for indices, pixels in loaded(data.images, order, device):
            course.close(model, epoch)
            crops = draw_crops(len(pixels), config.padding, generator, flip=config.flip)
            yield (
                crop_padded(pixels, crops, config.padding).float() / 255,
                upload(data.labels[indices.to(data.labels.device)], device),
            )

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        # Not the autocast of `train`, which refuses a CPU: its matrices are too small to gain, convolutions are not.
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            logits: Tensor = model(images)
        course.count(logits, labels)
        return F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)

    with training_statistics(model):
        train(
            loss,
            stream(),
            [ParameterGroup([p for p in model.parameters() if p.requires_grad], config.lr, config.warmup)],
            steps=config.steps(len(data)),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            stop=config.stop,
            progress=Progress(keep, (model, order, course), generator) if keep is not None else None,
        )
    course.close(model, epoch)
    return model.weights()


def _untrained(shape: AnyArchitecture, classes: int, generator: torch.Generator) -> Classifier:
    """Return a classifier with a random encoder and a head of zeros, in the memory layout that trains fastest."""
    encoder = shape.initial(generator)
    model = Classifier(shape, classes)
    model.encoder.load_state_dict(encoder.state_dict())
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    # Channels last is half as fast again for BatchNorm on a CPU, and half as fast for GroupNorm.
    if norm_family(encoder) == "bn":
        model = model.to(memory_format=torch.channels_last)
    return model.eval().to(generator.device)
