"""How long trainings take on this device, from their first steps, which are really done and thrown away."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.pixel_cache import CachedRows
from bench.shifts.lazy_images import LazyImages
from bench.training.job_cache import all_jobs, kind_of, seconds_before
from methods.base import Chosen, Images, Job, Labelled
from methods.nets import flops as flops_of
from methods.nets.weights import Weights

SECONDS_OF_PROBE = 1.0
_STEPS_OF_PROBE = (3, 30)
LARGEST_PROBE_ON_CPU = 1e12
"""Operations in one step or batch of a probe on a CPU, some ten seconds; larger ones are probed with fewer images."""


class TrainingProbe:
    """Seconds of trainings on a device: what such trainings took here before, else measured once for all that differ in
    rates, lengths and draws alone.

    Corrupted images that will be kept in the cache are billed once: to the first training that reads them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = seconds_before(device)
        self._short: dict[str, float] = {}
        self._steps: dict[str, _Steps] = {}
        self._lacking: dict[str, int] = {}

    def measure(self, job: Job, stock: Weights) -> tuple[float | None, int]:
        """Seconds of a job (None for what cannot be tried on a stand-in), and images that it adds to the cache."""
        kind = kind_of(job)
        if kind in self._before:
            if job.work is None:
                return self._before[kind], 0
            return self._before[kind] * job.work.flops, self._made(job)
        if job.work is None or not job.resumable:
            if kind not in self._short:
                self._short[kind] = _seconds_of_short(job, stock, self._device) or 0.0
            return self._short[kind], 0
        if kind not in self._steps:
            self._steps[kind] = _probe_steps(job, stock, self._device)
        found = self._steps[kind]
        made = self._made(job)
        return found.begin + found.rate * job.work.flops + found.making * made, made

    def _made(self, job: Job) -> int:
        """How many of the images that a job draws are lacking in the cache; from here on they count as kept."""
        if job.data is None or job.work is None or not (kept := cached_rows_of(job)):
            return 0
        lacking = self._lacking.setdefault(job.data.digest, sum(rows.lacking for rows in kept))
        made: int = min(job.work.steps * job.config.batch_size, lacking)
        self._lacking[job.data.digest] -= made
        return made


def cached_rows_of(job: Job) -> tuple[CachedRows, ...]:
    """Where the corrupted images are kept that a job reads."""
    images = job.data.images if job.data is not None else None
    return images.kept if isinstance(images, LazyImages) else ()


@dataclass(frozen=True)
class _Steps:
    """What a training takes before its first step (`begin`, seconds), and in seconds an operation.

    `making`: where corrupted images are kept, the seconds in which one is made; they are in none of the others.
    """

    begin: float
    rate: float
    making: float


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


def _probe_steps(job: Job, stock: Weights, device: str) -> _Steps:
    assert job.work is not None
    flops = job.work.flops / job.work.steps
    config = job.config
    if device.startswith("cpu") and flops > LARGEST_PROBE_ON_CPU:
        batch = max(2, int(config.batch_size * LARGEST_PROBE_ON_CPU / flops))
        flops *= batch / config.batch_size
        whole = {"accumulate": None} if hasattr(config, "accumulate") else {}
        config = replace(config, batch_size=batch, **whole)
    data, making = job.data, None
    if data is not None and isinstance(data.images, LazyImages) and data.images.kept:
        making = _Timed(data.images.unkept())
        data = replace(data, images=making)
    clock = _Clock(device, making)
    generator = torch.Generator(device=device).manual_seed(0)
    with contextlib.suppress(_EnoughError):
        job.function(_stand_ins(job, stock), data, config, generator, keep=clock)
    each = making.seconds / max(making.rows, 1) if making is not None else 0.0
    return _Steps(clock.seconds_to_begin(), clock.seconds_per_step() / flops, each)


class _Timed(Chosen):
    """All of some images, and how long it took to make those that were read."""

    def __init__(self, images: Images) -> None:
        super().__init__(images, torch.arange(len(images)))
        self.seconds = 0.0
        self.rows = 0

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        start = time.perf_counter()
        found = super().__getitem__(rows)
        self.seconds += time.perf_counter() - start
        self.rows += len(found)
        return found


class _EnoughError(Exception):
    """The probe has seen enough steps."""


class _Clock:
    """A keeper that keeps nothing, looks at the clock after each step, and ends the training after some of them.

    The clock stands still while images are made.
    """

    def __init__(self, device: str, making: _Timed | None) -> None:
        self._device = device
        self._making = making
        self._times: list[float] = []
        self._begun = self._now()
        self._first = math.inf

    def _now(self) -> float:
        return time.perf_counter() - (self._making.seconds if self._making is not None else 0.0)

    def load(self) -> None:
        return None

    def due(self) -> bool:
        synchronise(self._device)
        self._times.append(self._now())
        self._first = min(self._first, time.perf_counter())
        fewest, most = _STEPS_OF_PROBE
        done = len(self._times)
        if done >= most or (done >= fewest and time.perf_counter() - self._first > SECONDS_OF_PROBE):
            raise _EnoughError
        return False

    def save(self, state: dict[str, Any]) -> None:
        raise AssertionError("a probe never saves")

    def finished(self, losses: torch.Tensor) -> None:
        """Nothing is kept of a probe."""

    def seconds_per_step(self) -> float:
        if len(self._times) > 1:
            return (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return self._now() - self._begun

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
