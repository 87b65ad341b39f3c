"""How long trainings take on this device, from their first steps, which are really done and thrown away."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.kitchen import all_jobs
from bench.pieces import kind_of
from methods import flops as flops_of
from methods.base import Chosen, Job, Labelled
from methods.stock import Weights

SECONDS_OF_PROBE = 1.0
_STEPS_OF_PROBE = (3, 30)
LARGEST_PROBE_ON_CPU = 1e12
"""Operations in one step or batch of a probe on a CPU, some ten seconds; larger ones are probed with fewer images."""


def training_seconds(job: Job, stock: Weights, device: str, seen: dict[str, tuple[float, float]]) -> float | None:
    """Seconds of a job, measured once for all that differ in rates, lengths and draws alone.

    None for what cannot be tried on a stand-in.
    """
    kind = kind_of(job)
    if job.work is None or not job.resumable:
        if kind not in seen:
            seen[kind] = (_seconds_of_short(job, stock, device) or 0.0, 0.0)
        return seen[kind][0]
    if kind not in seen:
        seen[kind] = _seconds_per_flop(job, stock, device)
    begin, rate = seen[kind]
    return begin + job.work.flops * rate


def _seconds_of_short(job: Job, stock: Weights, device: str) -> float | None:
    """Seconds of a job without steps, such as a linear probe or a soup, on as much of its data as is quick."""
    data, share = job.data, 1.0
    if data is not None and len(data) > (most := _images_for(stock)):
        share = most / len(data)
        rows = torch.from_numpy(np.linspace(0, len(data) - 1, most).round().astype(np.int64))
        chosen: dict[str, Any] = {"images": Chosen(data.images, rows)}
        data = replace(data, **(chosen | ({"labels": data.labels[rows]} if isinstance(data, Labelled) else {})))
    inputs = _stand_ins(job, stock)
    generator = torch.Generator(device=device).manual_seed(0)
    start = time.perf_counter()
    try:
        job.function(inputs, data, job.config, generator)
    except (LookupError, ValueError, RuntimeError):
        return None
    synchronise(device)
    return (time.perf_counter() - start) / share


def _images_for(stock: Weights) -> int:
    """How many images an encoder looks at in a probe that is quick also on a CPU."""
    return max(64, int(LARGEST_PROBE_ON_CPU / 20 / flops_of.forward(stock.architecture)))


def _stand_ins(job: Job, stock: Weights) -> list[Weights]:
    classes = next((each.data.classes for each in all_jobs([job]) if isinstance(each.data, Labelled)), None)
    given = stock if classes is None else stand_in(stock, classes)
    return [given for _ in job.inputs]


def _seconds_per_flop(job: Job, stock: Weights, device: str) -> tuple[float, float]:
    """Seconds until a training has made its first step, beyond those of the step, and seconds of an operation."""
    assert job.work is not None
    flops = job.work.flops / job.work.steps
    config = job.config
    if device.startswith("cpu") and flops > LARGEST_PROBE_ON_CPU:
        batch = max(2, int(config.batch_size * LARGEST_PROBE_ON_CPU / flops))
        flops *= batch / config.batch_size
        whole = {"accumulate": None} if hasattr(config, "accumulate") else {}
        config = replace(config, batch_size=batch, **whole)
    clock = _Clock(device)
    generator = torch.Generator(device=device).manual_seed(0)
    with contextlib.suppress(_EnoughError):
        job.function(_stand_ins(job, stock), job.data, config, generator, keep=clock)
    return clock.seconds_to_begin(), clock.seconds_per_step() / flops


class _EnoughError(Exception):
    """The probe has seen enough steps."""


class _Clock:
    """A keeper that keeps nothing, looks at the clock after each step, and ends the training after some of them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._times: list[float] = []
        self._begun = time.perf_counter()

    def load(self) -> None:
        return None

    def due(self) -> bool:
        synchronise(self._device)
        self._times.append(time.perf_counter())
        fewest, most = _STEPS_OF_PROBE
        done = len(self._times)
        if done >= most or (done >= fewest and self._times[-1] - self._times[0] > SECONDS_OF_PROBE):
            raise _EnoughError
        return False

    def save(self, state: dict[str, Any]) -> None:
        raise AssertionError("a probe never saves")

    def finished(self, losses: torch.Tensor) -> None:
        """Nothing is kept of a probe."""

    def seconds_per_step(self) -> float:
        if len(self._times) > 1:
            return (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return time.perf_counter() - self._begun

    def seconds_to_begin(self) -> float:
        """What comes before the first step."""
        return max(self._times[0] - self._begun - self.seconds_per_step(), 0.0) if len(self._times) > 1 else 0.0


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def stand_in(stock: Weights, classes: int) -> Weights:
    """A classifier that costs what a trained one costs: the stock's encoder under a random head."""
    width = stock.architecture.dim
    # Sure of its classes, as a trained one is: methods that leave doubtful images out are billed for all.
    head = 10 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
    encoder = {name: tensor for name, tensor in stock.tensors.items() if name.startswith("encoder.")}
    return Weights(stock.architecture, {**encoder, "head.weight": head, "head.bias": torch.zeros(classes)})
