"""The private parts of PyTorch that methods need; `tests/bench/core/test_private_apis.py` checks that they work."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

# The public classes BatchNorm1d to 3d, InstanceNorm1d to 3d and Dropout1d to 3d have no other common base.
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["_BatchNorm", "_DropoutNd", "_InstanceNorm", "flop_counter", "in_transform", "unwrapped"]


def in_transform(value: Tensor) -> bool:
    """Whether a tensor is one that torch.func hides others in; left behind by a transform it is of no use."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def unwrapped(value: Tensor) -> Tensor:
    """Return the tensor inside one that torch.func has wrapped; torch.func has no public way to reach it."""
    inner: Tensor = torch._C._functorch.get_unwrapped(value)
    return inner


def flop_counter() -> FlopCounterMode:
    """Return a counter of operations that does not attribute them to modules.

    Attribution has no public switch, and it fails for parameters that are expanded without gradient.
    """
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    found: FlopCounterMode = counter
    return found


class _NoModules(nullcontext[None]):
    """A module tracker that is always in the root module."""

    parents = ("Global",)

    def __exit__(self, *_: object) -> None:
        """Do nothing, because nothing was entered."""
