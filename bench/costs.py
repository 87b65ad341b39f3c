"""What a run will take before it is paid for: floating-point operations, hours on this device, and disk.

Operations of trainings are known in closed form (methods.flops), those of streams are counted on two images. Seconds
come from a probe: the first steps of each kind of training and the first batches of each kind of stream are really
done, on the run's own data, and thrown away.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.cache import weights_path
from bench.kitchen import all_jobs, cooked, job_key
from bench.models import save_weights
from bench.passes import forget_peak, peak_memory_mb
from bench.pieces import kind_of, kind_of_stream, stock_of
from bench.plan import Lane, Plan
from bench.predict import Evaluation, Measured, evaluate
from bench.protocols import Segment
from bench.run import missing_streams
from bench.workers import set_threads
from methods.base import Job, Labelled
from methods.flops import counted
from methods.soup import ensemble
from methods.stock import Weights

_SECONDS_OF_PROBE = 1.0
_STEPS_OF_PROBE = (3, 30)
_LARGEST_PROBE_ON_CPU = 1e12
"""Operations in one step or batch of a probe on a CPU, some ten seconds; larger ones are probed with fewer images."""
_PREDICTION_BYTES = 24
_RECORD_BYTES = 3000


@dataclass(frozen=True)
class Cost:
    """One line of the bill: a training, or all streams of one row of the board that are not done yet.

    flops, seconds: None where they cannot be told. forwards, backwards: samples. disk: bytes that stay.
    """

    kind: str
    label: str
    seed: int
    count: int
    flops: float | None
    seconds: float | None
    forwards: int
    backwards: int
    disk: int


@dataclass(frozen=True)
class Bill:
    """Every line, and the whole on `jobs` processes: at least the longest line, at best an equal share.

    So are the devices that a training is spread over.
    """

    costs: tuple[Cost, ...]
    jobs: int
    memory_mb: float | None = None
    """The most that one process took during the probe, in MiB: of tensors on a GPU, of everything on a CPU."""

    @property
    def seconds(self) -> float:
        known = [cost.seconds for cost in self.costs if cost.seconds is not None]
        longest = max((cost.seconds / cost.count for cost in self.costs if cost.seconds and cost.count), default=0.0)
        return max(sum(known) / self.jobs, longest)

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.costs if cost.flops is not None)

    @property
    def passes(self) -> tuple[int, int]:
        """Samples forward and backward in all streams."""
        return sum(cost.forwards for cost in self.costs), sum(cost.backwards for cost in self.costs)

    @property
    def disk(self) -> int:
        return sum(cost.disk for cost in self.costs)


def bill(plan: Plan) -> Bill:
    """The cost of all that a plan has still to do, by a probe in this process, of a few seconds for each kind of work.

    Raises what the work itself would raise: a run that cannot start says so here.
    """
    set_threads(plan.threads)
    forget_peak(plan.device)
    costs = (*_trainings(plan), *_streams(plan))
    return Bill(costs, plan.jobs, peak_memory_mb(plan.device) if costs else None)


def _trainings(plan: Plan) -> Iterable[Cost]:
    todo = {task.key for task in plan.cooking}
    seen: dict[str, float] = {}
    for lane in plan.lanes:
        for job in all_jobs([job for job in (lane.job, lane.report) if job is not None]):
            key = job_key(job, lane.trial.seed)
            if key not in todo:
                continue
            todo.remove(key)
            stock = stock_of(job)
            seconds = _training_seconds(job, stock, plan.device, seen)
            if seconds is not None and job.shared:
                seconds /= plan.devices
            disk = sum(t.numel() * t.element_size() for name, t in stock.tensors.items() if name[:8] == "encoder.")
            flops = job.work.flops if job.work else None
            yield Cost("training", job.label, lane.trial.seed, 1, flops, seconds, 0, 0, disk)


def _training_seconds(job: Job, stock: Weights, device: str, seen: dict[str, float]) -> float | None:
    """Seconds of a job, measured once for all that differ in rates, lengths and draws alone; None for what is short."""
    if job.work is None or not job.resumable:
        return None
    kind = kind_of(job)
    if kind not in seen:
        seen[kind] = _seconds_per_flop(job, stock, device)
    return job.work.flops * seen[kind]


def _seconds_per_flop(job: Job, stock: Weights, device: str) -> float:
    assert job.work is not None
    flops = job.work.flops / job.work.steps
    config = job.config
    if device.startswith("cpu") and flops > _LARGEST_PROBE_ON_CPU:
        batch = max(2, int(config.batch_size * _LARGEST_PROBE_ON_CPU / flops))
        flops *= batch / config.batch_size
        whole = {"accumulate": None} if hasattr(config, "accumulate") else {}
        config = replace(config, batch_size=batch, **whole)
    clock = _Clock(device)
    generator = torch.Generator(device=device).manual_seed(0)
    classes = next((each.data.classes for each in all_jobs([job]) if isinstance(each.data, Labelled)), None)
    given = stock if classes is None else _stand_in(stock, classes)
    inputs = [given for _ in job.inputs]
    with contextlib.suppress(_EnoughError):
        job.function(inputs, job.data, config, generator, keep=clock)
    return clock.seconds_per_step() / flops


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
        if done >= most or (done >= fewest and self._times[-1] - self._times[0] > _SECONDS_OF_PROBE):
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


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _streams(plan: Plan) -> Iterable[Cost]:
    by_lane: dict[int, tuple[Lane, list[tuple[Evaluation, tuple[Segment, ...]]]]] = {}
    for task, lane, chain in missing_streams(plan):
        by_lane.setdefault(id(lane), (lane, []))[1].append((task.arguments[0], chain))
    probes: dict[str, _Stream] = {}
    for lane, work in by_lane.values():
        evaluation = work[0][0]
        kind = kind_of_stream(evaluation, lane)
        if kind not in probes:
            with _ready(evaluation, lane) as ready:
                probes[kind] = _probe_stream(ready, plan.device)
        probe = probes[kind]
        segments = [
            segment
            for evaluation, chain in work
            for segment in (*chain, *([evaluation.clean] if evaluation.clean is not None else []))
        ]
        images = sum(len(segment.ids) for segment in segments)
        name = lane.trial.method if lane.part is None else f"{lane.trial.method} ({lane.part})"
        records = sum(len(segment.conditions) for _, chain in work for segment in chain)
        yield Cost(
            "stream",
            name,
            lane.trial.seed,
            len(work),
            images * probe.flops,
            len(work) * probe.start + images * probe.seconds,
            round(images * probe.forwards),
            round(images * probe.backwards),
            records * _RECORD_BYTES + images * _PREDICTION_BYTES,
        )


@dataclass(frozen=True)
class _Stream:
    """What one image of a stream takes, and (`start`) what the stream takes before its first batch."""

    flops: float
    seconds: float
    start: float
    forwards: float
    backwards: float


@contextlib.contextmanager
def _ready(evaluation: Evaluation, lane: Lane) -> Iterator[Evaluation]:
    """The evaluation with weights that exist: for those that are not cooked yet, a stand-in that is removed after."""
    if evaluation.weights is None or cooked(evaluation.weights) is not None:
        yield evaluation
        return
    assert lane.job is not None
    classes = next(job.data.classes for job in all_jobs([lane.job]) if isinstance(job.data, Labelled))
    stand_in = _stand_in(stock_of(lane.job), classes)
    if lane.job.function is ensemble:
        stand_in = ensemble([stand_in] * len(lane.job.inputs))
    path = weights_path(f"probe-{os.getpid()}-{stand_in.digest[-16:]}")
    save_weights(path, stand_in, {"label": "stand-in of a probe"})
    try:
        yield replace(evaluation, weights=path.stem)
    finally:
        path.unlink()


def _stand_in(stock: Weights, classes: int) -> Weights:
    """A classifier that costs what a trained one costs: the stock's encoder under a random head."""
    width = stock.architecture.dim
    # Sure of its classes, as a trained one is: methods that leave doubtful images out are billed for all.
    head = 10 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
    encoder = {name: tensor for name, tensor in stock.tensors.items() if name.startswith("encoder.")}
    return Weights(stock.architecture, {**encoder, "head.weight": head, "head.bias": torch.zeros(classes)})


def _probe_stream(evaluation: Evaluation, device: str) -> _Stream:
    """Measure the beginning of a stream: two images for the counts, one batch and several for the seconds."""
    with counted() as counter:
        few = evaluate(_shortened(evaluation, 2, 2))
    seen = sum(len(part.predictions.id) for part in few)
    flops = counter.get_total_flops() / seen
    size = evaluation.batch_size
    if device.startswith("cpu") and flops * size > _LARGEST_PROBE_ON_CPU:
        size = max(2, int(_LARGEST_PROBE_ON_CPU / flops))
    one, _, _ = _timed(_shortened(evaluation, size, size), device)
    batches = min(max(3, math.ceil(_SECONDS_OF_PROBE / one)), 20)
    several, parts, images = _timed(_shortened(evaluation, size, batches * size), device)
    first = min(size, images)
    seconds = (several - one) / (images - first) if images > first else several / images
    return _Stream(
        flops,
        max(seconds, 0.0),
        max(one - seconds * first, 0.0),
        sum(part.forwards for part in parts) / images,
        sum(part.backwards for part in parts) / images,
    )


def _timed(evaluation: Evaluation, device: str) -> tuple[float, list[Measured], int]:
    start = time.perf_counter()
    parts = evaluate(evaluation)
    synchronise(device)
    return time.perf_counter() - start, parts, sum(len(part.predictions.id) for part in parts)


def _shortened(evaluation: Evaluation, batch_size: int, images: int) -> Evaluation:
    """The first images of the first segment in batches of another size."""
    first = evaluation.segments[0]
    keep = slice(0, images)
    short = replace(
        first,
        ids=first.ids[keep],
        which=first.which[keep],
        blend=first.blend[keep] if first.blend is not None else None,
    )
    return replace(evaluation, segments=(short,), clean=None, batch_size=batch_size)
