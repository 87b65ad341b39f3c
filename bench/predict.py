"""The stream loop: batches out, log-probabilities in, and what becomes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cache import weights_path
from bench.models import classifier, load_model, load_weights
from bench.protocols import Segment
from bench.registry import load_object
from bench.shifts import load_shift
from bench.shifts.base import Shift, blended, stream_rng
from bench.trial import Condition
from leaderboards.predictions import Predictions
from methods.base import Adapter, Source, SourceBatch
from methods.table import Access


@dataclass(frozen=True)
class Evaluation:
    """All a worker needs to run one chain of segments: names and plain values, no tensors.

    `weights` is the cache key of a cooked classifier, `model` a user's "file.py:factory"; one of them is set.
    """

    method: str
    shift: str
    data_root: Path | None
    weights: str | None
    model: str | None
    adapter: str
    config: Any
    seed: int
    segments: tuple[Segment, ...]
    batch_size: int
    precision: str
    device: str


@dataclass(frozen=True)
class Measured:
    """Predictions of one condition and what they cost. Forwards and backwards count samples."""

    condition: Condition
    predictions: Predictions
    predict_seconds: float
    forwards: int
    backwards: int
    peak_memory_mb: float | None


@dataclass
class Passes:
    """Samples that went forward and backward through watched modules, counted by hooks."""

    forwards: int = 0
    backwards: int = 0
    handles: list[Any] = field(default_factory=list)

    def watch(self, module: nn.Module) -> None:
        self.handles.append(module.register_forward_hook(self._count))

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        samples = _samples(inputs[0])
        self.forwards += samples
        if isinstance(output, Tensor) and output.requires_grad:
            if _under_transform(output):
                self.backwards += samples  # torch.func takes the gradient of what it traces
            else:
                output.register_hook(lambda _: self._count_backward(samples))  # type: ignore[no-untyped-call]

    def _count_backward(self, samples: int) -> None:
        self.backwards += samples


def _under_transform(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _samples(images: Tensor) -> int:
    """Images in a batch, those included that torch.func hides in its own batch dimensions."""
    count = len(images)
    while _under_transform(images):
        inner = torch._C._functorch.get_unwrapped(images)
        count = count * (inner.numel() // max(images.numel(), 1))
        images = inner
    return count


def evaluate(job: Evaluation) -> list[Measured]:
    """Run an adapter along a chain of segments that share its state, and measure each condition.

    Raises FloatingPointError where outputs are not finite: they are reported, never averaged.
    """
    shift = load_shift(job.shift, job.data_root)
    model = _classifier(job.weights, job.model).to(job.device)
    generator = torch.Generator(device=job.device)
    generator.manual_seed(int(stream_rng(job.seed, "adapter", job.method).integers(2**62)))
    adapter: Adapter = load_object(job.adapter)(model, job.config, generator)
    adapter.prepare(_source(shift, job, adapter.access))
    passes = Passes()
    for value in vars(adapter).values():
        if isinstance(value, nn.Module):
            passes.watch(value)
    measured: list[Measured] = []
    for segment in job.segments:
        if segment.reset:
            adapter.reset()
        measured += _run_segment(adapter, shift, segment, job, passes)
    return measured


def _run_segment(adapter: Adapter, shift: Shift, segment: Segment, job: Evaluation, passes: Passes) -> list[Measured]:
    labels = shift.labels(segment.ids)
    columns = {name: np.empty(len(segment.ids), dtype=np.float32) for name in ("confidence", "p_label", "sum_p2")}
    predicted = np.empty(len(segment.ids), dtype=np.int64)
    passes.forwards = passes.backwards = 0
    on_gpu = torch.device(job.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = 0.0
    for rows, images in _batches(shift, segment, job.batch_size, job.device):
        if segment.episodic:
            adapter.reset()
        start = time.perf_counter()
        with _autocast(job.precision, job.device):
            scores = adapter.predict(images)
        probabilities = _probabilities(scores, len(images), shift.classes, f"{job.method} on {segment.conditions[0]}")
        seconds += time.perf_counter() - start
        best = probabilities.argmax(axis=1)
        predicted[rows] = best
        columns["confidence"][rows] = probabilities[np.arange(len(best)), best]
        columns["p_label"][rows] = probabilities[np.arange(len(best)), labels[rows]]
        columns["sum_p2"][rows] = np.square(probabilities).sum(axis=1)
    total = len(segment.ids)
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
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
                ),
                seconds * share,
                round(passes.forwards * share),
                round(passes.backwards * share),
                memory,
            )
        )
    return results


def _batches(shift: Shift, segment: Segment, size: int, device: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows and images of each batch in stream order; batch t + 1 is made after batch t was answered."""
    kinds = segment.which if segment.blend is None else segment.blend
    for low in range(0, len(segment.ids), size):
        rows = np.arange(low, min(low + size, len(segment.ids)))
        images: Tensor | None = None
        for number in np.unique(kinds[rows]):
            here = np.flatnonzero(kinds[rows] == number)
            ids = segment.ids[rows][here]
            if segment.blend is None:
                pixels = shift.images(ids, segment.conditions[number])
            else:
                pixels = blended(shift, ids, segment.blends[number])
            if images is None:
                images = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8)
            images[torch.from_numpy(here)] = pixels
        assert images is not None
        yield rows, images.to(device).float().div_(255)


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
def _classifier(weights: str | None, model: str | None) -> nn.Module:
    if model is not None:
        return load_model(model)
    assert weights is not None
    return classifier(load_weights(weights_path(weights))[0])


def _autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
