"""Estimate the cost of a run before it starts: floating-point operations, time on this device, and disk space.

The operations of trainings are known in closed form (methods.nets.flops), and take as long as those of earlier
trainings of the same kind on this hardware, else as those of an encoder that only predicts. Streams take as long as in
the records of the run's folder; where there are none, a probe runs the first batches of each kind of stream on the
run's own data, and discards the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.core.devices import synchronise
from bench.data.pixel_cache import CachedRows
from bench.evaluation.evaluate import Evaluation, is_answered
from bench.evaluation.pass_counter import forget_peak, peak_memory_mb
from bench.evaluation.protocols import Segment
from bench.evaluation.stream_tasks import measure
from bench.execution.task_pool import Task, set_threads
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan
from bench.planning.stream_probe import StreamProbe, StreamRate, Tell
from bench.planning.streams import groups_of, missing_streams
from bench.planning.time_left import WorkItem, makespan
from bench.planning.work_items import jobs_of
from bench.shifts.lazy_images import LazyImages
from bench.shifts.photographs import LazyPhotographs
from bench.training.job_cache import seconds_before, speed_kind, stock_of
from methods.base import Job, Unlabelled
from methods.nets.flops import forward
from methods.nets.weights import AnyArchitecture

_IMAGES_OF_PROBE = 8
_PASSES_OF_PROBE = 3
_PREDICTION_BYTES = 24
_RECORD_BYTES = 3000


@dataclass(frozen=True)
class CostLine:
    """The cost of a training, or of all missing streams of one row of the board.

    flops: None if unknown. forwards, backwards: samples. disk: bytes that stay.
    """

    kind: str
    label: str
    seed: int
    count: int
    flops: float | None
    seconds: float
    forwards: int
    backwards: int
    disk: int


@dataclass(frozen=True)
class CostEstimate:
    """All lines and the totals. `seconds` is the time until the last of `jobs` processes has finished."""

    costs: tuple[CostLine, ...]
    jobs: int
    seconds: float = 0.0
    memory_mb: float | None = None
    """The peak memory of one process during the probe, in MiB: of tensors on a GPU, of the process on a CPU."""
    passes: int = 0
    """Passes over images: streams that share a pass share its pixels."""
    cached: int = 0
    """Cached trainings that the missing records depend on."""
    answered: int = 0
    """Streams whose predictions are cached; they cost nothing and are in no line."""

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.costs if cost.flops is not None)

    @property
    def samples(self) -> tuple[int, int]:
        """Samples forward and backward in all streams."""
        return sum(cost.forwards for cost in self.costs), sum(cost.backwards for cost in self.costs)

    @property
    def disk(self) -> int:
        return sum(cost.disk for cost in self.costs)


Stream = tuple[Task, BoardEntry, tuple[Segment, ...]]
"""A stream as a task, with its row and its segments."""


def estimate(plan: Plan, tell: Tell = lambda _: None) -> CostEstimate:
    """Estimate the cost of the missing work of a plan, with probes of streams in this process of a few seconds each.

    `tell` hears what is measured. Raises the errors of the work itself, so a run that cannot start fails here.
    """
    streams = {stream[0].key: stream for stream in missing_streams(plan)}
    tasks = [*plan.trainings, *(task for task, _, _ in streams.values())]
    if not tasks:
        return CostEstimate((), plan.jobs)
    set_threads(plan.threads)
    forget_peak(plan.device)
    groups = _groups_to_run(plan, tasks)
    passes = [[streams[task.key] for task in group] for group in groups if group[0].key in streams]
    trainings = _training_lines(plan)
    stream_costs = _stream_costs(plan, passes, tell)
    seconds = {key: line.seconds for key, line in trainings.items()}
    for costs in stream_costs:
        seconds[costs[0].key] = sum(cost.seconds for cost in costs)
    work_items = [WorkItem(tuple(task.key for task in group), "", 0.0, group[0].after) for group in groups]
    return CostEstimate(
        (*trainings.values(), *_stream_lines(cost for costs in stream_costs for cost in costs)),
        plan.jobs,
        makespan(work_items, seconds, plan.jobs),
        peak_memory_mb(plan.device),
        len(passes),
        len(_needed_trainings(plan) - trainings.keys()),
        len(tasks) - sum(map(len, groups)),
    )


def _groups_to_run(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Group tasks that share a pass, without streams whose predictions are cached."""
    groups = []
    for group in groups_of(plan, tasks):
        alone = len(group) == 1
        if missing := [t for t in group if t.function is not measure or not is_answered(t.arguments[0], alone=alone)]:
            groups.append(missing)
    return groups


def _training_lines(plan: Plan) -> dict[str, CostLine]:
    """Return the cost of each missing training, by key."""
    missing = {task.key for task in plan.trainings}
    speed = _Speed(plan.device)
    lacking: dict[str, int] = {}
    lines: dict[str, CostLine] = {}
    for key, job, seed in jobs_of(plan.entries):
        if key in missing and key not in lines:
            lines[key] = _training_line(job, seed, speed.seconds(job) / (plan.devices if job.shared else 1), lacking)
    return lines


def _training_line(job: Job, seed: int, seconds: float, lacking: dict[str, int]) -> CostLine:
    """Return the cost of a training. `lacking` counts the images that are not cached yet, by the digest of the data;
    those that this training makes are taken off.
    """
    tensors = stock_of(job).tensors
    disk = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith("encoder."))
    if job.data is not None and job.work is not None and (kept := _cached_rows_of(job.data)):
        left = lacking.setdefault(job.data.digest, sum(rows.lacking for rows in kept))
        made = min(job.work.steps * job.config.batch_size, left)
        lacking[job.data.digest] = left - made
        disk += made * kept[0].row_bytes
    return CostLine("training", job.label, seed, 1, job.work.flops if job.work else None, seconds, 0, 0, disk)


def _cached_rows_of(data: Unlabelled) -> tuple[CachedRows, ...]:
    """Return the disk caches of a training's images: of corrupted images and of photographs."""
    read = (data.images, data.photographs)
    return tuple(rows for each in read if isinstance(each, LazyImages | LazyPhotographs) for rows in each.kept)


class _Speed:
    """The speed of trainings on a device, measured before or on the encoders that they start from."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = seconds_before(device)
        self._of_encoders: dict[str, float] = {}

    def seconds(self, job: Job) -> float:
        """Return the seconds of a training; of one without counted operations, those of one pass over its images."""
        if (measured := self._before.get(speed_kind(job))) is not None:
            return measured * (job.work.flops if job.work is not None else 1.0)
        shape = stock_of(job).architecture
        if repr(shape) not in self._of_encoders:
            self._of_encoders[repr(shape)] = _seconds_per_operation(shape, self._device)
        images = len(job.data) if job.data is not None else 0
        operations = job.work.flops if job.work is not None else images * forward(shape)
        return operations * self._of_encoders[repr(shape)]


@torch.no_grad()
def _seconds_per_operation(shape: AnyArchitecture, device: str) -> float:
    """Return the seconds of an operation in forward passes of an encoder, after one that does not count."""
    encoder = shape.build().to(device).eval()
    images = torch.rand(_IMAGES_OF_PROBE, 3, shape.image_size, shape.image_size, device=device)
    encoder(images)
    synchronise(device)
    start = time.perf_counter()
    for _ in range(_PASSES_OF_PROBE):
        encoder(images)
    synchronise(device)
    return (time.perf_counter() - start) / (_PASSES_OF_PROBE * _IMAGES_OF_PROBE * forward(shape))


@dataclass(frozen=True)
class _StreamCost:
    """The cost of one stream of a row. `disk`: bytes, including cached predictions."""

    key: str
    entry: BoardEntry
    rate: StreamRate
    images: int
    seconds: float
    disk: int


def _stream_costs(plan: Plan, passes: Sequence[Sequence[Stream]], tell: Tell) -> list[list[_StreamCost]]:
    """Return the costs of the streams of each pass, which share the seconds of its pixels equally."""
    probe = StreamProbe(plan, tell)
    return [[_stream_cost(stream, probe, len(streams)) for stream in streams] for streams in passes]


def _stream_cost(stream: Stream, probe: StreamProbe, sharing: int) -> _StreamCost:
    task, entry, chain = stream
    evaluation: Evaluation = task.arguments[0]
    rate = probe.rate(evaluation, entry)
    # An adapter that changes nothing finds its predictions of the clean images, measured before, in the cache.
    segments = chain if evaluation.plain else evaluation.all_segments
    images = sum(len(segment.ids) for segment in segments)
    pixels = probe.seconds_of_pixels(segments, evaluation.batch_size) / sharing
    records = sum(len(segment.conditions) for segment in chain)
    predictions = images * _PREDICTION_BYTES * (2 if evaluation.plain else 1)
    seconds = rate.start + images * rate.seconds + pixels
    return _StreamCost(task.key, entry, rate, images, seconds, records * _RECORD_BYTES + predictions)


def _stream_lines(costs: Iterable[_StreamCost]) -> Iterator[CostLine]:
    """Yield one line for the streams of each row, which all have the same rate."""
    rows: dict[int, list[_StreamCost]] = {}
    for cost in costs:
        rows.setdefault(id(cost.entry), []).append(cost)
    for row in rows.values():
        entry, rate = row[0].entry, row[0].rate
        images = sum(cost.images for cost in row)
        yield CostLine(
            "stream",
            entry.trial.method if entry.part is None else f"{entry.trial.method} ({entry.part})",
            entry.trial.seed,
            len(row),
            images * rate.flops,
            sum(cost.seconds for cost in row),
            round(images * rate.forwards),
            round(images * rate.backwards),
            sum(cost.disk for cost in row),
        )


def _needed_trainings(plan: Plan) -> set[str]:
    """Return the keys of all trainings that the missing records depend on."""
    missing = [entry for entry in plan.entries if plan.missing.intersection(entry.keys.values())]
    return {key for key, _, _ in jobs_of(missing)}
