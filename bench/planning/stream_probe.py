"""Measure how long streams take on this device by running and discarding their first batches."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.core.cache_dir import weights_path
from bench.core.conditions import Trial, digest_of
from bench.core.devices import synchronise
from bench.core.environment import device_name
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.protocols import Segment
from bench.evaluation.stream import make_pixels
from bench.evaluation.stream_results import ConditionResult
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
_LARGEST_ON_CPU = 1e12
"""The most operations in one batch of a probe on a CPU, about ten seconds; larger ones use fewer images."""


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

    def __init__(self, plan: Plan) -> None:
        self._device = plan.device
        self._pixels = PixelTimer(plan)
        self._before = _seconds_before(plan)
        self._rates: dict[str, StreamRate] = {}

    def rate(self, evaluation: Evaluation, entry: BoardEntry) -> StreamRate:
        """Return the cost per image of a stream of a row."""
        kind = kind_of_stream(evaluation, entry)
        if kind not in self._rates:
            with _weights_for(evaluation, entry) as ready:
                probed = _probe_stream(ready, self._device, self._pixels)
            seconds = self._before.get(_row_key(entry.trial, entry.part), probed.seconds)
            self._rates[kind] = replace(probed, seconds=seconds)
        return self._rates[kind]

    def seconds_of_pixels(self, segments: Sequence[Segment], batch_size: int) -> float:
        """Return the seconds to make all pixels of segments."""
        return sum(self._pixels.seconds(segment, batch_size) for segment in segments)


class PixelTimer:
    """Measures how long the pixels of a segment take, on one batch for each set of corruptions."""

    def __init__(self, plan: Plan) -> None:
        self._shift, self._device = plan.shift, plan.device
        self._per_image: dict[object, float] = {}

    def seconds(self, segment: Segment, batch_size: int) -> float:
        """Return the seconds to make all pixels of a segment."""
        names = tuple(condition.corruption for condition in segment.conditions)
        kind = (names, tuple(tuple(c.corruption for c in blend) for blend in segment.blends))
        if kind not in self._per_image:
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


def _probe_stream(evaluation: Evaluation, device: str, pixels: PixelTimer) -> StreamRate:
    """Measure the start of a stream: two images for the counts, then one batch and several for the seconds."""
    with counted() as counter:
        two = evaluate(_shortened(evaluation, 2, 2))
    flops = counter.get_total_flops() / _totals(two)[0]
    size = evaluation.batch_size
    if device.startswith("cpu") and flops * size > _LARGEST_ON_CPU:
        size = max(2, int(_LARGEST_ON_CPU / flops))
    one_batch = _shortened(evaluation, size, size)
    elapsed, first = _timed(one_batch, device)
    batches = min(max(3, math.ceil(_SECONDS_OF_PROBE / elapsed)), 20)
    _, several = _timed(_shortened(evaluation, size, batches * size), device)
    first_images, first_seconds = _totals(first)
    images, predict_seconds = _totals(several)
    if images > first_images:  # later batches are not slowed down by start-up
        seconds = (predict_seconds - first_seconds) / (images - first_images)
    else:
        seconds = predict_seconds / images
    return StreamRate(
        flops,
        max(seconds, 0.0),
        max(elapsed - seconds * first_images - pixels.seconds(one_batch.segments[0], size), 0.0),
        sum(part.forwards for part in several) / images,
        sum(part.backwards for part in several) / images,
    )


def _shortened(evaluation: Evaluation, batch_size: int, images: int) -> Evaluation:
    """Return an evaluation of the first images of the first segment, with another batch size."""
    first = evaluation.segments[0]
    keep = slice(0, images)
    short = replace(
        first,
        ids=first.ids[keep],
        which=first.which[keep],
        blend=first.blend[keep] if first.blend is not None else None,
    )
    return replace(evaluation, segments=(short,), clean=None, batch_size=batch_size, plain=False)


def _totals(parts: Sequence[ConditionResult]) -> tuple[int, float]:
    """Return the number of images and the seconds in which the adapter predicted them."""
    return sum(len(part.predictions.id) for part in parts), sum(part.predict_seconds for part in parts)


def _timed(evaluation: Evaluation, device: str) -> tuple[float, list[ConditionResult]]:
    start = time.perf_counter()
    parts = evaluate(evaluation)
    synchronise(device)
    return time.perf_counter() - start, parts
