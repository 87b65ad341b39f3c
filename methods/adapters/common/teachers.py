"""Building blocks of methods with teachers: averaged copies, losses between predictions, generators, an optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.losses import at_least_float32
from methods.online import NormOptions, adam


@dataclass(frozen=True)
class TeacherOptions(NormOptions):
    """Options of a method with views and with an optimiser that can use Nesterov's momentum, as its release does.

    nesterov: whether SGD uses Nesterov's momentum.
    flip: mirror views with probability one half; switch it off where mirrored classes differ, as digits do.
    """

    nesterov: bool = True
    flip: bool = True


def learnable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters named weight or bias of all modules, each once, in the order of `named_parameters`."""
    return [value for name, value in model.named_parameters() if name.rpartition(".")[2] in ("weight", "bias")]


def build_optimizer(
    parameters: list[nn.Parameter], options: TeacherOptions, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Return SGD (without Nesterov if the momentum is 0, as Nesterov needs momentum) or Adam (see `online.adam`).

    The parameters get gradients from now on.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    if options.optimizer == "adam":
        return adam(parameters, options.lr, options.momentum, weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        weight_decay=weight_decay,
    )


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimiser step down the gradient of a scalar loss."""
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def move_towards(values: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> None:
    """values <- (1 - share) * values + share * targets, in place; `share` in [0, 1]."""
    torch._foreach_lerp_(list(values), list(targets), share)


def cross_entropy_to(targets: Tensor, logits: Tensor) -> Tensor:
    """-sum_c p_c log q_c in nats for p = softmax(targets), q = softmax(logits): [n, classes] twice -> [n].

    Gradients flow through both. Classes masked with -inf in both neither count nor give NaN.
    """
    p = at_least_float32(targets).softmax(-1)
    log_q = at_least_float32(logits).log_softmax(-1)
    return -(p * torch.where(p > 0, log_q, 0.0)).sum(-1)


def symmetric_cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """The mean of the cross-entropies of two predictions to each other: logits [n, classes] twice -> [n]."""
    return 0.5 * cross_entropy_to(one, other) + 0.5 * cross_entropy_to(other, one)


def generators(generator: torch.Generator, model: nn.Module) -> tuple[torch.Generator, torch.Generator]:
    """Return a generator on the CPU for numbers that the host needs, and one on the model's device for tensors there.

    Each is the given generator if that is on the right device, else a new one with its seed.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))

    def on(place: torch.device) -> torch.Generator:
        if generator.device.type == place.type:
            return generator
        return torch.Generator(place).manual_seed(generator.initial_seed())

    return on(torch.device("cpu")), on(device)
