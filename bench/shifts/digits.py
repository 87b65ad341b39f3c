"""digits-c: scikit-learn's handwritten digits at 32 px under corruptions; needs no download."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import corruptions
from bench.core.components import corruption_marks
from bench.core.conditions import CLEAN, Condition, digest_of
from bench.core.extras import need_photographs
from bench.shifts.catalog import Family, ShiftRow
from bench.shifts.corruption_sets import DIGITS, DIGITS_TUNING
from bench.shifts.data_root import Reading
from bench.shifts.shift import stream_rng

_PARTS = {"train": 697, "dev": 400, "test": 700}


class Digits:
    """1797 grey 8x8 digits, enlarged to 32 px and three equal channels.

    Parts are disjoint and drawn once, balanced over classes: 697 train (stock and fine-tuning), 400 dev (choosing
    hyper-parameters and the severity profile), 700 test (even positions adapt, odd ones are scored). Image ids are
    positions in scikit-learn's file.
    """

    name: str = "digits-c"
    classes: int = 10
    corruptions: tuple[str, ...] = DIGITS
    tuning_corruptions: tuple[str, ...] = DIGITS_TUNING
    profile: str = "digits32"
    storage: str = "uint8"
    data_seed: int = 0
    default_labels: int | None = 10
    family: Family = "digits"
    members: tuple[tuple[int, ...], ...] | None = None
    source_classes: int | None = None
    severities: tuple[float, ...] | None = None
    has_clean = True
    natural = False
    made_here = True
    bundled = True
    skipped = 0
    tiles = None

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        small, labels = load_digits(return_X_y=True)
        grey = torch.from_numpy(small).float().view(-1, 1, 8, 8) / 16
        large = functional.interpolate(grey, size=32, mode="bicubic", align_corners=False)
        self._images = (large.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        self._labels = labels.astype(np.int64)
        self._parts = _draw_parts(self._labels)

    def ids(self, part: str) -> np.ndarray:
        return self._parts[part]

    def labels(self, ids: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._labels[ids]
        return found

    def answers(self, ids: np.ndarray) -> None:
        return None

    def images(self, ids: np.ndarray, condition: Condition, device: str = "cpu") -> Tensor:
        clean = self._images[torch.from_numpy(ids)].to(device)
        if condition.corruption is None:
            return clean
        return corruptions.corrupt(
            clean,
            condition.corruption,
            condition.severity,
            seed=self.data_seed,
            ids=ids.tolist(),
            profile=self.profile,
            storage=self.storage,
        )

    def listing(self, ids: np.ndarray) -> str:
        return self.digest(ids, CLEAN)

    def digest(self, ids: np.ndarray, condition: Condition) -> str:
        rows = torch.from_numpy(ids)
        sha = hashlib.sha256(ids.tobytes() + self._labels[ids].tobytes() + self._images[rows].numpy().tobytes())
        need_photographs(condition.corruption)
        how: list[object] = []
        if condition.corruption is not None:
            how = [self.data_seed, self.profile, self.storage, *corruption_marks(condition.corruption)]
        return "sha256:" + digest_of([sha.hexdigest(), str(condition), how])


def _draw_parts(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Draw stratified parts: each class is shuffled and spread evenly over the list, which is then cut into parts."""
    rng = stream_rng(0, "parts", "digits-c")
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = (rng.permutation(len(rows)) + rng.random(len(rows))) / len(rows)
    dealt = np.argsort(place, kind="stable")
    bounds = np.cumsum([0, *_PARTS.values()])
    return {part: np.sort(dealt[low:high]) for part, low, high in zip(_PARTS, bounds, bounds[1:], strict=False)}


@cache
def _digits() -> Digits:
    return Digits()


def load(row: ShiftRow, reading: Reading) -> Digits:
    """Load the digits, which scikit-learn includes; both arguments are ignored."""
    return _digits()
