"""Image corruptions of the public benchmarks, batched, on any device, the same for an image in every batch.

    from corruptions import corrupt, names
    shifted = corrupt(images, "fog", 5, ids=range(len(images)))

`corrupt` takes batches, `corrupt_image` one Pillow or numpy picture, and `Corruption` is a torchvision transform.
Importing the package, listing and describing do not load torch; the first use of one of these does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from corruptions.catalog import canonical, describe, names, parameters, profile_for
from corruptions.tables import PROFILES

if TYPE_CHECKING:
    from corruptions.pipeline import apply, corrupt, sample
    from corruptions.transforms import Corruption, corrupt_image

__all__ = [
    "PROFILES",
    "Corruption",
    "apply",
    "canonical",
    "corrupt",
    "corrupt_image",
    "describe",
    "names",
    "parameters",
    "profile_for",
    "sample",
]

_NEED_TORCH = {
    "Corruption": "transforms",
    "apply": "pipeline",
    "corrupt": "pipeline",
    "corrupt_image": "transforms",
    "sample": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(f"corruptions.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
