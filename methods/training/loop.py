"""The training loop: a warm-up and a cosine schedule per step, and few synchronisations with the device.

Pre-training, inter-training, fine-tuning and training from scratch differ only in the batches and the loss that they
pass; all but the last use AdamW. Everything runs on the device of the given generator, which is also the only source of
randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from methods.base import Checkpointer, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup, uneven
from methods.nets.weights import AnyArchitecture
from methods.nets.weights import reset as reset

# Losses are checked once in this many steps: often enough to stop a diverged run, too rarely to stall a GPU.
_CHECK_EVERY = 100
_START = 1e-6

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and the fraction of all steps spent on warm-up."""

    parameters: Sequence[nn.Parameter]
    lr: float
    warmup: float


def schedule(steps: int, warmup: float) -> list[float]:
    """Return the factor of the peak learning rate for each step: linear warm-up from 1e-6, then cosine to 0.

    With W = max(1, floor(warmup * steps)): factor(t) = 1e-6 + (1 - 1e-6) t / W for t < W, so factor(0) = 1e-6 and
    factor(W) = 1; then (1 + cos(pi (t - W) / (steps - W))) / 2, which would reach 0 at t = steps.
    """
    rise = max(1, math.floor(warmup * steps + 1e-9))
    return [
        _START + (1 - _START) * step / rise
        if step < rise
        else (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
        for step in range(steps)
    ]


class Batches:
    """Endless index batches (int64 on `device`) without replacement within an epoch, reshuffled for each epoch.

    The ragged last batch of an epoch is dropped if `drop_last`, unless it is the only one. The state is the order of
    the current epoch and the position in it.
    """

    def __init__(
        self, count: int, batch_size: int, generator: torch.Generator, device: torch.device, *, drop_last: bool
    ) -> None:
        self._full = count - count % batch_size if drop_last and count > batch_size else count
        self._count, self._size = count, batch_size
        self._generator, self._device = generator, device
        self._order = torch.empty(0, dtype=torch.int64, device=device)
        self._place = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        if self._place >= len(self._order):
            order = torch.randperm(self._count, generator=self._generator, device=self._generator.device)
            self._order, self._place = order[: self._full].to(self._device), 0
        self._place += self._size
        return self._order[self._place - self._size : self._place]

    def following(self) -> Tensor | None:
        """Return the next batch without taking it; None at the end of an epoch, whose successor is not drawn yet."""
        return self._order[self._place : self._place + self._size] if self._place < len(self._order) else None

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.clone(), "place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._place = state["order"].to(self._device), state["place"]


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch (a list or tuple of tensors, each along its own rows) into equal parts, or raise ValueError."""
    tensors: Sequence[Tensor] = batch  # type: ignore[assignment]
    count = len(tensors[0])
    if count % parts:
        raise ValueError(uneven(count, parts))
    kind: Any = type(batch)
    return [kind(each) for each in zip(*(torch.split(t, len(t) // parts) for t in tensors), strict=True)]


def compile_blocks(*modules: nn.Module) -> None:
    """Compile every transformer block in place; blocks of one shape share a kernel, and tensor names stay the same."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, Block):
                part.compile()


class Stateful(Protocol):
    """An object whose state can be saved and restored: a module, an optimiser, an order of batches."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass(frozen=True)
class Progress:
    """How to checkpoint a training: the storage, and all that changes during training except the optimiser."""

    keep: Checkpointer
    parts: Sequence[Stateful]
    generator: torch.Generator


def check_size(data: Unlabelled, architecture: AnyArchitecture) -> None:
    """Raise ValueError if the images do not have the size that the architecture expects."""
    size = architecture.image_size
    if tuple(data.images.shape[2:]) != (size, size):
        height, width = data.images.shape[2:]
        raise ValueError(f"images are {height} x {width} but the stock takes {size} x {size}; resize them first")


def train(
    loss: Callable[[Batch], Tensor],
    stream: Iterable[Batch],
    groups: Sequence[ParameterGroup],
    *,
    steps: int,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float | None = None,
    bf16: bool = False,
    stop: int | None = None,
    accumulate: int = 1,
    progress: Progress | None = None,
    parallel: DataParallelGroup = ALONE,
) -> Tensor:
    """Minimise `loss` over the first `steps` batches of `stream` by AdamW (arXiv:1711.05101).

    With `momentum`, by gradient descent with Nesterov momentum of this value instead, and `betas` are not used. Weight
    decay acts on all parameters of a group. `bf16` runs `loss` (but neither the stream nor the update) in
    bfloat16 autocast; parameters stay float32. `stop` ends after this many steps of the unchanged schedule.
    `accumulate` cuts each batch into this many equal parts, whose mean gradient makes one step with the memory of one
    part. With `progress`, training resumes from the saved state; `stream` must then draw only from its parts and
    generator. With several processes in `parallel`, each makes the same call and passes its own share of each batch
    (methods.data_parallel). Returns the losses, float32 [steps or stop], on the parameters' device.

    Raises FloatingPointError if a loss or a trained parameter is not finite, ValueError for a setting that cannot work.
    """
    if steps < 1:
        raise ValueError(f"training needs at least one step, not {steps}")
    trained = [parameter for group in groups for parameter in group.parameters]
    device = trained[0].device
    if bf16 and device.type == "cpu":
        raise ValueError("bfloat16 training on a CPU is slower than float32; set bf16 to False or train on a GPU")
    optimiser = _optimiser(groups, betas, momentum, weight_decay)
    rates = [[group.lr * factor for factor in schedule(steps, group.warmup)] for group in groups]
    taken = steps if stop is None else min(stop, steps)
    losses = torch.empty(taken, device=device)
    done = _continue(progress, optimiser, losses) if progress is not None else 0
    loss = parallel.spread(loss, trained)
    for step, batch in enumerate(islice(stream, taken - done), start=done):
        for settings, rate in zip(optimiser.param_groups, rates, strict=True):
            settings["lr"] = rate[step]
        value = _add_gradients(loss, cut(batch, accumulate) if accumulate > 1 else [batch], device, bf16, parallel)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses[step] = parallel.mean(value)
        if (step + 1) % _CHECK_EVERY == 0:
            _refuse_divergence(losses[: step + 1])
        if progress is not None and step + 1 < taken and progress.keep.due():
            _keep(progress, optimiser, losses[: step + 1])
    _refuse_divergence(losses)
    if progress is not None:
        progress.keep.finished(losses)
    finite = [torch.isfinite(parameter).all() for parameter in trained]
    if not torch.stack(finite).all():
        raise FloatingPointError("training ended with parameters that are not finite; lower the learning rate")
    return losses


def _add_gradients(
    loss: Callable[[Batch], Tensor],
    parts: Sequence[Batch],
    device: torch.device,
    bf16: bool,
    parallel: DataParallelGroup,
) -> Tensor:
    """Add the gradient of the mean loss of the parts of a batch, one after another; return that loss, a scalar."""
    values = []
    for number, part in enumerate(parts, start=1):
        with parallel.held_back(loss) if number < len(parts) else nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = loss(part) / len(parts) if len(parts) > 1 else loss(part)
            value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    return torch.stack(values).sum() if len(values) > 1 else values[0]


def _optimiser(
    groups: Sequence[ParameterGroup], betas: tuple[float, float], momentum: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    own = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
    fused = True if groups[0].parameters[0].device.type in ("cpu", "cuda") else None
    if momentum is None:
        return torch.optim.AdamW(own, betas=betas, weight_decay=weight_decay, fused=fused)
    return torch.optim.SGD(own, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay, fused=fused)


def _continue(progress: Progress, optimiser: torch.optim.Optimizer, losses: Tensor) -> int:
    """Restore the saved state and return the number of completed steps."""
    state = progress.keep.load()
    if state is None:
        return 0
    done: int = state["step"]
    for part, saved in zip(progress.parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    optimiser.load_state_dict(state["optimiser"])
    progress.generator.set_state(state["generator"])
    losses[:done] = state["losses"].to(losses.device)
    return done


def _keep(progress: Progress, optimiser: torch.optim.Optimizer, losses: Tensor) -> None:
    progress.keep.save(
        {
            "step": len(losses),
            "parts": [part.state_dict() for part in progress.parts],
            "optimiser": optimiser.state_dict(),
            "generator": progress.generator.get_state(),
            "losses": losses.clone(),
        }
    )


def _refuse_divergence(losses: Tensor) -> None:
    finite = torch.isfinite(losses)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise FloatingPointError(f"the loss is not finite at step {first}; lower the learning rate or check the images")
