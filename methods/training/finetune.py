"""Fine-tune back: linear probe of the stock, then the whole network on clean labels (LP-FT, Kumar et al. 2022).

The head of every fine-tuning of a task starts as the same linear probe of the stock (arXiv:2202.10054, and the code of
arXiv:2602.02890), so that the heads of different ingredients can be averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Checkpointer, Job, JobFunction, Labelled, Options, Unlabelled, Unsupported, Work
from methods.data_parallel import ALONE, DataParallelGroup, Share
from methods.identity import component
from methods.limits import Count, FiniteNotNegative, Fraction, FractionAboveZero, FractionBelowOne
from methods.nets import flops
from methods.nets.weights import Classifier, Weights
from methods.norms import training_statistics
from methods.training.augmentation import Augmentation, consistent
from methods.training.linear_probe import IN_MEMORY, streamed_probe
from methods.training.linear_probe import linear_probe as linear_probe
from methods.training.loading import InOrder, loaded, loaded_for_views, upload
from methods.training.loop import Batches, ParameterGroup, Progress, check_size, compile_blocks, train
from methods.views.ssl_views import Views

_FEATURE_BATCH = 512


@component("methods.finetune.Probe")
@dataclass(frozen=True)
class Probe:
    """Options of a linear probe. l2: factor of half the squared norm of the weights, added to the mean loss."""

    l2: float = 1e-2


@dataclass(frozen=True)
class FineTune(Options):
    """Options of fine-tuning on clean labelled images.

    epochs, batch_size: the last batch of an epoch may be smaller.
    lr: peak learning rate of the whole network, reached after the fraction `warmup` of the steps, then a cosine to 0.
    weight_decay, warmup: of AdamW; fraction of the steps.
    probe_l2: factor of half the squared norm of the weights of the linear probe, added to its mean loss.
    label_smoothing: share of each label that is spread evenly over all classes.
    area, flip, three_augment, jitter: the random views to train on; `area` is the smallest fraction of an image that a
        crop shows (see methods.views.ssl_views.Views).
    bf16: autocast on a GPU.
    accumulate: cut each batch into this many equal parts, for less memory (None: one); all batches must then have one
        size.
    compile: compile the blocks of the encoder.
    """

    epochs: Count = 30
    batch_size: Count = 128
    lr: FiniteNotNegative = 1e-3
    weight_decay: FiniteNotNegative = 0.01
    warmup: Fraction = 0.1
    probe_l2: FiniteNotNegative = 1e-2
    label_smoothing: FractionBelowOne = 0.0
    area: FractionAboveZero = 0.3
    flip: bool = True
    three_augment: bool = False
    jitter: Fraction = 0.0
    bf16: bool = False
    accumulate: Count | None = None
    compile: bool | None = None

    @property
    def views(self) -> Callable[[Tensor, torch.Generator, Share], Tensor]:
        """What makes of a batch, uint8 [n, 3, h, w], the views to train on, float [n, ..., 3, h, w] in [0, 1]."""
        return Views((self.area, 1.0), flip=self.flip, three_augment=self.three_augment, jitter=self.jitter)


@component("methods.finetune.Repeat")
@dataclass(frozen=True)
class Repeat(FineTune):
    """One of several fine-tunings with the same options, which differ only in their random numbers.

    augmentation: what is done to the random views, and the loss that goes with it; None for cross-entropy on them.
    """

    draw: int = 0
    augmentation: Augmentation | None = None


def fine_tunings(
    encoders: Sequence[Job | Weights],
    stock: Weights,
    source: Labelled,
    options: FineTune,
    scales: Sequence[float],
    augmentation: Augmentation | None = None,
) -> list[Job]:
    """Return a job for each encoder that fine-tunes it from one shared probe of the stock, at `scales` times the rate.

    `options` may be an instance of a subclass; only the fields of FineTune and the augmentation enter the jobs. Raises
    ValueError unless there are as many scales as encoders.
    """
    refuse_cut(options.accumulate, min(options.batch_size, len(source)), "batch_size")
    head = probe_of(stock, source, options)
    values = {field.name: getattr(options, field.name) for field in fields(FineTune)}
    image = flops.training(stock.architecture) + 3 * flops.layers((stock.architecture.dim, source.classes))
    passes, manner = (1, "") if augmentation is None else (augmentation.passes, f" with {augmentation.title}")
    work = Work(options.epochs * len(source) * image * passes, steps_of(options, source))
    shared = not stock.batch_norm  # which would see only a share of the batch
    seen: list[tuple[int, float]] = []
    jobs = []
    for encoder, scale in zip(encoders, scales, strict=True):
        draw = seen.count((id(encoder), scale))
        seen.append((id(encoder), scale))
        config = Repeat(**(values | {"lr": options.lr * scale}), draw=draw, augmentation=augmentation)
        name = encoder.label if isinstance(encoder, Job) else "the stock"
        label = f"fine-tune {name}{manner} at lr {config.lr:g}"
        jobs.append(Job(fine_tune, config, (encoder, head), source, label, resumable=True, shared=shared, work=work))
    return jobs


def joint_training(
    function: JobFunction,
    config: FineTune,
    stock: Weights,
    source: Labelled,
    flops_of_image: float,
    side_head: str,
    also: str,
) -> Job:
    """Return the job that fine-tunes a stock, from its linear probe, on labels and on another task by `function`.

    flops_of_image: of a step, for each image. side_head, also: what it learns the other task with, and that task in
    words. Raises Unsupported where batches cannot be cut into equal parts.
    """
    refuse_cut(config.accumulate, min(config.batch_size, len(source)), "batch_size")
    return Job(
        function,
        config,
        (stock, probe_of(stock, source, config)),
        source,
        f"fine-tune the stock on labels and {also} at lr {config.lr:g}",
        resumable=True,
        shared=not stock.batch_norm,  # which would see only a share of the batch
        work=Work(config.epochs * len(source) * flops_of_image, steps_of(config, source)),
        keeps=(side_head,),
    )


def refuse_cut(accumulate: int | None, images: int, option: str) -> None:
    """Raise Unsupported where batches of this many images cannot be cut into equal parts."""
    if images % (accumulate or 1):
        raise Unsupported(
            f"{option} = {images} images cannot be cut into accumulate = {accumulate} equal parts; choose other numbers"
        )


def probe_of(stock: Weights, source: Labelled, options: FineTune) -> Job:
    """Return the job that fits the linear probe of the stock, with which all heads of a task start."""
    work = Work(len(source) * flops.forward(stock.architecture))
    return Job(probe, Probe(options.probe_l2), (stock,), source, "linear probe of the stock", work=work)


def steps_of(options: FineTune, source: Labelled) -> int:
    """Return the optimiser steps of a fine-tuning; batches cut into parts leave out an epoch's ragged last batch."""
    whole = len(source) // options.batch_size
    ragged = len(source) % options.batch_size > 0 and (whole == 0 or (options.accumulate or 1) == 1)
    return options.epochs * (whole + ragged)


@component("methods.finetune.join")
def join(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return the encoder of `inputs[0]` with the head of `inputs[1]`; a job function. Raises ValueError for no head."""
    body, head = inputs
    tensors = {name: t for name, t in body.tensors.items() if name.startswith("encoder.")}
    found = {name: t for name, t in head.tensors.items() if name.startswith("head.")}
    if not found:
        raise ValueError("the second weights have no head; give weights of a linear probe or a classifier")
    return Weights(body.architecture, tensors | found)


@component("methods.finetune.fine_tune")
def fine_tune(
    inputs: Sequence[Weights],
    data: Labelled,
    config: FineTune,
    generator: torch.Generator,
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """Train a classifier (`encoder.*`, `head.*`) on clean labelled images; a job function, resumable and shared.

    The encoder starts from `inputs[0]`. The head starts from the last input: from its own `head.*` if it has one (see
    `probe`), else from the linear probe of its encoder. Pass the stock, or its probe, as `inputs[1]` so that all
    fine-tunings share the head. Takes epochs * ceil(n / batch_size) steps on `generator.device`.

    Raises TypeError for images without labels, ValueError for a head that does not fit the classes or images of another
    size, FloatingPointError if training diverges.
    """

    augmentation = config.augmentation if isinstance(config, Repeat) else None

    def loss(model: Classifier, images: Tensor, labels: Tensor, share: Share) -> Tensor:
        if augmentation is None:
            return classification(share.everyone(model(images)), labels, config)
        logits = share.everyone(model(images.transpose(0, 1).flatten(0, 1)), augmentation.passes)
        return consistent(logits.float(), labels, augmentation.passes, config.label_smoothing)

    return fit(inputs, data, config, generator, loss, keep, parallel, augmentation=augmentation)


def classification(logits: Tensor, labels: Tensor, options: FineTune) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits [n, classes] to labels (int64 [n])."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=options.label_smoothing)


def fit(
    inputs: Sequence[Weights],
    data: Labelled,
    config: FineTune,
    generator: torch.Generator,
    loss_of: Callable[[Classifier, Tensor, Tensor, Share], Tensor],
    keep: Checkpointer | None = None,
    parallel: DataParallelGroup = ALONE,
    *,
    side_head: str | None = None,
    augmentation: Augmentation | None = None,
) -> Weights:
    """Train a classifier as `fine_tune` does, by a loss of its own and with a side head, if one is named.

    side_head: a name of `methods.nets.weights.SIDE_HEADS`; see `start_side_head` for its first values.
    loss_of: the classifier, this process's views (float [own, 3, s, s] in [0, 1], or what the augmentation makes of
    them) of a part of a batch, the labels of the whole part (int64 [n]) and the share of it that the views are, to a
    scalar that is the same on every process.
    """
    need_labels(data)
    start, source = inputs[0], inputs[-1]
    check_size(data, start.architecture)
    if "head.weight" not in source.tensors:
        source = probe([source], data, Probe(config.probe_l2), generator)
    if len(source.tensors["head.bias"]) != data.classes:
        raise ValueError(
            f"the head has {len(source.tensors['head.bias'])} classes and the data has {data.classes}; "
            "use the probe of the same task"
        )
    model = _classifier(start, source, data.classes, side_head, generator)
    parts = config.accumulate or 1
    order = Batches(len(data), config.batch_size, generator, data.images.device, drop_last=parts > 1)
    if config.compile:
        compile_blocks(model)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(model, *batch, parallel.share(len(batch[1])))

    # Affects only BatchNorm: a ragged batch of one image may have no variance.
    with training_statistics(model):
        train(
            loss,
            _views_and_labels(data, config, order, generator, parallel, start.architecture.image_size, augmentation),
            [ParameterGroup([p for p in model.parameters() if p.requires_grad], config.lr, config.warmup)],
            steps=steps_of(config, data),
            weight_decay=config.weight_decay,
            bf16=config.bf16,
            accumulate=parts,
            progress=Progress(keep, (model, order), generator) if keep is not None else None,
            parallel=parallel,
        )
    return model.weights()


def _views_and_labels(
    data: Labelled,
    config: FineTune,
    order: Batches,
    generator: torch.Generator,
    parallel: DataParallelGroup,
    image_size: int,
    augmentation: Augmentation | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each batch, this process's views to train on and the labels of the whole batch (int64 [n])."""
    views, parts = config.views, config.accumulate or 1

    def own(indices: Tensor) -> Tensor:
        return parallel.share(len(indices), parts).own(indices)

    side = image_size if isinstance(views, Views) else None
    for indices, pixels, stretched in loaded_for_views(data, side, order, generator.device, own):
        share = parallel.share(len(indices), parts)
        cut = {"stretched": stretched} if stretched is not None else {}
        images = views(pixels, generator, share, **cut)
        if augmentation is not None:
            images = augmentation(images, generator, share)
        yield images, upload(data.labels[indices.to(data.labels.device)], generator.device)


def _classifier(
    encoder: Weights, head: Weights, classes: int, side_head: str | None, generator: torch.Generator
) -> Classifier:
    model = Classifier(encoder.architecture, classes, [side_head] if side_head else ()).to(generator.device)
    model.encoder.load_state_dict(encoder.part("encoder"))
    model.head.load_state_dict(head.part("head"))
    if side_head:
        start_side_head(getattr(model, side_head), generator)
    return model


def start_side_head(head: nn.Module, generator: torch.Generator) -> None:
    """Give a side head its first values: zero for a single layer, else those of torch's default, from the generator.

    Several layers that are all zero would never learn.
    """
    if isinstance(head, nn.Linear):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


@component("methods.finetune.probe")
def probe(inputs: Sequence[Weights], data: Labelled, config: Probe, generator: torch.Generator) -> Weights:
    """Return the encoder of `inputs[0]`, unchanged, with its linear probe as head; a job function (methods.base.Job).

    The features are those of the clean images without augmentation. Draws no random numbers; `generator` only names the
    device. Above `linear_probe.IN_MEMORY` numbers the features lie in a temporary file (see `streamed_probe`). Raises
    TypeError for images without labels, ValueError for images of another size, OSError where the disk is full.
    """
    stock = inputs[0]
    encoder, found = frozen(stock, data, generator.device)
    if len(data) * (stock.architecture.dim + data.classes) <= IN_MEMORY:
        weight, bias = linear_probe(torch.cat(list(found)), data.labels, data.classes, l2=config.l2)
    else:
        weight, bias = streamed_probe(found, data.labels, data.classes, generator.device, l2=config.l2)
    return Weights(stock.architecture, encoder | {"head.weight": weight.cpu(), "head.bias": bias.cpu()})


def frozen(weights: Weights, data: Labelled, device: torch.device) -> tuple[dict[str, Tensor], Iterator[Tensor]]:
    """Return the tensors `encoder.*` of weights, and what `features` yields for this encoder.

    Raises TypeError for images without labels, ValueError for images of another size.
    """
    need_labels(data)
    check_size(data, weights.architecture)
    model = Classifier(weights.architecture, data.classes).to(device).eval()
    model.encoder.load_state_dict(weights.part("encoder"))
    encoder = {name: tensor for name, tensor in weights.tensors.items() if name.startswith("encoder.")}
    return encoder, features(model, data, device)


@torch.no_grad()
def features(model: Classifier, data: Unlabelled, device: torch.device) -> Iterator[Tensor]:
    """Yield representations of images without augmentation, in order, in batches float32 [*, dim] on `device`."""
    for _, images in loaded(data.images, InOrder(len(data), _FEATURE_BATCH, data.images.device), device):
        yield model.features(images.float() / 255)


def need_labels(data: Unlabelled | None) -> None:
    """Raise TypeError for images without labels."""
    if not isinstance(data, Labelled):
        raise TypeError("fine-tuning learns only from clean labelled images; pass a Labelled data set")
