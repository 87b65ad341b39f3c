"""Measure how long streams take on this device by running and discarding their first batches."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.core.cache_dir import weights_path
from bench.core.conditions import Trial, digest_of
from bench.core.devices import synchronise
from bench.core.environment import device_name
from bench.evaluation.evaluate import Evaluation, hold, steps
from bench.evaluation.protocols import Segment
from bench.evaluation.stream import make_pixels
from bench.models.weights_io import save_weights
from bench.planning.board_entry import BoardEntry
from bench.planning.plan import Plan
from bench.planning.work_items import kind_of_stream
from bench.training.job_cache import all_jobs, cached_facts, stock_of
from leaderboards.record import Record
from leaderboards.store import Store
from methods.base import Labelled
from methods.nets.flops import counted
from methods.nets.weights import SIDE_HEADS, Weights
from methods.soups.soup import ensemble
from methods.training.finetune import start_side_head

_SECONDS_OF_PROBE = 1.0
_IMAGES_OF_PROBE = 8
_FIRST_BATCHES = (2, 8, 32)
_BATCHES_OF_PROBE = 20
_FEW_ON_CPU = 1e11
"""Operations that take a CPU a few seconds: after the first second, no batch of a probe has more."""

Tell = Callable[[str], None]
"""What hears, in a sentence, what is measured next."""


@dataclass(frozen=True)
class StreamRate:
    """The cost of one image of a stream, without its pixels; `start` is the seconds before the first image."""

    flops: float
    seconds: float
    start: float
    forwards: float
    backwards: float


class StreamProbe:
    """Estimates the cost of a plan's streams, from records in the run's folder or from one probe for each kind."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self._device, self._tell = plan.device, tell
        self._pixels = PixelTimer(plan, tell)
        self._before = _seconds_before(plan)
        self._rates: dict[str, StreamRate] = {}

    def rate(self, evaluation: Evaluation, entry: BoardEntry) -> StreamRate:
        """Return the cost per image of a stream of a row."""
        kind = kind_of_stream(evaluation, entry)
        if kind not in self._rates:
            self._tell(f"measuring {entry.trial.method} on a few images")
            with _weights_for(evaluation, entry) as ready:
                probed = _probe_stream(ready, self._device)
            seconds = self._before.get(_row_key(entry.trial, entry.part), probed.seconds)
            self._rates[kind] = replace(probed, seconds=seconds)
        return self._rates[kind]

    def seconds_of_pixels(self, segments: Sequence[Segment], batch_size: int) -> float:
        """Return the seconds to make all pixels of segments."""
        return sum(self._pixels.seconds(segment, batch_size) for segment in segments)


class PixelTimer:
    """Measures how long the pixels of a segment take, on one batch for each set of corruptions."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self._shift, self._device, self._tell = plan.shift, plan.device, tell
        self._per_image: dict[object, float] = {}

    def seconds(self, segment: Segment, batch_size: int) -> float:
        """Return the seconds to make all pixels of a segment."""
        names = tuple(condition.corruption for condition in segment.conditions)
        kind = (names, tuple(tuple(c.corruption for c in blend) for blend in segment.blends))
        if kind not in self._per_image:
            if not self._per_image:
                self._tell("measuring how long the images of each condition take to make")
            self._probe(segment, 1)  # which may import and compile what makes the pixels
            self._per_image[kind] = self._probe(segment, min(_IMAGES_OF_PROBE, len(segment.ids)))
            if self._per_image[kind] * batch_size < _SECONDS_OF_PROBE:
                self._per_image[kind] = self._probe(segment, min(batch_size, len(segment.ids)))
        return self._per_image[kind] * len(segment.ids)

    def _probe(self, segment: Segment, images: int) -> float:
        """Return seconds per image for a batch of images spread evenly over the segment."""
        rows = np.linspace(0, len(segment.ids) - 1, images).round().astype(np.int64)
        start = time.perf_counter()
        make_pixels(self._shift, segment, rows, self._device)
        synchronise(self._device)
        return (time.perf_counter() - start) / images


def _seconds_before(plan: Plan) -> dict[str, float]:
    """Return the seconds per image of each row that has records in the run's folder, measured on this hardware."""
    sums: dict[str, list[float]] = {}
    for record in Store(plan.out).records():
        if record.status == "done" and record.cost and record.cost.device_name == device_name(plan.device):
            total = sums.setdefault(_row_key(record, record.part), [0.0, 0.0])
            total[0] += record.cost.predict_seconds
            total[1] += record.n
    return {row: seconds / images for row, (seconds, images) in sums.items()}


def _row_key(of: Trial | Record, part: str | None) -> str:
    """Return a digest that is equal for trials and records that take the same time per image."""
    options = {name: dict(values) for name, values in of.options.items()}
    return digest_of([of.method, part, of.shift, of.model, of.batch_size, of.precision, options])


@contextlib.contextmanager
def _weights_for(evaluation: Evaluation, entry: BoardEntry) -> Iterator[Evaluation]:
    """Yield the evaluation with existing weights: temporary random ones if they are not trained yet."""
    if evaluation.weights is None or cached_facts(evaluation.weights) is not None:
        yield evaluation
        return
    assert entry.job is not None
    classes = next(job.data.classes for job in all_jobs([entry.job]) if isinstance(job.data, Labelled))
    weights = _stand_in(stock_of(entry.job), classes, entry.job.keeps)
    if entry.job.function is ensemble:
        weights = ensemble([weights] * len(entry.job.inputs))
    path = weights_path(f"probe-{os.getpid()}-{weights.digest[-16:]}")
    save_weights(path, weights, {"label": "stand-in of a probe"})
    try:
        yield replace(evaluation, weights=path.stem, config=_without_steps(evaluation.config))
    finally:
        path.unlink()


def _stand_in(stock: Weights, classes: int, keeps: Sequence[str]) -> Weights:
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


def _without_steps(config: Any) -> Any:
    """Return options at a rate of 0, if there is one: the same work, from which no untrained classifier diverges."""
    if not hasattr(config, "lr"):
        return config
    try:
        return replace(config, lr=0.0)
    except ValueError:  # options that need a positive rate
        return config


def _probe_stream(evaluation: Evaluation, device: str) -> StreamRate:
    """Measure the start of a stream and its cost per image, on ever larger batches up to the size of the run.

    The first batch counts the operations, which slows it down; the others are timed. On a CPU, batches with many
    operations end the growth once a second has passed, so that a dear method is measured on a few images. The rate is
    that of the largest size that was reached.
    """
    hold(evaluation)
    short, sizes = _shortened(evaluation)
    start = time.perf_counter()
    batches = steps(short)
    next(batches)
    begun = time.perf_counter()
    with counted() as counter:
        results = next(batches)[-1]
    flops = counter.get_total_flops() / results.done
    reached: list[int] = []
    for size in sizes[1:]:
        few = not device.startswith("cpu") or flops * size <= _FEW_ON_CPU
        if reached and time.perf_counter() - begun > _SECONDS_OF_PROBE and not (few and reached.count(size) < 2):
            break
        results = next(batches)[-1]
        reached.append(size)
        if results.done == size:
            warm = replace(results)  # later batches of this size are not slowed down by start-up
    images, seconds = results.done - warm.done, results.seconds - warm.seconds
    return StreamRate(
        flops,
        seconds / images if images else results.seconds / results.done,
        begun - start,
        results.forwards / results.done,
        results.backwards / results.done,
    )


def _shortened(evaluation: Evaluation) -> tuple[Evaluation, list[int]]:
    """Return an evaluation of segments of growing batches, all from the first images, and the size of each batch."""
    first, size = evaluation.segments[0], evaluation.batch_size
    images = len(first.ids)
    largest = min(size, images)
    small = [min(_FIRST_BATCHES[0], largest), *(each for each in _FIRST_BATCHES if each < largest)]
    whole = min(images // largest, _BATCHES_OF_PROBE)

    def cut(count: int) -> Segment:
        keep = slice(0, count)
        blend = first.blend[keep] if first.blend is not None else None
        return replace(first, ids=first.ids[keep], which=first.which[keep], blend=blend)

    segments = tuple(cut(count) for count in (*small, whole * largest))
    return replace(evaluation, segments=segments, clean=None, plain=False), [*small, *[largest] * whole]
