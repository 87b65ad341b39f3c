"""The stream loop: batches out, log-probabilities in, and what becomes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cache import weights_path
from bench.classifiers import for_classes
from bench.fingerprint import device_name, environment
from bench.models import classifier, load_model, load_weights
from bench.passes import Passes, forget_peak, peak_memory_mb
from bench.protocols import Segment
from bench.registry import load_object
from bench.shifts import load_shift
from bench.shifts.base import Shift, stream_rng
from bench.shifts.reading import Reading
from bench.stream import Stream
from bench.trial import CLEAN, Condition
from leaderboards.predictions import Predictions
from methods.base import Adapter, Source, SourceBatch
from methods.stock import Classifier
from methods.table import Access


@dataclass(frozen=True)
class Evaluation:
    """All a worker needs to run one chain of segments: names and plain values, no tensors.

    `clean` is streamed after the last segment to see what was forgotten (None: not measured); the adapted state is
    then thrown away. `weights` is the cache key of a cooked classifier, `model` a user's "file.py:factory"; one of them
    is set.
    """

    method: str
    shift: str
    reading: Reading
    weights: str | None
    model: str | None
    adapter: str
    config: Any
    seed: int
    segments: tuple[Segment, ...]
    clean: Segment | None
    batch_size: int
    precision: str
    device: str


@dataclass(frozen=True)
class Measured:
    """Predictions of one condition and what they cost. Forwards and backwards count samples.

    `device_name` and `env` say where: not always on the machine that asked.
    `clean_accuracy_after`: accuracy on clean images once the stream that ends with this condition is over.
    """

    condition: Condition
    predictions: Predictions
    predict_seconds: float
    forwards: int
    backwards: int
    peak_memory_mb: float | None
    device_name: str
    env: Mapping[str, Any]
    clean_accuracy_after: float | None = None


def evaluate(job: Evaluation) -> list[Measured]:
    """Run an adapter along a chain of segments that share its state, and measure each condition.

    Raises FloatingPointError where outputs are not finite: they are reported, never averaged.
    """
    shift = _shift(job.shift, job.reading)
    model = _classifier(job, shift)
    generator = torch.Generator(device=job.device)
    generator.manual_seed(int(stream_rng(job.seed, "adapter", job.method).integers(2**62)))
    adapter: Adapter = load_object(job.adapter)(model, job.config, generator)
    adapter.prepare(_source(shift, job, adapter.access))
    passes = Passes()
    passes.watch(vars(adapter))
    measured: list[Measured] = []
    last: list[Measured] = []
    for segment in job.segments:
        if segment.reset:
            adapter.reset()
        measured += last
        last = _run_segment(adapter, shift, segment, job, passes)
    if job.clean is not None:
        clean = _run_segment(adapter, shift, job.clean, job, passes)
        after = float(np.mean(np.concatenate([part.predictions.hits for part in clean])))
        last = [replace(part, clean_accuracy_after=after) for part in last]
    return measured + last


def _run_segment(adapter: Adapter, shift: Shift, segment: Segment, job: Evaluation, passes: Passes) -> list[Measured]:
    labels = shift.labels(segment.ids)
    answers = shift.answers(segment.ids)
    columns = {name: np.empty(len(segment.ids), dtype=np.float32) for name in ("confidence", "p_label", "sum_p2")}
    predicted = np.empty(len(segment.ids), dtype=np.int64)
    passes.forwards = passes.backwards = 0
    forget_peak(job.device)
    seconds = 0.0
    stream = Stream(shift, segment, job.batch_size, job.device)
    while not stream.ended:
        images = stream.ask()
        n = len(images)
        if segment.episodic:
            adapter.reset()
        start = time.perf_counter()
        with _autocast(job.precision, job.device):
            scores = adapter.predict(images)
        probabilities = _probabilities(scores, n, shift.classes, f"{job.method} on {segment.conditions[0]}")
        seconds += time.perf_counter() - start
        rows = stream.answered()
        best = probabilities.argmax(axis=1)
        predicted[rows] = best
        columns["confidence"][rows] = probabilities[np.arange(n), best]
        columns["p_label"][rows] = probabilities[np.arange(n), labels[rows]]
        columns["sum_p2"][rows] = np.square(probabilities).sum(axis=1)
    total = len(segment.ids)
    memory = peak_memory_mb(job.device)
    results = []
    for number, condition in enumerate(segment.conditions):
        rows = np.flatnonzero(segment.which == number)
        share = len(rows) / total
        results.append(
            Measured(
                condition,
                Predictions(
                    id=segment.ids[rows],
                    label=labels[rows],
                    predicted=predicted[rows],
                    confidence=columns["confidence"][rows],
                    p_label=columns["p_label"][rows],
                    sum_p2=columns["sum_p2"][rows],
                    correct=answers[rows, predicted[rows]] if answers is not None else None,
                ),
                seconds * share,
                round(passes.forwards * share),
                round(passes.backwards * share),
                memory,
                device_name(job.device),
                environment(),
            )
        )
    return results


def _probabilities(scores: Tensor, n: int, classes: int, where: str) -> np.ndarray:
    """Normalised probabilities in float64 [n, classes] of scores that are log-probabilities up to a constant."""
    if not isinstance(scores, Tensor) or scores.shape != (n, classes):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{where}: predict gave {shape} for a batch of {n}; return a tensor [{n}, {classes}]")
    exact = scores.detach().to("cpu", torch.float64)
    if not torch.isfinite(exact).all():
        raise FloatingPointError(f"{where}: predictions are not finite; lower the method's learning rate")
    return torch.softmax(exact, dim=1).numpy()


def _source(shift: Shift, job: Evaluation, access: Access) -> Source | None:
    """Clean train images in a random order of the seed, as much of them as the method declared."""
    if access.source == "none":
        return None
    ids = stream_rng(job.seed, "source", shift.name).permutation(shift.ids("train"))

    def read(number: int) -> SourceBatch:
        chosen = ids[number * job.batch_size : (number + 1) * job.batch_size]
        images = shift.images(chosen, Condition(None, 0)).to(job.device).float().div_(255)
        if access.source != "labelled":
            return SourceBatch(images)
        return SourceBatch(images, torch.from_numpy(shift.labels(chosen)).to(job.device))

    return Source(read, -(-len(ids) // job.batch_size))


@lru_cache(maxsize=2)
def _shift(name: str, reading: Reading) -> Shift:
    return load_shift(name, reading=reading)


def _classifier(job: Evaluation, shift: Shift) -> nn.Module:
    model = _loaded(job.weights, job.model).to(job.device)
    if job.model is None and (not isinstance(model, Classifier) or model.head.out_features == shift.classes):
        return model
    first = job.segments[0]
    image = shift.images(first.ids[:1], CLEAN if shift.has_clean else first.conditions[0], job.device)
    return for_classes(model, shift, image.float() / 255)


@lru_cache(maxsize=2)
def _loaded(weights: str | None, model: str | None) -> nn.Module:
    if model is not None:
        return load_model(model)
    assert weights is not None
    return classifier(load_weights(weights_path(weights))[0])


def _autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
