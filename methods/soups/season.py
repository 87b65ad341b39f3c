"""Seasoning: learn the coefficients of a soup by the exact gradient, without autograd through the mixture.

With theta(c) = sum_i c_i theta_i, dL/dc_i = <dL/dtheta, theta_i>: one ordinary forward and backward pass at the mixed
parameters and one dot product for each ingredient and tensor. Ingredients may be read from files tensor by tensor, so
memory does not grow with their number. Per-layer coefficients add no cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Labelled, Options, Unlabelled
from methods.identity import component
from methods.limits import Count, at_least
from methods.nets.weights import Classifier, Normalise, Weights
from methods.norms import batch_norm_layers, use_batch_statistics
from methods.soups.mixing import Mixed, Weighted
from methods.soups.soup import combine_tensor, uniform_soup
from methods.training.loading import KnownBatches, loaded, upload
from methods.training.loop import Batches

Batch = TypeVar("Batch")

_AT_ONCE = 1 << 24  # similarities or votes of a block, as numbers


class Tensors(Protocol):
    """Named tensors, in memory or read on access."""

    def __getitem__(self, name: str, /) -> Tensor: ...


class Prefixed(Mapping[str, Tensor]):
    """The tensors whose names start with a prefix and a dot, removed from the names unless `keep`; read on access."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, *, keep: bool = False) -> None:
        self._tensors = tensors
        start = f"{prefix}."
        self._names = {n if keep else n.removeprefix(start): n for n in tensors if n.startswith(start)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Mixture:
    """A live module whose parameters are a mixture of ingredients, and the gradients of its coefficients.

    There is one vector of coefficients for the whole model, or one for each block of layers (`layerwise`).
    Floating-point tensors of the module are written in place; a parameter shared by two modules is mixed once. Integer
    buffers stay those of the module. Raises ValueError for no ingredient.
    """

    def __init__(self, module: nn.Module, ingredients: Sequence[Tensors], *, layerwise: bool = False) -> None:
        if not ingredients:
            raise ValueError("a mixture needs at least one ingredient")
        self.module = module
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {
            name: tensor
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if tensor.is_floating_point() and name in module.state_dict()
        }
        self.ingredients = _nearby(ingredients, self.tensors, self.device)
        labels = [layer_of(name) if layerwise else "" for name in self.tensors]
        self.layers = list(dict.fromkeys(labels))
        self.group = {name: self.layers.index(label) for name, label in zip(self.tensors, labels, strict=True)}
        self.dots = torch.zeros(len(self.layers), len(ingredients), dtype=torch.float64, device=self.device)
        for name in trained & self.tensors.keys():
            parameter = self.tensors[name]
            assert isinstance(parameter, nn.Parameter)
            parameter.register_post_accumulate_grad_hook(partial(self._collect, name))  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @torch.no_grad()
    def write(self, coefficients: Tensor) -> None:
        """Write the mixture with these coefficients [layers, ingredients] into the module, in place."""
        values = coefficients.tolist()
        for name, target in self.tensors.items():
            row = values[self.group[name]]
            for number, (ingredient, value) in enumerate(zip(self.ingredients, row, strict=True)):
                tensor = ingredient[name].to(target.device, target.dtype, non_blocking=True)
                if number == 0:
                    torch.mul(tensor, value, out=target.data)
                else:
                    target.data.add_(tensor, alpha=value)

    def gradient(self, loss: Tensor) -> Tensor:
        """Return dL/dc [layers, ingredients] (float64) of a loss of the module as last written."""
        self.dots.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        return self.dots.clone()

    def _collect(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.flatten()
        parameter.grad = None  # freed at once, so that no full gradient is ever held
        row = self.dots[self.group[name]]
        for number, ingredient in enumerate(self.ingredients):
            own = ingredient[name].to(gradient.device, gradient.dtype, non_blocking=True)
            row[number] += torch.dot(gradient, own.flatten())


def _nearby(ingredients: Sequence[Tensors], used: Iterable[str], device: torch.device) -> Sequence[Tensors]:
    """Return ingredients whose used tensors lie on a GPU where they take at most half of its free memory.

    Elsewhere a step reads each of them twice from the host, from memory that is not pinned, and waits for it.
    """
    if device.type != "cuda":
        return ingredients
    names = list(used)
    needed = sum(own[name].numel() * own[name].element_size() for own in ingredients for name in names)
    if needed > _free_memory(device) / 2:
        return ingredients
    return [{name: upload(own[name], device) for name in names} for own in ingredients]


def _free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def layer_of(name: str) -> str:
    """Return the block of a tensor: its name up to the first number, else the name of its module."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1]) or name


@component("methods.season.Schedule")
@dataclass(frozen=True)
class Schedule(Options):
    """Options of learning coefficients.

    lr, last_lr: first and last rate of Adam, with a cosine between. layerwise: see Mixture. batch_size, epochs: as in
    the paper for 1000 images; the ragged last batch of an epoch is dropped.
    """

    epochs: Count = 100
    batch_size: Annotated[int, at_least(2)] = 256
    lr: float = 0.1
    last_lr: float = 0.01
    layerwise: bool = False

    def rate(self, epoch: int) -> float:
        return self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


def learn_coefficients(
    mixture: Mixture, loss: Callable[[Batch], Tensor], epochs: Callable[[], Iterator[Batch]], schedule: Schedule
) -> Tensor:
    """Minimise the mean loss over softmax coefficients, starting from equal ones; return those of the best epoch.

    `epochs()` yields the batches of one epoch. An epoch is judged by the mean loss over it with the coefficients fixed
    at their values at its end. Returns float64 [layers, ingredients], rows summing to 1, and leaves the module mixed
    with them. Raises FloatingPointError if the loss is not finite, ValueError if an epoch has no batch.
    """
    logits = torch.zeros_like(mixture.dots, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=schedule.rate(0))
    best, lowest = logits.detach().softmax(1), math.inf
    for epoch in range(schedule.epochs):
        optimiser.param_groups[0]["lr"] = schedule.rate(epoch)
        for batch in epochs():
            shares = logits.detach().softmax(1)
            mixture.write(shares)
            slope = mixture.gradient(loss(batch))
            logits.grad = shares * (slope - (shares * slope).sum(1, keepdim=True))
            optimiser.step()
        shares = logits.detach().softmax(1)
        mixture.write(shares)
        with torch.no_grad():
            losses = [loss(batch).detach() for batch in epochs()]
        if not losses:
            raise ValueError("seasoning got no batch; give more images or a smaller batch")
        value = float(torch.stack(losses).mean())
        if not math.isfinite(value):
            raise FloatingPointError("the loss of seasoning is not finite; leave the broken ingredient out")
        if value < lowest:
            best, lowest = shares, value
    mixture.write(best)
    return best


def neighbour_entropy(features: Tensor, neighbours: int = 16, temperature: float = 0.07) -> Tensor:
    """Mean entropy in nats of softmax(s / T) over each row's most similar other rows; features [n, d], n >= 2.

    s are cosines (Fuller et al. 2026, section 3.3, self-seasoning). Lies in [0, ln k] with k = min(neighbours, n - 1);
    ln k if the k similarities are equal.
    """
    unit = F.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-math.inf)
    nearest = similarity.topk(min(neighbours, len(features) - 1), dim=1).values / temperature
    log_p = nearest.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


@component("methods.season.SelfSeasoning")
@dataclass(frozen=True)
class SelfSeasoning(Schedule):
    """Options of self-seasoning: the schedule, and the neighbours and temperature of the entropy."""

    neighbours: int = 16
    temperature: float = 0.07


@component("methods.season.self_seasoned")
def self_seasoned(
    inputs: Sequence[Weights], data: Unlabelled, config: SelfSeasoning, generator: torch.Generator
) -> Mixed:
    """Mix encoders with the coefficients that minimise the neighbour entropy of unlabelled images; a job function.

    Fuller et al. 2026, section 3.3, with Adam as released. Only `encoder.*` is mixed and returned. Meanwhile BatchNorm
    normalises with each batch; the returned statistics are averages and must be measured again.
    """
    stock = inputs[0]
    encoder = stock.architecture.build().to(generator.device).eval()
    use_batch_statistics(encoder)
    normalise = Normalise(stock.architecture.mean, stock.architecture.std).to(generator.device)
    shares = learn_coefficients(
        Mixture(encoder, [Prefixed(w.tensors, "encoder") for w in inputs], layerwise=config.layerwise),
        lambda images: neighbour_entropy(encoder(normalise(images)), config.neighbours, config.temperature),
        partial(epoch_of, data, config, generator),
        config,
    )
    return _apply([_encoder_of(weights) for weights in inputs], shares, config.layerwise, "encoder.")


@component("methods.season.learned_soup")
def learned_soup(inputs: Sequence[Weights], data: Labelled, config: Schedule, generator: torch.Generator) -> Mixed:
    """Mix classifiers with the coefficients that minimise the cross-entropy of held-out clean images; a job function.

    The learned soup of Wortsman et al. 2022 (appendix I), per layer if `config.layerwise`. BatchNorm as in
    `self_seasoned`.
    """
    model = Classifier.of(inputs[0]).to(generator.device).eval()
    use_batch_statistics(model)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    shares = learn_coefficients(
        Mixture(model, [weights.tensors for weights in inputs], layerwise=config.layerwise),
        loss,
        partial(labelled_epoch, data, config, generator),
        config,
    )
    return _apply(inputs, shares, config.layerwise, "")


def _apply(inputs: Sequence[Weights], shares: Tensor, layerwise: bool, prefix: str) -> Mixed:
    """Return the soup with these coefficients, mixed in float64 from the ingredients themselves."""
    uniform_soup(inputs)  # raises for what cannot be mixed
    first = inputs[0]
    trained = [name for name, tensor in first.tensors.items() if tensor.is_floating_point()]
    layers = list(dict.fromkeys(layer_of(name.removeprefix(prefix)) if layerwise else "" for name in trained))
    rows: dict[str, tuple[float, ...]]
    rows = {layer: tuple((row / row.sum()).tolist()) for layer, row in zip(layers, shares, strict=True)}
    tensors = {}
    for name in first.tensors:
        layer = layer_of(name.removeprefix(prefix)) if layerwise else ""
        every = [weights.tensors[name] for weights in inputs]
        rule = Weighted(rows[layer]) if name in trained else None
        tensors[name] = combine_tensor(name, every, lambda _, t, rule=rule: rule.mix(t))  # type: ignore[misc]
    return Mixed(first.architecture, tensors, {layer or "all": row for layer, row in rows.items()})


def _encoder_of(weights: Weights) -> Weights:
    return Weights(weights.architecture, Prefixed(weights.tensors, "encoder", keep=True))


def epoch_of(data: Unlabelled, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of images in [0, 1], in a new order, for one epoch of seasoning."""
    for _, images in loaded(data.images, _rows(data, schedule, generator), generator.device):
        yield images.float() / 255


def labelled_epoch(data: Labelled, schedule: Schedule, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches as `epoch_of` does, with labels."""
    for rows, images in loaded(data.images, _rows(data, schedule, generator), generator.device):
        yield images.float() / 255, upload(data.labels[rows], generator.device)


def _rows(data: Unlabelled, schedule: Schedule, generator: torch.Generator) -> KnownBatches:
    order = Batches(len(data), schedule.batch_size, generator, torch.device("cpu"), drop_last=True)
    return KnownBatches([next(order) for _ in range(max(1, len(data) // schedule.batch_size))])


def nearest_neighbour_accuracy(
    features: Tensor, labels: Tensor, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> float:
    """Leave-one-out accuracy in [0, 1] of weighted nearest neighbours, votes exp(cosine / T); features [n, d].

    The evaluation of the paper's seasoning experiments (section 4.2), here without a test set. Images are compared in
    blocks, so memory grows with n and not with its square.
    """
    unit = F.normalize(features, dim=1)
    count = len(features)
    nearest = min(neighbours, count - 1)
    right = torch.zeros((), dtype=torch.int64, device=features.device)
    size = _AT_ONCE // max(count, nearest * classes) + 1
    for start in range(0, count, size):
        rows = slice(start, start + size)
        similarity = unit[rows] @ unit.T
        similarity.diagonal(start).fill_(-math.inf)
        best, index = similarity.topk(nearest, dim=1)
        votes = F.one_hot(labels[index], classes).to(best) * (best / temperature).exp()[:, :, None]
        right += (votes.sum(1).argmax(1) == labels[rows]).sum()
    return int(right) / count


@component("methods.season.Supervised")
@dataclass(frozen=True)
class SupervisedSeasoning:
    """Options of supervised seasoning by random search. draws: number of Dirichlet(1) draws, the first one uniform."""

    draws: int = 1000
    neighbours: int = 20
    temperature: float = 0.07


@torch.no_grad()
@component("methods.season.supervised_seasoned")
def supervised_seasoned(
    inputs: Sequence[Weights], data: Labelled, config: SupervisedSeasoning, generator: torch.Generator
) -> Mixed:
    """Mix encoders with the best of random coefficients, by leave-one-out neighbours on labelled clean images.

    Fuller et al. 2026, section 3.3 (supervised seasoning); a job function. Only `encoder.*` is mixed and returned.
    BatchNorm as in `self_seasoned`.
    """
    encoders = [_encoder_of(weights) for weights in inputs]
    stock = inputs[0]
    encoder = stock.architecture.build().to(generator.device).eval()
    use_batch_statistics(encoder)
    normalise = Normalise(stock.architecture.mean, stock.architecture.std).to(generator.device)
    mixture = Mixture(encoder, [Prefixed(weights.tensors, "encoder") for weights in inputs])
    shares = search_coefficients(mixture, lambda images: encoder(normalise(images)), data, config, generator)
    return _apply(encoders, shares, False, "encoder.")


@torch.no_grad()
def search_coefficients(
    mixture: Mixture,
    features: Callable[[Tensor], Tensor],
    data: Labelled,
    config: SupervisedSeasoning,
    generator: torch.Generator,
) -> Tensor:
    """Find the best of random coefficients, float64 [1, ingredients], by the neighbours of features of labelled images.

    `features` passes images in [0, 1] through the module as the mixture last wrote it.
    """
    count = len(mixture.ingredients)
    exponential = torch.empty(config.draws, count, dtype=torch.float64, device=generator.device)
    shares = exponential.exponential_(generator=generator)
    shares[0] = 1
    shares /= shares.sum(1, keepdim=True)
    # Images may be sorted by class, and batches of one class would have biased statistics.
    mixed_up = torch.randperm(len(data), generator=generator, device=generator.device)
    layers = batch_norm_layers(mixture.module)
    order = mixed_up.to(data.images.device) if layers else torch.arange(len(data), device=data.images.device)
    labels = data.labels.to(order.device)[order].to(generator.device)
    scores = []
    for row in shares:
        mixture.write(row[None])
        found = torch.cat(
            [
                features(images.float() / 255)
                for _, images in loaded(data.images, KnownBatches(torch.split(order, 512)), generator.device)
            ]
        )
        scores.append(nearest_neighbour_accuracy(found, labels, data.classes, config.neighbours, config.temperature))
    return shares[scores.index(max(scores))][None]
