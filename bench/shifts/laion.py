"""Generated LAION-C, whose mosaic uses pictures with a resize of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bench.core.conditions import Condition, digest_of
from bench.data.decode import Preprocessing
from bench.data.decoded_store import PixelStore
from bench.shifts.image_shift import OurCorruptions, Part, stores_at
from corruptions.laion import DEFINED_AT, mosaic_frame, published_mosaic
from corruptions.tiles import procedural_pool


@dataclass(frozen=True)
class LaionCorruptions(OurCorruptions):
    """The corruptions of LAION-C on images of 224 pixels.

    The mosaic with tiles of 6 and 28 pixels uses pictures that are resized to 252 instead of 256 pixels before they are
    cropped, so these pictures are decoded a second time.
    """

    def pixels(self, part: Part, ids: np.ndarray, condition: Condition, device: str) -> Tensor:
        store = self._framed(part, condition)
        if store is None:
            return super().pixels(part, ids, condition, device)
        framed = torch.from_numpy(store.read(part.at(ids))).to(device)
        pool = self.pool() if self.pool is not None else procedural_pool()
        return published_mosaic(framed, int(condition.severity), pool)

    def digest(self, part: Part, ids: np.ndarray, condition: Condition) -> str:
        store = self._framed(part, condition)
        if store is None:
            return super().digest(part, ids, condition)
        return digest_of([super().digest(part, ids, condition), store.digest(part.at(ids))])

    def _framed(self, part: Part, condition: Condition) -> PixelStore | None:
        """Return the pictures cropped for a mosaic, None if they are cropped like all others."""
        if condition.corruption != "mosaic" or condition.severity not in (1, 2, 3, 4, 5):
            return None
        resize, square = mosaic_frame(int(condition.severity))
        if (resize, square) == (256, DEFINED_AT):
            return None
        clean = self.stores(part.images)
        return _stores(Preprocessing(square, resize), clean.workers)(part.images)


_stores = cache(stores_at)
