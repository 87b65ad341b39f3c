"""Whole photographs, from which trainings cut their random views, where a model sees only a part of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.core.components import DECODER, identity
from bench.core.conditions import digest_of
from bench.data.decode import Pixels, Preprocessing
from bench.data.imageset import ImageSet
from bench.data.pixel_cache import CachedRows, room_for

if TYPE_CHECKING:
    from bench.shifts.image_shift import ImageShift

_FINER = 12 / 7
_SMALL = 128
_ASPECT = np.dtype("<f4")


def stretched(preprocessing: Preprocessing) -> Preprocessing | None:
    """Return how to store photographs whose centre a model sees; None if it sees all of them, or small images.

    The side is 12/7 of the model's, 384 pixels for 224, a choice of this project: of photographs with a shorter side of
    256, views then differ by 0.95 grey levels on average from the same crops of the files' own pixels (1.78 at 256
    pixels, 1.38 at 320, 0.86 at 448).
    """
    if preprocessing.resize is None or preprocessing.squash:
        return None
    if preprocessing.resize == preprocessing.size < _SMALL:
        return None
    side = max(preprocessing.resize, round(_FINER * preprocessing.size))
    return Preprocessing(side, side, "bicubic", squash=True)


class LazyPhotographs:
    """Photographs uint8 [n, 3, s, s] of n ids, each stretched to a square, decoded when they are indexed.

    Each is decoded once and kept on disk with its width / height, in the cache of pools. Where all of them would take
    more than half of the free disk space, each is decoded anew for every draw, to the same pixels.
    """

    dtype = torch.uint8
    ndim = 4
    device = torch.device("cpu")

    def __init__(self, shift: ImageShift, ids: np.ndarray, form: Preprocessing) -> None:
        self._shift, self._ids, self._form = shift, ids, form
        self.shape = torch.Size((len(ids), 3, form.size, form.size))
        self._aspects = torch.full((len(ids),), torch.nan)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_source")}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        numbers = torch.arange(len(self))[rows]
        images, at, workers = self._source
        chosen = at[numbers.numpy()]

        def make(missing: np.ndarray) -> Pixels:
            return _packed(images, missing, self._form, workers)

        packed = make(chosen) if self._kept is None else self._kept.take(chosen, make)
        self._aspects[numbers] = torch.from_numpy(packed[:, : _ASPECT.itemsize].copy().view(_ASPECT)[:, 0])
        pixels = torch.from_numpy(packed)[:, _ASPECT.itemsize :]
        return pixels.reshape(len(packed), *self.shape[1:])

    def aspects(self, rows: Tensor) -> Tensor:
        """Return width / height of the photographs of these rows (int64 [k]): float32 [k]."""
        rows = rows.cpu()
        unknown = rows[self._aspects[rows].isnan()]
        if len(unknown):
            self[unknown]
        return self._aspects[rows]

    @property
    def kept(self) -> tuple[CachedRows, ...]:
        """The disk cache of the photographs; empty if they are not cached."""
        return () if self._kept is None else (self._kept,)

    @cached_property
    def _source(self) -> tuple[ImageSet, np.ndarray, int]:
        return self._shift.source_of(self._ids)

    @cached_property
    def _kept(self) -> CachedRows | None:
        images, at, _ = self._source
        key = digest_of(["photographs", images.key, asdict(self._form), identity(DECODER)])
        found = CachedRows(key, len(images), (_ASPECT.itemsize + 3 * self._form.size**2,), at)
        return found if room_for([found]) else None


def _packed(images: ImageSet, rows: np.ndarray, form: Preprocessing, workers: int) -> Pixels:
    """Return rows of images as width / height (4 bytes) and the pixels of the square: uint8 [n, 4 + 3 s s]."""

    def one(row: int) -> Pixels:
        image = images.read(row)
        aspect = np.array([image.width / image.height], _ASPECT).view(np.uint8)
        return np.concatenate([aspect, form(image, images.name(row)).ravel()])

    if workers == 0:
        return np.stack([one(row) for row in rows.tolist()])
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(one, rows.tolist())))
