"""Find what a classifier learnt another task with, on which test-time training goes on."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.base import Unsupported


def with_side_head(model: nn.Module, name: str, method: str, told: str, advice: str) -> Any:
    """Return the one module inside a model that has a module `name` and a method `method`.

    Raises Unsupported unless there is exactly one; `told` says what for, `advice` what to use instead.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(getattr(module, name, None), nn.Module) and hasattr(module, method)
    ]
    if len(found) != 1:
        raise Unsupported(f"{told} and this one has {len(found)}; {advice}")
    return found[0]
