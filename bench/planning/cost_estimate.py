"""What a run will take before it is paid for: floating-point operations, hours on this device, and disk.

Operations of trainings are known in closed form (methods.flops), those of streams are counted on two images. Seconds
come from what was done before on this hardware, trainings that are in the cache and records in the run's folder, and
where there is none from a probe: the first steps of each kind of training and the first batches of each kind of stream
are really done, on the run's own data, and thrown away.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.core.cache_dir import weights_path
from bench.core.conditions import Trial, digest_of
from bench.core.environment import device_name
from bench.evaluation.evaluate import Evaluation, evaluate, is_answered
from bench.evaluation.pass_counter import forget_peak, peak_memory_mb
from bench.evaluation.protocols import Segment
from bench.evaluation.stream import make_pixels
from bench.evaluation.stream_results import ConditionResult
from bench.evaluation.stream_tasks import measure
from bench.execution.task_pool import Task, set_threads
from bench.models.weights_io import save_weights
from bench.planning.plan import BoardEntry, Plan
from bench.planning.streams import groups_of, missing_streams
from bench.planning.time_left import WorkItem, makespan
from bench.planning.training_probe import (
    LARGEST_PROBE_ON_CPU,
    SECONDS_OF_PROBE,
    TrainingProbe,
    cached_rows_of,
    stand_in,
    synchronise,
)
from bench.planning.work_items import kind_of_stream
from bench.training.job_cache import all_jobs, cooked, job_key, stock_of
from leaderboards.record import Record
from leaderboards.store import Store
from methods.base import Labelled
from methods.nets.flops import counted
from methods.soups.soup import ensemble

_IMAGES_OF_PROBE = 8
_PREDICTION_BYTES = 24
_RECORD_BYTES = 3000


@dataclass(frozen=True)
class CostLine:
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
class CostEstimate:
    """Every line, and the whole. `seconds` is when the last of `jobs` processes has finished."""

    costs: tuple[CostLine, ...]
    jobs: int
    seconds: float = 0.0
    memory_mb: float | None = None
    """The most that one process took during the probe, in MiB: of tensors on a GPU, of everything on a CPU."""
    passes: int = 0
    """Passes in which the images of all streams are made: streams that share one have them made once."""
    cached: int = 0
    """Trainings that what is to be done builds on and that are in the cache already."""
    answered: int = 0
    """Streams whose answers are in the cache already; they cost nothing and are in no line."""

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


def estimate(plan: Plan) -> CostEstimate:
    """The cost of all that a plan has still to do, by a probe in this process, of a few seconds for each kind of work.

    Raises what the work itself would raise: a run that cannot start says so here.
    """
    streams = {task.key: (task, entry, chain) for task, entry, chain in missing_streams(plan)}
    tasks = [*plan.cooking, *(task for task, _, _ in streams.values())]
    if not tasks:
        return CostEstimate((), plan.jobs)
    set_threads(plan.threads)
    forget_peak(plan.device)
    together = groups_of(plan, tasks)
    groups = [left for group in together if (left := [task for task in group if not _answered(task, len(group))])]
    trainings = dict(_trainings(plan))
    seconds = {key: cost.seconds or 0.0 for key, cost in trainings.items()}
    passes = [group for group in groups if group[0].key in streams]
    costs = tuple(_streams(plan, [[streams[task.key] for task in group] for group in passes], seconds))
    work_items = [WorkItem(tuple(task.key for task in group), "", 0.0, group[0].after) for group in groups]
    needed = {
        job_key(job, entry.trial.seed)
        for entry in plan.entries
        if plan.missing.intersection(entry.keys.values())
        for job in all_jobs([job for job in (entry.job, entry.report) if job is not None])
    }
    return CostEstimate(
        (*trainings.values(), *costs),
        plan.jobs,
        makespan(work_items, seconds, plan.jobs),
        peak_memory_mb(plan.device),
        len(passes),
        len(needed - trainings.keys()),
        len(tasks) - sum(map(len, groups)),
    )


def _answered(task: Task, members: int) -> bool:
    return task.function is measure and is_answered(task.arguments[0], alone=members == 1)


def _trainings(plan: Plan) -> Iterable[tuple[str, CostLine]]:
    todo = {task.key for task in plan.cooking}
    probe = TrainingProbe(plan.device)
    for entry in plan.entries:
        for job in all_jobs([job for job in (entry.job, entry.report) if job is not None]):
            key = job_key(job, entry.trial.seed)
            if key not in todo:
                continue
            todo.remove(key)
            stock = stock_of(job)
            seconds, made = probe.measure(job, stock)
            if seconds is not None and job.shared:
                seconds /= plan.devices
            disk = sum(t.numel() * t.element_size() for name, t in stock.tensors.items() if name[:8] == "encoder.")
            disk += made * sum(rows.row_bytes for rows in cached_rows_of(job)[:1])
            flops = job.work.flops if job.work else None
            yield key, CostLine("training", job.label, entry.trial.seed, 1, flops, seconds, 0, 0, disk)


Streams = Sequence[tuple[Task, BoardEntry, tuple[Segment, ...]]]


def _streams(plan: Plan, passes: Sequence[Streams], seconds: dict[str, float]) -> Iterable[CostLine]:
    """A line for the streams of each row, and into `seconds` what each pass takes, by the key of its first stream.

    Of the images that a pass makes once for all of its streams, each row is billed its part.
    """
    pixels = _Pixels(plan)
    probes: dict[str, _Stream] = {}
    before = _seconds_before(plan)
    rows: dict[int, tuple[BoardEntry, list[_Part]]] = {}
    for streams in passes:
        for task, entry, chain in streams:
            evaluation: Evaluation = task.arguments[0]
            kind = kind_of_stream(evaluation, entry)
            if kind not in probes:
                with _ready(evaluation, entry) as ready:
                    found = _probe_stream(ready, plan.device, pixels)
                probes[kind] = replace(found, seconds=before.get(_row(entry.trial, entry.part), found.seconds))
            # What changes nothing has answered the clean images before: they are in the cache by now.
            segments = chain if evaluation.plain else evaluation.all_segments
            images = sum(len(segment.ids) for segment in segments)
            made = sum(pixels.seconds(segment, evaluation.batch_size) for segment in segments) / len(streams)
            taken = probes[kind].start + images * probes[kind].seconds + made
            first = streams[0][0].key
            seconds[first] = seconds.get(first, 0.0) + taken
            records = sum(len(segment.conditions) for segment in chain)
            kept = images * _PREDICTION_BYTES * (2 if evaluation.plain else 1)
            rows.setdefault(id(entry), (entry, []))[1].append(_Part(probes[kind], images, taken, records, kept))
    for entry, parts in rows.values():
        images = sum(part.images for part in parts)
        probe = parts[0].probe
        yield CostLine(
            "stream",
            entry.trial.method if entry.part is None else f"{entry.trial.method} ({entry.part})",
            entry.trial.seed,
            len(parts),
            images * probe.flops,
            sum(part.seconds for part in parts),
            round(images * probe.forwards),
            round(images * probe.backwards),
            sum(part.records * _RECORD_BYTES + part.predictions for part in parts),
        )


def _seconds_before(plan: Plan) -> dict[str, float]:
    """Seconds an image of each row that has records in the run's folder, measured on this hardware."""
    sums: dict[str, list[float]] = {}
    for record in Store(plan.out).records():
        if record.status == "done" and record.cost and record.cost.device_name == device_name(plan.device):
            total = sums.setdefault(_row(record, record.part), [0.0, 0.0])
            total[0] += record.cost.predict_seconds
            total[1] += record.n
    return {row: seconds / images for row, (seconds, images) in sums.items()}


def _row(of: Trial | Record, part: str | None) -> str:
    """What a trial's streams and its records have in common whose images take equally long."""
    options = {name: dict(values) for name, values in of.options.items()}
    return digest_of([of.method, part, of.shift, of.model, of.batch_size, of.precision, options])


@dataclass(frozen=True)
class _Stream:
    """What one image of a stream takes beside its pixels, and (`start`) what the stream takes before the first one."""

    flops: float
    seconds: float
    start: float
    forwards: float
    backwards: float


@dataclass(frozen=True)
class _Part:
    """One stream of a row. `predictions`: bytes, those in the cache counted."""

    probe: _Stream
    images: int
    seconds: float
    records: int
    predictions: int


class _Pixels:
    """How long it takes to make the pixels of a segment, tried on one batch of each corruption."""

    def __init__(self, plan: Plan) -> None:
        self._shift, self._device = plan.shift, plan.device
        self._known: dict[object, float] = {}

    def seconds(self, segment: Segment, batch_size: int) -> float:
        """Seconds for all of a segment."""
        names = tuple(condition.corruption for condition in segment.conditions)
        kind = (names, tuple(tuple(c.corruption for c in blend) for blend in segment.blends))
        if kind not in self._known:
            few = min(_IMAGES_OF_PROBE, len(segment.ids))
            self._known[kind] = self._timed(segment, few)
            if self._known[kind] * batch_size < SECONDS_OF_PROBE:
                self._known[kind] = self._timed(segment, min(batch_size, len(segment.ids)))
        return self._known[kind] * len(segment.ids)

    def _timed(self, segment: Segment, images: int) -> float:
        """Seconds for an image, with so many of them in a batch from everywhere in the segment."""
        rows = np.linspace(0, len(segment.ids) - 1, images).round().astype(np.int64)
        start = time.perf_counter()
        make_pixels(self._shift, segment, rows, self._device)
        synchronise(self._device)
        return (time.perf_counter() - start) / images


@contextlib.contextmanager
def _ready(evaluation: Evaluation, entry: BoardEntry) -> Iterator[Evaluation]:
    """The evaluation with weights that exist: for those that are not cooked yet, a stand-in that is removed after."""
    if evaluation.weights is None or cooked(evaluation.weights) is not None:
        yield evaluation
        return
    assert entry.job is not None
    classes = next(job.data.classes for job in all_jobs([entry.job]) if isinstance(job.data, Labelled))
    weights = stand_in(stock_of(entry.job), classes)
    if entry.job.function is ensemble:
        weights = ensemble([weights] * len(entry.job.inputs))
    path = weights_path(f"probe-{os.getpid()}-{weights.digest[-16:]}")
    save_weights(path, weights, {"label": "stand-in of a probe"})
    try:
        yield replace(evaluation, weights=path.stem)
    finally:
        path.unlink()


def _probe_stream(evaluation: Evaluation, device: str, pixels: _Pixels) -> _Stream:
    """Measure the beginning of a stream: two images for the counts, one batch and several for the seconds."""
    with counted() as counter:
        few = evaluate(_shortened(evaluation, 2, 2))
    seen = sum(len(part.predictions.id) for part in few)
    flops = counter.get_total_flops() / seen
    size = evaluation.batch_size
    if device.startswith("cpu") and flops * size > LARGEST_PROBE_ON_CPU:
        size = max(2, int(LARGEST_PROBE_ON_CPU / flops))
    one, first = _timed(_shortened(evaluation, size, size), device)
    batches = min(max(3, math.ceil(SECONDS_OF_PROBE / one)), 20)
    _, parts = _timed(_shortened(evaluation, size, batches * size), device)
    images, answered = _sums(parts)
    before, answered_first = _sums(first)
    more = images > before
    seconds = (answered - answered_first) / (images - before) if more else answered / images
    return _Stream(
        flops,
        max(seconds, 0.0),
        max(one - seconds * before - pixels.seconds(_shortened(evaluation, size, size).segments[0], size), 0.0),
        sum(part.forwards for part in parts) / images,
        sum(part.backwards for part in parts) / images,
    )


def _sums(parts: Sequence[ConditionResult]) -> tuple[int, float]:
    """Images, and the seconds in which the adapter answered them."""
    return sum(len(part.predictions.id) for part in parts), sum(part.predict_seconds for part in parts)


def _timed(evaluation: Evaluation, device: str) -> tuple[float, list[ConditionResult]]:
    start = time.perf_counter()
    parts = evaluate(evaluation)
    synchronise(device)
    return time.perf_counter() - start, parts


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
    return replace(evaluation, segments=(short,), clean=None, batch_size=batch_size, plain=False)
