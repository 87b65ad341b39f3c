"""The stream loop: hand batches to a method, take log-probabilities back and store the results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.cache_dir import weights_path
from bench.core.components import identity, identity_of_path, is_component
from bench.core.conditions import CLEAN, Condition, digest_of
from bench.core.devices import synchronise
from bench.core.errors import BenchError, MissingDataError
from bench.core.import_object import code_of, load_object
from bench.evaluation.pass_counter import Passes, forget_peak, peak_memory_mb
from bench.evaluation.prediction_cache import PredictionCache
from bench.evaluation.protocols import Segment
from bench.evaluation.stream import BatchStream, LastBatch
from bench.evaluation.stream_results import ConditionResult, StreamResults
from bench.execution.progress_files import ProgressWriter
from bench.models.classifiers import for_classes
from bench.models.load_model import load_model
from bench.models.weights_io import classifier, load_weights, model_digest
from bench.shifts import load_shift
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, source_digest, stream_rng
from methods.base import Adapter, Checkpointer, Source, SourceBatch
from methods.nets.weights import Classifier
from methods.table import Access


@dataclass(frozen=True, eq=False)
class Expected:
    """The data, model and code that a run was planned for, checked again when its streams run.

    Streams may run hours later and on another machine. `digests` identifies the images `scored` (ids, int64 [n]) of
    each condition, `model` is the digest of a ready classifier, `components` and `adapter` identify the code, `source`
    the clean images that the adapter is given (None: none, or bundled ones).
    """

    scored: np.ndarray
    digests: Mapping[Condition, str]
    model: str | None
    components: Mapping[str, str]
    adapter: str
    source: str | None = None

    @property
    def data(self) -> str:
        """One digest of all images."""
        return digest_of([[str(condition), digest] for condition, digest in self.digests.items()])


@dataclass(frozen=True)
class Evaluation:
    """Everything that a worker needs to run one chain of segments: names and plain values, no tensors.

    `clean` is streamed after the last segment to measure forgetting (None: not measured); the adapted state is then
    discarded. Exactly one of `weights` (the cache key of a trained classifier) and `model` (a user's
    "file.py:factory") is set. `beside`: ids of clean test images that the adapter is given instead of train images.
    `expected` is what the run was planned for (None: no check). `plain`: the adapter changes nothing, so its
    predictions may be cached; `fresh`: measure even if they are cached.
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
    beside: np.ndarray | None = None
    expected: Expected | None = None
    plain: bool = False
    fresh: bool = False

    @property
    def all_segments(self) -> tuple[Segment, ...]:
        """The chain, then the clean segment if there is one."""
        return (*self.segments, *([self.clean] if self.clean is not None else []))


def evaluate(
    job: Evaluation, keep: Checkpointer | None = None, writer: ProgressWriter | None = None
) -> list[ConditionResult]:
    """Run an adapter along a chain of segments that share its state, and measure each condition.

    `writer` reports the progress of the stream to users; the adapter never sees it.
    With `keep`, a killed evaluation resumes with bit-identical predictions on the same kind of machine.
    Raises FloatingPointError for outputs that are not finite: they are reported, never averaged.
    """
    (outcome,) = evaluate_together([(job, keep, writer)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def evaluate_together(
    jobs: Sequence[tuple[Evaluation, Checkpointer | None, ProgressWriter | None]],
) -> list[list[ConditionResult] | Exception]:
    """Evaluate several adapters on the same stream, whose batches are made once for all of them.

    The adapter that is furthest behind runs next, so memory holds one batch of pixels, whatever the length of the
    stream. Each adapter gets the results of a separate evaluation, or the error that it raised. Only its memory is
    unknown, because the process measures the sum.
    """
    last_batch = LastBatch() if len(jobs) > 1 else None
    running = {number: steps(*job, last_batch) for number, job in enumerate(jobs)}
    done = dict.fromkeys(running, -1)
    outcomes: dict[int, list[ConditionResult] | Exception] = {}
    while running:
        number = min(running, key=lambda other: done[other])
        try:
            done[number] = sum(results.done for results in next(running[number]))
            continue
        except StopIteration as end:
            outcomes[number] = end.value
        except Exception as error:  # noqa: BLE001 - an error ends this adapter only
            # The frames of a traceback would keep the adapter in memory while the others run.
            outcomes[number] = error.with_traceback(None) if last_batch else error
        del running[number]
    return [outcomes[number] for number in range(len(jobs))]


def is_answered(job: Evaluation, *, alone: bool) -> bool:
    """Return whether the cache has all predictions of a stream that runs alone or shares a pass."""
    if not job.plain or (job.weights is not None and not weights_path(job.weights).is_file()):
        return False
    cached = PredictionCache(job, _shift_of(job), _model_of(job), alone=alone)
    return all(cached.recall(segment) is not None for segment in job.all_segments)


def hold(job: Evaluation) -> None:
    """Load the shift and the model of an evaluation, which stay in memory for those that follow."""
    _shift_of(job)
    _model_of(job)


def steps(
    job: Evaluation,
    keep: Checkpointer | None = None,
    writer: ProgressWriter | None = None,
    last_batch: LastBatch | None = None,
) -> Generator[Sequence[StreamResults], None, list[ConditionResult]]:
    """Evaluate one batch at a time and yield the results so far, one for each segment that has begun.

    The first are those of an interrupted attempt: the adapter is prepared and has seen no image.
    """
    _check_code(job)
    shift = _shift_of(job)
    model = _classifier(job, shift)
    cached = PredictionCache(job, shift, _model_of(job), alone=last_batch is None)
    generator = torch.Generator(device=job.device)
    generator.manual_seed(int(stream_rng(job.seed, "adapter", job.method).integers(2**62)))
    adapter: Adapter = load_object(job.adapter)(model, job.config, generator)
    adapter.prepare(_source(shift, job, adapter.access))
    passes = Passes()
    passes.watch(vars(adapter))
    segments = job.all_segments
    saved = _StreamCheckpoint(keep, job.device)
    so_far = saved.restore(adapter)
    images = sum(len(segment.ids) for segment in segments)
    if writer is not None:
        writer.begin(sum(results.done for results in so_far) / images)
    yield so_far
    # Only an unchanged adapter gives the cached predictions, whatever the order of the images.
    unchanged = cached.may_keep and not adapter.changed()
    for number, segment in enumerate(segments):
        _check_images(job, shift, segment)
        if number == len(so_far):
            if segment.reset:
                adapter.reset()
                unchanged = cached.may_keep
            so_far.append((cached.recall(segment) if unchanged else None) or StreamResults.empty(len(segment.ids)))
        if so_far[number].done < len(segment.ids):
            for batch, _ in enumerate(_run_segment(adapter, shift, segment, job, passes, so_far[number], last_batch)):
                # Check after the first batch too: a change may be undone by the end of the segment.
                unchanged = unchanged and (batch > 0 or not adapter.changed())
                saved.save_if_due(adapter, so_far)
                if writer is not None and writer.due():
                    share = sum(results.done for results in so_far) / images
                    _write_progress(writer, shift, segment, job, so_far[number], share)
                yield so_far
            unchanged = unchanged and not adapter.changed()
            if unchanged:
                cached.keep(segment, so_far[number])
    measured = [
        part
        for segment, results in zip(job.segments, so_far, strict=False)
        for part in results.by_condition(shift, segment, job.device)
    ]
    if job.clean is None:
        return measured
    hits = np.concatenate([part.predictions.hits for part in so_far[-1].by_condition(shift, job.clean, job.device)])
    last = len(measured) - len(job.segments[-1].conditions)
    return measured[:last] + [replace(part, clean_accuracy_after=float(np.mean(hits))) for part in measured[last:]]


_LAYOUT = 2  # version of the checkpoint's layout; checkpoints of other versions are ignored


class _StreamCheckpoint:
    """A checkpoint of a chain: the adapter's state and the results so far."""

    def __init__(self, keep: Checkpointer | None, device: str) -> None:
        self._keep, self._device = keep, device

    def restore(self, adapter: Adapter) -> list[StreamResults]:
        """Load the saved state into the adapter and return the saved results; [] if there is no usable checkpoint."""
        state = self._keep.load() if self._keep is not None else None
        if state is None or state["device"] != self._device or state.get("layout") != _LAYOUT:
            return []
        adapter.load_state_dict(state["adapter"])
        return [StreamResults(**values) for values in state["tallies"]]

    def save_if_due(self, adapter: Adapter, so_far: Sequence[StreamResults]) -> None:
        if self._keep is None or not self._keep.due():
            return
        state = {"adapter": adapter.state_dict(), "tallies": [vars(results) for results in so_far]}
        self._keep.save(
            {"step": sum(results.done for results in so_far), "device": self._device, "layout": _LAYOUT, **state}
        )


def _run_segment(
    adapter: Adapter,
    shift: Shift,
    segment: Segment,
    job: Evaluation,
    passes: Passes,
    results: StreamResults,
    last_batch: LastBatch | None,
) -> Iterator[None]:
    """Stream the rest of a segment into `results`, one batch at a time."""
    labels = shift.labels(segment.ids)
    passes.forwards, passes.backwards = results.forwards, results.backwards
    columns = results.arrays()
    results.alone = results.alone and last_batch is None
    forget_peak(job.device)
    stream = BatchStream(shift, segment, job.batch_size, job.device, results.done, last_batch)
    while not stream.ended:
        images = stream.ask()
        n = len(images)
        if segment.episodic:
            adapter.reset()
        # The time of a method contains neither the making of its images nor what is done with its scores.
        synchronise(job.device)
        start = time.perf_counter()
        with _autocast(job.precision, job.device):
            scores = adapter.predict(images)
        synchronise(job.device)
        results.seconds += time.perf_counter() - start
        probabilities = _probabilities(scores, n, shift.classes, f"{job.method} on {segment.conditions[0]}")
        rows = stream.answered()
        best = probabilities.argmax(axis=1)
        columns["predicted"][rows] = best
        columns["confidence"][rows] = probabilities[np.arange(n), best]
        columns["p_label"][rows] = probabilities[np.arange(n), labels[rows]]
        columns["sum_p2"][rows] = np.square(probabilities).sum(axis=1)
        results.done += n
        results.forwards, results.backwards = passes.forwards, passes.backwards
        yield
    peaks = [peak for peak in (results.peak, peak_memory_mb(job.device)) if peak is not None]
    results.peak = max(peaks, default=None)


def _write_progress(
    writer: ProgressWriter, shift: Shift, segment: Segment, job: Evaluation, results: StreamResults, share: float
) -> None:
    ids, predicted = segment.ids[: results.done], results.columns["predicted"][: results.done].numpy()
    answers = shift.answers(ids)
    hits = shift.labels(ids) == predicted if answers is None else answers[np.arange(len(ids)), predicted]
    names = [str(condition) for condition in segment.conditions]
    where = names[0] if len(names) == 1 else f"{len(names)} conditions"
    batches = [-(-count // job.batch_size) for count in (results.done, len(segment.ids))]
    writer.batch(where, batches[0], batches[1], float(np.mean(hits)), share)


def _probabilities(scores: Tensor, n: int, classes: int, where: str) -> np.ndarray:
    """Return normalised probabilities, float64 [n, classes], of scores that are log-probabilities up to a constant."""
    if not isinstance(scores, Tensor) or scores.shape != (n, classes):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{where}: predict gave {shape} for a batch of {n}; return a tensor [{n}, {classes}]")
    exact = scores.detach().cpu().double()
    # Minus infinity is a probability of 0, which is valid; a row of nothing but minus infinity is not.
    if not (torch.isfinite(exact) | exact.isneginf()).all() or not torch.isfinite(exact.amax(1)).all():
        raise FloatingPointError(f"{where}: predictions are not finite; lower the method's learning rate")
    return torch.softmax(exact, dim=1).numpy()


def _source(shift: Shift, job: Evaluation, access: Access) -> Source | None:
    """Return shuffled clean images, with labels if the method declares them; None if it declares no source."""
    if access.source == "none":
        return None
    given = _source_ids(shift, job)
    if job.expected is not None and source_digest(shift, given) != job.expected.source:
        raise BenchError(
            f"the clean images of {job.shift} that {job.method} learns from have changed since the run was planned; "
            "start the run again"
        )
    ids = stream_rng(job.seed, "source", shift.name).permutation(given)

    def read(number: int) -> SourceBatch:
        chosen = ids[number * job.batch_size : (number + 1) * job.batch_size]
        images = shift.images(chosen, Condition(None, 0)).to(job.device).float().div_(255)
        if access.source != "labelled":
            return SourceBatch(images)
        return SourceBatch(images, torch.from_numpy(shift.labels(chosen)).to(job.device))

    return Source(read, -(-len(ids) // job.batch_size))


def _source_ids(shift: Shift, job: Evaluation) -> np.ndarray:
    if job.beside is not None:
        if shift.has_clean:
            return job.beside
        raise MissingDataError(
            f"{job.method} needs clean images of the test set, and {shift.name} has none; put them where bench data "
            f"status says, or leave {job.method} out"
        )
    try:
        return shift.ids("train")
    except MissingDataError:
        raise MissingDataError(
            f"{job.method} needs clean train images, and {shift.name} has none; put them into a folder train beside "
            f"the scored ones (for published sets see bench data status), or leave {job.method} out"
        ) from None


def _shift_of(job: Evaluation) -> Shift:
    return _shift(job.shift, job.reading, job.expected.data if job.expected is not None else None)


@lru_cache(maxsize=2)
def _shift(name: str, reading: Reading, data: str | None) -> Shift:
    """Load a shift and keep it open between streams; `data` separates versions of the data at one place."""
    return load_shift(name, reading=reading)


_checked: WeakKeyDictionary[Shift, set[tuple[Condition, str]]] = WeakKeyDictionary()


def _check_images(job: Evaluation, shift: Shift, segment: Segment) -> None:
    """Raise BenchError if the images of a segment are not those that the run was planned for."""
    if job.expected is None:
        return
    checked = _checked.setdefault(shift, set())
    for condition in (CLEAN,) if segment.blends else segment.conditions:
        digest = job.expected.digests.get(condition)
        if digest is None or (condition, digest) in checked:
            continue
        if shift.digest(job.expected.scored, condition) != digest:
            raise BenchError(
                f"the images of {job.shift}, {condition}, have changed since the run was planned; start the run again"
            )
        checked.add((condition, digest))


def _check_code(job: Evaluation) -> None:
    """Raise BenchError if the code differs from that of the plan."""
    if job.expected is None:
        return
    now = {name: identity(name) for name in job.expected.components if is_component(name)}
    if ".py:" in (job.model or ""):
        now["model"] = code_of(str(job.model))
    changed = [name for name, found in now.items() if job.expected.components[name] != found]
    if identity_of_path(job.adapter) != job.expected.adapter:
        changed.append(job.adapter)
    if changed:
        raise BenchError(f"the code of {changed[0]} has changed since the run was planned; start the run again")


def _classifier(job: Evaluation, shift: Shift) -> nn.Module:
    model = _model_of(job).to(job.device)
    if job.model is None and (not isinstance(model, Classifier) or model.head.out_features == shift.classes):
        return model
    first = job.segments[0]
    image = shift.images(first.ids[:1], CLEAN if shift.has_clean else first.conditions[0], job.device)
    return for_classes(model, shift, image.float() / 255)


def _model_of(job: Evaluation) -> nn.Module:
    return _loaded(job.weights, job.model, job.expected.model if job.expected is not None else None)


@lru_cache(maxsize=2)
def _loaded(weights: str | None, model: str | None, digest: str | None) -> nn.Module:
    """Load a classifier and keep it in memory between streams; `digest` separates versions under one name."""
    if model is not None:
        found = load_model(model)
        if digest is not None and model_digest(found) != digest:
            raise BenchError(f"the weights of {model} have changed since the run was planned; start the run again")
        return found
    assert weights is not None
    return classifier(load_weights(weights_path(weights))[0])


def _autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
