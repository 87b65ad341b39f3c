"""Measure how long trainings take on this device by running and discarding their first steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.core.devices import synchronise
from bench.data.pixel_cache import CachedRows
from bench.shifts.lazy_images import LazyImages
from bench.shifts.photographs import LazyPhotographs
from bench.training.job_cache import all_jobs, kind_of, seconds_before, speed_kind
from methods.base import Chosen, Images, Job, Labelled, Photographs
from methods.nets import flops as flops_of
from methods.nets.weights import SIDE_HEADS, Classifier, Weights
from methods.training.finetune import start_side_head

SECONDS_OF_PROBE = 1.0
_STEPS_OF_PROBE = (3, 30)
LARGEST_PROBE_ON_CPU = 1e12
"""The most operations in one step or batch of a probe on a CPU, about ten seconds; larger ones use fewer images."""


class TrainingProbe:
    """Estimates the seconds of trainings on a device, from earlier trainings of the same kind or from a probe.

    One probe serves all trainings that differ only in rates, lengths and random draws. The time for corrupted images
    that will be cached counts once, for the first training that reads them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = seconds_before(device)
        self._short: dict[str, float] = {}
        self._forward: dict[str, float] = {}
        self._steps: dict[str, _Steps] = {}
        self._missing: dict[str, int] = {}

    def measure(self, job: Job, stock: Weights) -> tuple[float, int]:
        """Return the seconds of a job (0 if a stand-in cannot run it) and the number of images it adds to the cache."""
        kind = kind_of(job)
        if (known := self._before.get(speed_kind(job))) is not None:
            if job.work is None:
                return known, 0
            return known * job.work.flops, self._made(job)
        if job.work is not None and not job.resumable and len(job.inputs) > 1:
            # Predictions of many models: each is as fast as the next.
            shape = repr(stock.architecture)
            if shape not in self._forward:
                self._forward[shape] = _seconds_of_forward(stock, self._device)
            return self._forward[shape] * job.work.flops, 0
        if job.work is None or not job.resumable:
            if kind not in self._short:
                self._short[kind] = _seconds_of_short(job, stock, self._device) or 0.0
            return self._short[kind], 0
        if kind not in self._steps:
            self._steps[kind] = _probe_steps(job, stock, self._device)
        steps = self._steps[kind]
        made = self._made(job)
        return steps.begin + steps.rate * job.work.flops + steps.making * made, made

    def _made(self, job: Job) -> int:
        """Count the images that a job adds to the cache; from then on they count as cached."""
        if job.data is None or job.work is None or not (kept := cached_rows_of(job)):
            return 0
        missing = self._missing.setdefault(job.data.digest, sum(rows.lacking for rows in kept))
        made: int = min(job.work.steps * job.config.batch_size, missing)
        self._missing[job.data.digest] -= made
        return made


def cached_rows_of(job: Job) -> tuple[CachedRows, ...]:
    """Return the disk caches of the images that a job reads: of corrupted images and of photographs."""
    if job.data is None:
        return ()
    read = (job.data.images, job.data.photographs)
    return tuple(rows for each in read if isinstance(each, LazyImages | LazyPhotographs) for rows in each.kept)


@dataclass(frozen=True)
class _Steps:
    """The cost of a training: seconds before its first step (`begin`) and seconds per operation (`rate`).

    `making`: seconds to make one image for the cache, not included in the other two.
    """

    begin: float
    rate: float
    making: float


def _seconds_of_short(job: Job, stock: Weights, device: str) -> float | None:
    """Measure a job without steps, such as a linear probe or a soup, on a quick part of its data."""
    data, share = job.data, 1.0
    if data is not None and len(data) > (most := _images_for(stock)):
        share = most / len(data)
        rows = torch.from_numpy(np.linspace(0, len(data) - 1, most).round().astype(np.int64))
        chosen: dict[str, Any] = {"images": Chosen(data.images, rows), "photographs": None}
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


@torch.no_grad()
def _seconds_of_forward(stock: Weights, device: str) -> float:
    """Measure the seconds for each operation of predictions, on a batch of as many images as a quick probe takes."""
    cost, size = flops_of.forward(stock.architecture), stock.architecture.image_size
    count = min(256, max(1, int(LARGEST_PROBE_ON_CPU / 20 / cost)))
    model = Classifier.of(stand_in(stock, 10)).to(device).eval()
    images = torch.rand(count, 3, size, size, device=device)
    model(images[:1])
    synchronise(device)
    start = time.perf_counter()
    model(images)
    synchronise(device)
    return (time.perf_counter() - start) / (count * cost)


def _images_for(stock: Weights) -> int:
    """Return how many images make a quick probe of an encoder, on a CPU too."""
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
    if data is not None:
        read = data.images if data.photographs is None else data.photographs
        if isinstance(read, LazyImages | LazyPhotographs) and read.kept:
            making = _Timed(read.unkept())
            data = replace(data, images=making) if data.photographs is None else replace(data, photographs=making)
    clock = _Clock(device, making)
    generator = torch.Generator(device=device).manual_seed(0)
    with contextlib.suppress(_EnoughError):
        job.function(_stand_ins(job, stock), data, config, generator, keep=clock)
    each = making.seconds / max(making.rows, 1) if making is not None else 0.0
    return _Steps(clock.seconds_to_begin(), clock.seconds_per_step() / flops, each)


class _Timed(Chosen):
    """Images that measure the time to make the rows that are read."""

    def __init__(self, images: Images) -> None:
        super().__init__(images, torch.arange(len(images)))
        self.seconds = 0.0
        self.rows = 0

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        start = time.perf_counter()
        images = super().__getitem__(rows)
        self.seconds += time.perf_counter() - start
        self.rows += len(images)
        return images

    def aspects(self, rows: Tensor) -> Tensor:
        """Return what the photographs say of themselves, if that is what the images are."""
        found: Tensor = cast("Photographs", self._images).aspects(rows)
        return found


class _EnoughError(Exception):
    """The probe has seen enough steps."""


class _Clock:
    """A checkpointer that saves nothing: it records the time of each step and stops the training after a few steps.

    Time spent making images is not counted.
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
        """Do nothing."""

    def seconds_per_step(self) -> float:
        if len(self._times) > 1:
            return (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return self._now() - self._begun

    def seconds_to_begin(self) -> float:
        """Return the seconds before the first step."""
        return max(self._times[0] - self._begun - self.seconds_per_step(), 0.0) if len(self._times) > 1 else 0.0


def stand_in(stock: Weights, classes: int, keeps: Sequence[str] = ()) -> Weights:
    """Return a classifier that costs as much as a trained one: the stock's encoder with a random head.

    `keeps` names what else it has (see `methods.base.Job.keeps`): the stock's own, else new side heads.
    """
    width = stock.architecture.dim
    # A confident head, like a trained one: methods that skip uncertain images are then measured on all images.
    head = 10 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
    kept = {name: tensor for name, tensor in stock.tensors.items() if name.partition(".")[0] in ("encoder", *keeps)}
    heads = {"head.weight": head, "head.bias": torch.zeros(classes)}
    for side in (name for name in SIDE_HEADS if name in keeps):
        built = SIDE_HEADS[side](width)
        start_side_head(built, torch.Generator().manual_seed(0))
        heads |= {f"{side}.{name}": tensor for name, tensor in built.state_dict().items()}
    return Weights(stock.architecture, {**kept, **heads})
