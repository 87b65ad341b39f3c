"""Soups: the weights of several models mixed into one, with checks that keep a mixture meaningful."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.base import Labelled, Options, Unlabelled
from methods.identity import component
from methods.limits import at_least
from methods.nets.weights import Classifier, Weights
from methods.soups.bn_recalibration import Remeasure, remeasured
from methods.soups.mixing import Mixed, Mixer, Uniform, Wise
from methods.training.loading import InOrder, loaded, upload

_BATCH = 512
_GRADIENTS_AT_ONCE = 1 << 28  # numbers: gradients of single images


@dataclass(frozen=True)
class Interpolation:
    """A position between two models: 0 is the first, 1 the second."""

    position: float = 0.5


@component("methods.soup.uniform_soup")
def uniform_soup(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return the mean of every tensor of N weights; a job function (methods.base.Job), `data` and `config` unused.

    Each tensor is summed in float64, divided once and stored in its own type, so identical inputs are returned bit for
    bit and the order of float32 inputs does not matter. Integers and booleans must be equal in all inputs, except
    `num_batches_tracked`, whose maximum is kept.

    Raises ValueError, naming the input and the tensor, for different architectures, names, shapes or types, for values
    that are not finite, for weights stored in half precision and for no input at all.
    """
    return _combine(inputs, lambda name, tensors: Uniform().mix(tensors))


@component("methods.soup.mixed_soup")
def mixed_soup(
    inputs: Sequence[Weights], data: None, config: Mixer, generator: torch.Generator | None = None
) -> Weights:
    """Mix the ingredients by a rule of methods.soups.mixing; a job function. `inputs[0]` is the stock if it is needed.

    Tensors that the stock lacks (a head, if the stock is an encoder) are averaged. Raises as `uniform_soup` does, and
    ValueError if there is no ingredient beside the stock.
    """
    if not config.needs_stock:
        return _combine(inputs, lambda name, tensors: config.mix(tensors, None))
    stock, *ingredients = inputs

    def mix(name: str, tensors: Sequence[Tensor]) -> Tensor:
        start = stock.tensors.get(name)
        if start is None:
            return Uniform().mix(tensors)
        refuse_tensor(f"{name} of the stock", start, tensors[0])
        return config.mix(tensors, start)

    return _combine(ingredients, mix)


def interpolate(
    inputs: Sequence[Weights], data: None, config: Interpolation, generator: torch.Generator | None = None
) -> Weights:
    """Return (1 - a) first + a second, in float64 (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903); a job function.

    Raises as `uniform_soup` does, and ValueError unless there are two inputs.
    """
    if len(inputs) != 2:
        raise ValueError(f"interpolation takes two models, not {len(inputs)}; use uniform_soup for more")
    rule = Wise(config.position)
    return _combine(inputs, lambda name, tensors: rule.mix(tensors[1:], tensors[0]))


@component("methods.soup.Greedy")
@dataclass(frozen=True)
class Greedy:
    """Options of the greedy soup. ties: also accept an ingredient that leaves the accuracy unchanged."""

    ties: bool = True


@component("methods.soup.greedy_soup")
def greedy_soup(
    inputs: Sequence[Weights], data: Labelled, config: Greedy, generator: torch.Generator | None = None
) -> Weights:
    """Start from the best classifier; add each next one if the mean is then no worse on held-out clean images.

    Wortsman et al. 2022, recipe 1. A job function. Candidates are tried from best to worst, equal ones in the given
    order, all with BatchNorm statistics of the held-out images. Raises as `uniform_soup` does.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    scores = [accuracy(measured(weights, data, device), data, device) for weights in inputs]
    order = sorted(range(len(inputs)), key=lambda number: -scores[number])
    chosen = order[:1]
    best = scores[order[0]]
    for number in order[1:]:
        score = accuracy(measured(uniform_soup([inputs[one] for one in (*chosen, number)]), data, device), data, device)
        if score > best or (config.ties and score == best):
            chosen.append(number)
            best = score
    soup = uniform_soup([inputs[number] for number in chosen])
    return Mixed(soup.architecture, soup.tensors, shares_of(chosen, len(inputs)))


def shares_of(chosen: Sequence[int], count: int) -> dict[str, tuple[float, ...]]:
    """Return equal shares for the chosen ones of `count` ingredients, and 0 for the others."""
    return {"all": tuple(1 / len(chosen) if number in chosen else 0.0 for number in range(count))}


@component("methods.soup.best_ingredient")
def best_ingredient(
    inputs: Sequence[Weights], data: Labelled, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return the classifier with the best accuracy on held-out clean images, the first of equals; a job function."""
    device = generator.device if generator is not None else torch.device("cpu")
    scores = [accuracy(weights, data, device) for weights in inputs]
    best = scores.index(max(scores))
    return Mixed(inputs[best].architecture, inputs[best].tensors, shares_of([best], len(inputs)))


@component("methods.soup.ensemble")
def ensemble(
    inputs: Sequence[Weights], data: None = None, config: None = None, generator: torch.Generator | None = None
) -> Weights:
    """Return all classifiers side by side, to average their probabilities: the reference for averaging weights.

    A job function. A prediction takes as many forward passes as there are classifiers. Raises ValueError for no
    classifier or different architectures.
    """
    if not inputs:
        raise ValueError("an ensemble needs at least one classifier")
    for number, other in enumerate(inputs):
        _refuse_different(inputs[0], other, number)
    tensors = {
        f"members.{number}.{name}": tensor.clone()
        for number, weights in enumerate(inputs)
        for name, tensor in weights.tensors.items()
    }
    return Weights(inputs[0].architecture, tensors)


@component("methods.soup.Line")
@dataclass(frozen=True)
class Line(Options):
    """Where to measure on the line between two classifiers. points: at least three, including both ends."""

    points: Annotated[int, at_least(3)] = 5


def evaluations(count: int, config: Line) -> int:
    """Return how often `connectivity` evaluates `count` classifiers and what lies between them."""
    return count + (count if count > 2 else 1) * (config.points - 2)


@component("methods.soup.connectivity")
def connectivity(
    inputs: Sequence[Weights], data: Labelled, config: Line, generator: torch.Generator | None = None
) -> Weights:
    """Measure accuracy on clean images along lines between neighbouring classifiers of a ring; a job function.

    Averaging can work only if accuracy does not drop between them (linear mode connectivity, Frankle et al. 2020,
    arXiv:1912.05671). The tensors are `pairs` int64 [lines, 2], `positions` and `accuracy` float64 [points] and [lines,
    points], and `images`, their number. N classifiers make N lines, two make one. Raises ValueError for one.
    """
    if len(inputs) < 2:
        raise ValueError("a line connects two classifiers; give at least two")
    device = generator.device if generator is not None else torch.device("cpu")
    count = len(inputs)
    pairs = [(number, (number + 1) % count) for number in range(count if count > 2 else 1)]
    positions = torch.linspace(0, 1, config.points, dtype=torch.float64)
    ends = [accuracy(measured(weights, data, device), data, device) for weights in inputs]
    rows = []
    for a, b in pairs:
        between = (interpolate((inputs[a], inputs[b]), None, Interpolation(float(x))) for x in positions[1:-1])
        inner = (accuracy(measured(weights, data, device), data, device) for weights in between)
        rows.append([ends[a], *inner, ends[b]])
    tensors = {
        "pairs": torch.tensor(pairs),
        "positions": positions,
        "accuracy": torch.tensor(rows, dtype=torch.float64),
        "images": torch.tensor(len(data)),
    }
    return Weights(inputs[0].architecture, tensors)


@component("methods.soup.Fisher")
@dataclass(frozen=True)
class Fisher:
    """Options of Fisher merging. floor: added to every diagonal entry, so that unused weights are averaged.

    batch_size: images whose gradients are in memory at once, at most as many as make 2^28 numbers (1 GiB).
    """

    floor: float = 1e-8
    batch_size: int = 64


@component("methods.soup.fisher_soup")
def fisher_soup(
    inputs: Sequence[Weights], data: Unlabelled, config: Fisher, generator: torch.Generator | None = None
) -> Weights:
    """sum_i F_i theta_i / sum_i F_i, F_i the diagonal Fisher information (Matena & Raffel 2022, arXiv:2111.09832).

    F_i is the mean over images of the squared gradient of log p(y | x), with y the classifier's own prediction,
    computed for each image in vectorised form. A job function; `data` are clean images. Raises as `uniform_soup` does.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    information = [diagonal_fisher(weights, data, config, device) for weights in inputs]

    def mix(name: str, tensors: Sequence[Tensor]) -> Tensor:
        if name not in information[0]:
            return Uniform().mix(tensors)
        top = torch.zeros_like(tensors[0], dtype=torch.float64)
        bottom = torch.zeros_like(top)
        for tensor, own in zip(tensors, information, strict=True):
            weight = own[name].double() + config.floor
            top += weight * tensor.double()
            bottom += weight
        return (top / bottom).to(tensors[0].dtype)

    return _combine(inputs, mix)


def diagonal_fisher(weights: Weights, data: Unlabelled, config: Fisher, device: torch.device) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of a classifier on images, by parameter, float32 on the CPU."""
    model = Classifier.of(weights).to(device).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= dict(model.named_buffers())

    def loss(own: Mapping[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, {**own, **frozen}, (image[None],))
        return -logits.log_softmax(1).max()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    at_once = max(1, _GRADIENTS_AT_ONCE // max(1, sum(p.numel() for p in parameters.values())))
    order = InOrder(len(data), min(config.batch_size, at_once), data.images.device)
    for _, pixels in loaded(data.images, order, device):
        images = pixels.float() / 255
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = gradients(parameters, images)
        for name, gradient in found.items():
            total[name] += gradient.square().sum(0)
    return {name: (value / len(data)).cpu() for name, value in total.items()}


def measured(weights: Weights, data: Unlabelled, device: torch.device) -> Weights:
    """Return a mixture with BatchNorm statistics of the images on which it will be judged."""
    return remeasured([weights], data, Remeasure(), torch.Generator(device).manual_seed(0))


@torch.no_grad()
def accuracy(weights: Weights, data: Labelled, device: torch.device) -> float:
    """Return the fraction of labelled images that a classifier predicts correctly, in [0, 1]."""
    model = Classifier.of(weights).to(device).eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    labels = torch.split(upload(data.labels, device), _BATCH)
    order = InOrder(len(data), _BATCH, data.images.device)
    for own, (_, images) in zip(labels, loaded(data.images, order, device), strict=True):
        right += (model(images.float() / 255).argmax(1) == own).sum()
    return int(right) / len(data)


def _combine(inputs: Sequence[Weights], mix: Callable[[str, Sequence[Tensor]], Tensor]) -> Weights:
    if not inputs:
        raise ValueError("a soup needs at least one ingredient")
    first = inputs[0]
    for number, other in enumerate(inputs):
        _refuse_different(first, other, number)
    tensors = {name: combine_tensor(name, [weights.tensors[name] for weights in inputs], mix) for name in first.tensors}
    return Weights(first.architecture, tensors)


def combine_tensor(name: str, every: Sequence[Tensor], mix: Callable[[str, Sequence[Tensor]], Tensor]) -> Tensor:
    """Combine one tensor of a soup: mix floats, keep the largest `num_batches_tracked`, require equal other integers.

    Raises ValueError, naming the tensor, where they differ.
    """
    if every[0].is_floating_point():
        return mix(name, every)
    if name.endswith("num_batches_tracked"):
        return torch.stack(list(every)).amax(0)
    return _the_same(name, every)


def _the_same(name: str, tensors: Sequence[Tensor]) -> Tensor:
    for number, tensor in enumerate(tensors):
        if not torch.equal(tensor, tensors[0]):
            raise ValueError(
                f"{name} holds {tensor.dtype} that differ between ingredients 0 and {number}; cannot average"
            )
    return tensors[0].clone()


def _refuse_different(first: Weights, other: Weights, number: int) -> None:
    who = f"ingredient {number}"
    if other.architecture != first.architecture:
        raise ValueError(f"{who} has another architecture than ingredient 0; soups need one stock")
    missing, extra = sorted(first.tensors.keys() - other.tensors), sorted(other.tensors.keys() - first.tensors)
    if missing or extra:
        raise ValueError(
            f"{who} lacks {missing} and has {extra} beside the tensors of ingredient 0; use one task and stock"
        )
    for name, tensor in other.tensors.items():
        refuse_tensor(f"{name} of {who}", tensor, first.tensors[name])


def refuse_tensor(what: str, tensor: Tensor, reference: Any, of: str = "ingredient 0") -> None:
    """Raise ValueError if a tensor cannot be mixed with the reference: shape, type, half precision, or not finite."""
    if tensor.shape != reference.shape or tensor.dtype != reference.dtype:
        raise ValueError(
            f"{what} is {tensor.dtype} {tuple(tensor.shape)}, of {of} {reference.dtype} "
            f"{tuple(reference.shape)}; average weights of one task only"
        )
    if tensor.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{what} is stored in {tensor.dtype}, which rounds away most of what training changed; store float32"
        )
    # A finite sum has only finite terms; the sum of finite terms may overflow, so then all terms are checked.
    if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise ValueError(f"{what} is not finite; leave that ingredient out or train it with a lower learning rate")
