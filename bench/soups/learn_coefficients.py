"""Implement `bench soup season` and `lmc`, which use images to learn coefficients and to measure connectivity.

Weights of this project and of others are read tensor by tensor, so memory does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.conditions import CLEAN
from bench.core.console import print_json, print_text, table
from bench.core.devices import pick_device
from bench.core.errors import UsageError, nearest
from bench.models.classifiers import for_classes, refuse_misfits
from bench.models.load_model import load_model
from bench.models.tensor_files import Checkpoint, check_target, write_tensors
from bench.models.weights_io import open_weights, preprocessing_of, save_weights
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, labelled_source, limit_ids
from methods.base import Labelled, Unsupported
from methods.nets.feature_head_split import split
from methods.nets.weights import Classifier, Weights
from methods.norms import batch_norm_layers, use_batch_statistics
from methods.soups.bn_recalibration import Remeasure, clean_batches, reestimate_batch_norm, remeasured
from methods.soups.mixing import Mixed, Uniform, Weighted
from methods.soups.season import (
    Mixture,
    Schedule,
    SelfSeasoning,
    SupervisedSeasoning,
    epoch_of,
    labelled_epoch,
    learn_coefficients,
    learned_soup,
    neighbour_entropy,
    search_coefficients,
    self_seasoned,
    supervised_seasoned,
)
from methods.soups.soup import combine_tensor, refuse_tensor

_BATCH = 256


@dataclass(frozen=True)
class Season:
    """Settings of learning coefficients: the method, the images and the optimisation."""

    how: str = "self"
    shift: str = "digits-c"
    data_root: Path | None = None
    labels: int | None = None
    epochs: int = 100
    batch_size: int = 256
    layerwise: bool = False
    seed: int = 0
    model: str | None = None

    @property
    def schedule(self) -> Schedule:
        return Schedule(epochs=self.epochs, batch_size=self.batch_size, layerwise=self.layerwise)

    @property
    def self_seasoning(self) -> SelfSeasoning:
        return SelfSeasoning(epochs=self.epochs, batch_size=self.batch_size, layerwise=self.layerwise)


def season(files: Sequence[Path], out: Path, settings: Season) -> None:
    """Learn the coefficients of a soup on clean train images, write the soup and print the coefficients."""
    check_target(out, files)
    nearest(settings.how, _WAYS, "way of seasoning")
    generator = torch.Generator(device=pick_device("auto")).manual_seed(settings.seed)
    try:
        own = settings.model is None and settings.how != "greedy"
        shares, images = (_season_own if own else _season_others)(files, out, settings, generator)
    except (Unsupported, ValueError) as error:
        raise UsageError(str(error)) from None
    names = [path.name for path in files]
    print_text(table(["", *names], [[layer, *(f"{share:.3f}" for share in row)] for layer, row in shares.items()]))
    print_text(f"{out}: soup of {len(files)} seasoned by {settings.how} on {images}")


_WAYS = ("self", "labels", "search", "greedy")
Shares = Mapping[str, Sequence[float]]


def _facts(how: str, images: str, files: Sequence[Path], shares: Shares, digests: Sequence[str]) -> dict[str, Any]:
    return {
        "soup": f"seasoned by {how}",
        "images": images,
        "ingredients": [{"file": p.name, "digest": d} for p, d in zip(files, digests, strict=True)],
        "shares": {layer: list(row) for layer, row in shares.items()},
    }


def _season_own(files: Sequence[Path], out: Path, settings: Season, generator: torch.Generator) -> tuple[Shares, str]:
    """Season encoders or classifiers of this project, whose files store their architecture."""
    inputs = [open_weights(path) for path in files]
    shift = load_shift(settings.shift, reading=Reading(settings.data_root, preprocessing_of(inputs[0])))
    data = labelled_source(shift, settings.labels, settings.seed)
    ways: dict[str, Callable[[], Mixed]] = {
        "self": lambda: self_seasoned(inputs, data.without_labels(), settings.self_seasoning, generator),
        "labels": lambda: learned_soup(inputs, data, settings.schedule, generator),
        "search": lambda: supervised_seasoned(inputs, data, SupervisedSeasoning(), generator),
    }
    if settings.how == "labels":
        _need_classifiers(files, inputs, data)
    mixed = ways[settings.how]()
    soup = remeasured([mixed], data, Remeasure(), generator)
    images = f"{len(data):,} clean train images of {settings.shift}"
    save_weights(out, soup, _facts(settings.how, images, files, mixed.shares, [weights.digest for weights in inputs]))
    return mixed.shares, images


def _season_others(
    files: Sequence[Path], out: Path, settings: Season, generator: torch.Generator
) -> tuple[Shares, str]:
    """Season classifiers of this project, or of any architecture that `--model` names."""
    brought = _own(files) if settings.model is None else bring(files, settings.model)
    shift, model = brought.on(settings.shift, settings.data_root, generator.device)
    data = labelled_source(shift, settings.labels, settings.seed)
    mixture = Mixture(brought.network, brought.tensors, layerwise=settings.layerwise)
    if settings.how != "greedy":
        use_batch_statistics(brought.network)
    images = f"{len(data):,} clean train images of {settings.shift}"
    if settings.how == "greedy":
        if settings.layerwise:
            raise UsageError("a greedy soup takes whole models; leave --layerwise out")
        held_out = _dev_images(shift, None)
        images = f"{len(held_out):,} clean dev images of {settings.shift}"
        shares = _greedy(brought, mixture, model, data, held_out, generator.device)
    elif settings.how == "search":
        features = split(model)
        shares = search_coefficients(mixture, lambda batch: features(batch)[0], data, SupervisedSeasoning(), generator)
    elif settings.how == "labels":
        shares = learn_coefficients(
            mixture,
            lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
            partial(labelled_epoch, data, settings.schedule, generator),
            settings.schedule,
        )
    else:
        parts, rule = split(model), settings.self_seasoning
        shares = learn_coefficients(
            mixture,
            lambda batch: neighbour_entropy(parts(batch)[0], rule.neighbours, rule.temperature),
            partial(epoch_of, data, rule, generator),
            rule,
        )
    whole = _own(files) if settings.model is None else bring(files, settings.model)
    whole.model.to(generator.device)
    Mixture(whole.network, whole.tensors, layerwise=settings.layerwise).write(shares)
    statistics = _measured_statistics(whole, data, generator.device)
    rows = [tuple((row / row.sum()).tolist()) for row in shares]
    found = {layer or "all": row for layer, row in zip(mixture.layers, rows, strict=True)}

    def make(name: str) -> Tensor:
        if name in statistics:
            return statistics[name]
        every = [tensors[name] for tensors in brought.tensors]
        if name not in mixture.group:
            return combine_tensor(name, every, lambda _, given: Uniform().mix(given))
        return Weighted(rows[mixture.group[name]]).mix(every)

    first = brought.tensors[0]
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in first.items()}
    digests = [tensors.digest() for tensors in brought.tensors]
    facts = _facts(settings.how, images, files, found, digests) | {"model": settings.model}
    architecture = {name: text for name, text in first.metadata.items() if name == "architecture"}
    write_tensors(out, shapes, make, {"facts": json.dumps(facts), **architecture})
    return found, images


def _greedy(
    brought: Brought, mixture: Mixture, model: nn.Module, train: Labelled, held_out: Labelled, device: torch.device
) -> Tensor:
    """Return the shares of the greedy soup (Wortsman et al. 2022), [1, ingredients].

    Ingredients are tried from best to worst; one stays if accuracy does not fall.
    """
    count = len(brought.tensors)

    def row(chosen: Sequence[int]) -> Tensor:
        shares = torch.zeros(1, count, dtype=torch.float64)
        shares[0, list(chosen)] = 1 / len(chosen)
        return shares

    def score(chosen: Sequence[int]) -> float:
        mixture.write(row(chosen))
        if len(chosen) > 1:
            _measured_statistics(brought, train, device)
        return _accuracy(model, held_out, device)

    scores = [score([number]) for number in range(count)]
    first, *others = sorted(range(count), key=lambda number: -scores[number])
    chosen, best = [first], scores[first]
    for number in others:
        found = score([*chosen, number])
        if found >= best:
            chosen.append(number)
            best = found
    return row(chosen)


@dataclass(frozen=True)
class Brought:
    """Open files of one architecture and its classifier; `network` is the part of `model` that the files store."""

    model: nn.Module
    network: nn.Module
    tensors: tuple[Checkpoint, ...]

    def on(self, shift_name: str, data_root: Path | None, device: torch.device) -> tuple[Shift, nn.Module]:
        """Return a shift with the classifier's preprocessing, and the classifier with the shift's classes."""
        shift = load_shift(shift_name, reading=Reading(data_root, preprocessing_of(self.model)))
        self.model.to(device)
        image = shift.images(shift.ids("train")[:1], CLEAN).to(device).float() / 255
        return shift, for_classes(self.model, shift, image)


def bring(files: Sequence[Path], name: str) -> Brought:
    """Open files of the architecture `name`, a value of --model.

    Raises UsageError naming the file and the first tensor that does not fit.
    """
    opened = tuple(Checkpoint(path).verified() for path in files)
    own = (
        ".py:" in name or name.startswith(("torchvision:", "lite:", "hf:", "openclip:", "robustbench:")) or "@" in name
    )
    model = load_model(name if own else f"{name}@{files[0]}")
    network = getattr(model, "network", model)
    state = network.state_dict()
    for path, tensors in zip(files, opened, strict=True):
        refuse_misfits(state, tensors, str(path))
        for key in tensors:
            refuse_tensor(f"{key} of {path}", tensors[key], state[key], f"the model's {name}")
    return Brought(model, network, opened)


def _measured_statistics(brought: Brought, data: Labelled, device: torch.device) -> dict[str, Tensor]:
    """Return the network's BatchNorm statistics measured on clean train images; empty if it has no BatchNorm."""
    if not batch_norm_layers(brought.network):
        return {}

    batches = clean_batches(data, Remeasure(), torch.Generator(device).manual_seed(0))
    reestimate_batch_norm(brought.model, batches)
    names = ("running_mean", "running_var")
    return {n: t.detach().cpu().clone() for n, t in brought.network.state_dict().items() if n.endswith(names)}


def connect(
    files: tuple[Path, Path],
    shift_name: str,
    data_root: Path | None,
    steps: int,
    limit: int | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Print the accuracy along the straight line between two classifiers on clean dev images, and its barrier.

    The barrier is the largest gap by which the interpolation of the two end accuracies exceeds the accuracy between
    them. BatchNorm statistics between the ends are measured on clean train images.
    """
    device = torch.device(pick_device("auto"))
    brought = _own(files) if model is None else bring(files, model)
    shift, classifier = brought.on(shift_name, data_root, device)
    data = _dev_images(shift, limit)
    train = labelled_source(shift, None, 0) if batch_norm_layers(brought.network) else None
    mixture = Mixture(brought.network.requires_grad_(False), brought.tensors)
    positions = [step / (steps - 1) for step in range(steps)]
    scores = []
    for at in positions:
        mixture.write(torch.tensor([[1 - at, at]], dtype=torch.float64))
        if train is not None and 0 < at < 1:
            _measured_statistics(brought, train, device)
        scores.append(_accuracy(classifier, data, device))
    gaps = [(1 - at) * scores[0] + at * scores[-1] - score for at, score in zip(positions, scores, strict=True)]
    barrier = max(0.0, *gaps)
    if as_json:
        print_json({"positions": positions, "accuracy": scores, "barrier": barrier, "n": len(data)})
        return
    rows = [[f"{at:.2f}", f"{100 * score:.1f}"] for at, score in zip(positions, scores, strict=True)]
    print_text(table(["position", "accuracy"], rows))
    print_text(f"barrier {100 * barrier:.1f} points on {len(data)} clean dev images of {shift_name}")


def _own(files: Sequence[Path]) -> Brought:
    """Open classifier files of this project. Raises UsageError for encoders and for different architectures."""
    ends = [open_weights(path) for path in files]
    for path, weights in zip(files, ends, strict=True):
        if "head.bias" not in weights.tensors:
            raise UsageError(f"{path} has no classification head; give a classifier")
        if weights.architecture != ends[0].architecture:
            raise UsageError(f"{path} has another architecture than {files[0]}; give two of one stock")
    model = Classifier.of(ends[0]).eval()
    opened = tuple(Checkpoint(path) for path in files)
    for path, tensors in zip(files, opened, strict=True):
        refuse_misfits(model.state_dict(), tensors, str(path))
    return Brought(model, model, opened)


@torch.no_grad()
def _accuracy(model: nn.Module, data: Labelled, device: torch.device) -> float:
    right = 0
    for low in range(0, len(data), _BATCH):
        images = data.images[low : low + _BATCH].to(device).float() / 255
        right += int((model(images).argmax(1) == data.labels[low : low + _BATCH].to(device)).sum())
    return right / len(data)


def _dev_images(shift: Shift, limit: int | None) -> Labelled:
    ids = limit_ids(shift.ids("dev"), limit)
    labels = torch.from_numpy(shift.labels(ids))
    return Labelled(shift.images(ids, CLEAN), shift.digest(ids, CLEAN), labels, shift.classes)


def _need_classifiers(files: Sequence[Path], weights: Sequence[Weights], data: Labelled) -> None:
    for path, own in zip(files, weights, strict=True):
        if "head.bias" not in own.tensors or len(own.tensors["head.bias"]) != data.classes:
            raise UsageError(
                f"{path} has no head for {data.classes} classes; give a classifier fine-tuned on this shift"
            )
