"""Operations whose result the host must know before it goes on, which on a GPU wait for all work queued so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Synchronisations(TorchDispatchMode):
    """Inside the context, lists by name the operations that would wait: values read, masks turned into indices.

    Reading a tensor that is on the CPU on purpose waits for nothing on a GPU, but is listed here too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        masks = name in INDEXED and any(isinstance(it, Tensor) and it.dtype == torch.bool for it in args[1])
        if masks or name in WAITS:
            self.found.append(name)
        return func(*args, **kwargs or {})


def synchronisations(action: Callable[[], Any]) -> list[str]:
    """The operations that would wait, by name, in the order in which an action calls them."""
    with Synchronisations() as counted:
        action()
    return counted.found
