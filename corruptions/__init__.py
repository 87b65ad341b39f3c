"""Image corruptions of the public benchmarks, batched, on any device, the same for an image in every batch.

    from corruptions import corrupt, names
    shifted = corrupt(images, "fog", 5, ids=range(len(images)))

`corrupt` takes batches, `corrupt_image` one Pillow or numpy picture, and `Corruption` is a torchvision transform.
`folder_pool` and `tensor_pool` turn your own pictures into the tiles of mosaic and stickers. Importing the package,
listing and describing do not load torch; the first use of one of these functions does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from corruptions.catalog import canonical, describe, names, parameters, profile_for
from corruptions.tables import PROFILES

if TYPE_CHECKING:
    from corruptions.pipeline import apply, corrupt, sample
    from corruptions.tiles import TilePool, folder_pool, tensor_pool
    from corruptions.transforms import Corruption, corrupt_image

__all__ = [
    "PROFILES",
    "Corruption",
    "TilePool",
    "apply",
    "canonical",
    "corrupt",
    "corrupt_image",
    "describe",
    "folder_pool",
    "names",
    "parameters",
    "profile_for",
    "sample",
    "tensor_pool",
]

_NEED_TORCH = {
    "Corruption": "transforms",
    "TilePool": "tiles",
    "apply": "pipeline",
    "corrupt": "pipeline",
    "corrupt_image": "transforms",
    "folder_pool": "tiles",
    "sample": "pipeline",
    "tensor_pool": "tiles",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        # Kept, so that the next look-up is an ordinary one.
        return globals().setdefault(name, getattr(importlib.import_module(f"corruptions.{_NEED_TORCH[name]}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
