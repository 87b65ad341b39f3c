"""Image corruptions of the public benchmarks, batched, on any device, the same for an image in every batch.

    from corruptions import corrupt, names
    shifted = corrupt(images, "fog", 5, ids=range(len(images)))

Importing the package does not load torch; the first use of `corrupt`, `sample` or `apply` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from corruptions.catalog import PROFILES, canonical, describe, names, profile_for

if TYPE_CHECKING:
    from corruptions.pipeline import apply, corrupt, sample

__all__ = ["PROFILES", "apply", "canonical", "corrupt", "describe", "names", "profile_for", "sample"]


def __getattr__(name: str) -> Any:
    if name in ("apply", "corrupt", "sample"):
        return getattr(importlib.import_module("corruptions.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
