"""Cache the predictions of classifiers that do not adapt, because they are the same every time."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from bench.core.cache_dir import answers_dir, write_bytes
from bench.core.components import HARNESS, identity
from bench.core.conditions import Condition, digest_of
from bench.core.environment import device_name, libraries
from bench.core.errors import BenchError
from bench.evaluation.protocols import Segment
from bench.evaluation.stream_results import ConditionResult, StreamResults
from bench.models.weights_io import model_digest
from bench.shifts.shift import Shift
from leaderboards.files import StoreError
from leaderboards.predictions import Predictions

if TYPE_CHECKING:
    from bench.evaluation.evaluate import Evaluation

log = logging.getLogger(__name__)

_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class PredictionCache:
    """The cached predictions of a model on one stream, condition by condition, with their measured cost.

    The cache key holds everything that determines predictions and cost: the classifier's weights and layers, the images
    and labels of the condition, batch size and precision, device, threads and versions, and the code of streams and
    predictions. Order, seed, protocol and run may differ. Two kinds are never cached: classifiers whose state a forward
    pass changes, and classifiers or shifts from a user's file, which may read other files. A damaged file counts as
    missing.
    """

    def __init__(self, job: Evaluation, shift: Shift, model: nn.Module, *, alone: bool) -> None:
        self._job, self._shift, self._alone = job, shift, alone
        self._name: list[Any] | None = None
        if job.plain and job.expected is not None and ".py:" not in (job.model or "") and ".py:" not in job.shift:
            self._name = [
                _digest(model),
                repr(model),
                shift.members,
                job.precision,
                job.batch_size,
                job.device.partition(":")[0],
                device_name(job.device),
                torch.get_num_threads(),
                libraries(),
                identity(HARNESS),
            ]

    @property
    def may_keep(self) -> bool:
        """Whether predictions of this classifier are cached, as long as it does not change."""
        return self._name is not None

    def recall(self, segment: Segment) -> StreamResults | None:
        """Return the finished results of a segment, or None if it has to be streamed.

        Only a stream that runs alone measures memory, so it accepts only cached predictions with a peak; other streams
        report no peak.
        """
        if self._name is None or self._job.fresh:
            return None
        results = StreamResults.empty(len(segment.ids))
        columns = results.arrays()
        costs = np.zeros(3)
        peaks = []
        for number, condition in enumerate(segment.conditions):
            rows = np.flatnonzero(segment.which == number)
            entry = self._load(condition, segment.ids[rows])
            if entry is None or (self._alone and entry[1]["peak_memory_mb"] is None):
                return None
            predictions, facts = entry
            for name, column in columns.items():
                column[rows] = getattr(predictions, name)
            costs += len(rows) * np.array([facts[name] for name in ("seconds", "forwards", "backwards")])
            peaks.append(facts["peak_memory_mb"])
        results.done = len(segment.ids)
        results.seconds, (results.forwards, results.backwards) = float(costs[0]), (round(cost) for cost in costs[1:])
        results.alone = self._alone
        results.peak = max((peak for peak in peaks if peak is not None), default=None)
        return results

    def keep(self, segment: Segment, results: StreamResults) -> None:
        """Cache the results of a segment. If the cache cannot be written, the run continues."""
        if self._name is None or segment.blends:
            return
        for measured in results.by_condition(self._shift, segment, self._job.device):
            try:
                self._save(measured)
            except (BenchError, OSError) as error:
                log.warning("predictions are not cached: %s", error)
                return

    def _path(self, condition: Condition) -> Path:
        assert self._job.expected is not None
        return answers_dir() / digest_of([self._name, str(condition), self._job.expected.digests[condition]])

    def _load(self, condition: Condition, ids: np.ndarray) -> tuple[Predictions, dict[str, Any]] | None:
        """Return predictions for `ids` in this order, and costs per image; None if they are missing or damaged."""
        path = self._path(condition)
        try:
            facts, check = json.loads(path.with_suffix(".json").read_bytes())
            kept = Predictions.load(path.with_suffix(".npz"))
            if check != digest_of(facts) or facts["predictions"] != kept.digest():
                return None
        except (StoreError, OSError, ValueError, KeyError, TypeError):
            return None
        order = np.argsort(kept.id)
        places = np.searchsorted(kept.id, ids, sorter=order).clip(max=len(order) - 1)
        rows = order[places]
        if not np.array_equal(kept.id[rows], ids) or not np.array_equal(kept.label[rows], self._shift.labels(ids)):
            return None
        chosen = {name: column[rows] for name, column in vars(kept).items() if column is not None}
        return Predictions(**chosen), facts

    def _save(self, measured: ConditionResult) -> None:
        path = self._path(measured.condition)
        predictions = measured.predictions
        predictions.save(path.with_suffix(".npz"))
        facts = {
            "predictions": predictions.digest(),
            "seconds": measured.predict_seconds / len(predictions),
            "forwards": measured.forwards / len(predictions),
            "backwards": measured.backwards / len(predictions),
            "peak_memory_mb": measured.peak_memory_mb,
        }
        write_bytes(path.with_suffix(".json"), json.dumps([facts, digest_of(facts)]).encode())


def _digest(model: nn.Module) -> str:
    """Return the digest of a model, computed once while the model stays in memory."""
    if model not in _digests:
        _digests[model] = model_digest(model)
    return _digests[model]
