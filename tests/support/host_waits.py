"""Count where a GPU would make the host wait, on a CPU: a pretended device that follows tensors from the model.

Model and images start on the pretended device; whatever is computed from a tensor there lies there too. `.cpu()` and
`.to("cpu")` bring a tensor to the host, `.to(images.device)` or `.to(tensor)` to the device, as does `device=` with
anything but a string. A tensor that would be in the wrong place on a GPU is an error here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result has a size that only the device knows, or that read a value inside.
_SIZES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave")
_READS = ("_local_scalar_dense", "equal", "is_nonzero")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_GIVEN = ("tensor", "as_tensor")
_MADE = ("rand", "randn", "randint", "arange", "full", "zeros", "ones", "empty", "eye", "linspace")


class HostWaits:
    """Within this context, `counts` holds the number of waits of each kind.

    read: a value or tensor is copied from the device (`item`, `bool`, `float`, `tolist`, `cpu`, `equal`).
    size: a shape depends on values (`nonzero`, indexing by a mask and its gradient, `bincount`, `unique`).
    upload: a tensor is copied to the device without `non_blocking`, for which the host waits as well.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        # Generators whose numbers are on the host even where `device=` is given.
        self.host_generators: list[torch.Generator] = []
        # Kept, so that no new storage gets the address of an old one.
        self._there: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._modes = (_Calls(self), _Operations(self))

    def __enter__(self) -> HostWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    def place(self, tensors: Iterable[Tensor]) -> None:
        """Put tensors onto the device."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._there[storage._cdata] = storage

    def place_modules(self, owner: Any) -> None:
        """Put all modules among the attributes of an object onto the device."""
        for value in vars(owner).values():
            if isinstance(value, nn.Module):
                self.place((*value.parameters(), *value.buffers()))

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device."""
        return tensor.untyped_storage()._cdata in self._there

    def to_host(self, result: Tensor) -> Tensor:
        """Count a download and return a copy that is on the host."""
        self.counts["read"] += 1
        copied = result.clone()
        self._kept.append(self._there.pop(copied.untyped_storage()._cdata, None))
        return copied

    def to_device(self, result: Tensor, *, waits: bool) -> Tensor:
        """Count an upload and return a copy that is on the device."""
        self.counts["upload"] += waits
        copied = result.clone()
        self.place([copied])
        return copied


class _Calls(TorchFunctionMode):
    """Follows what torch does not see as operations on one device: copies between host and device."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "unravel_index":
            return self._unravelled(*args, **kwargs)
        out = func(*args, **kwargs)
        if name in _GIVEN + _MADE and _is_place(kwargs.get("device")):
            if any(kwargs.get("generator") is generator for generator in self.waits.host_generators):
                return out
            return self.waits.to_device(out, waits=name in _GIVEN)
        if name not in ("tolist", "cpu", "to", "numpy") or _transformed(args[0]):
            return out
        there = self.waits.holds(args[0])
        if name == "numpy" and there:
            raise AssertionError("numpy() of a tensor on the device; call cpu() first")
        if name == "tolist" and there:
            self.waits.counts["read"] += 1
        if name == "cpu" and there:
            return self.waits.to_host(out)
        if name == "to":
            target = self._target(args[1:], kwargs)
            if target is False and there:
                return self.waits.to_host(out)
            if target is True and not there:
                return self.waits.to_device(out, waits=not kwargs.get("non_blocking", False))
        return out

    def _unravelled(self, flat: Tensor, shape: Any) -> Any:
        """Do what `unravel_index` does, which makes two tensors on the device unseen by this mode."""
        if not self.waits.holds(flat):
            return torch.unravel_index(flat, shape)
        self.waits.counts["upload"] += 2
        places = tuple(torch.from_numpy(place) for place in np.unravel_index(flat.numpy(), tuple(shape)))
        self.waits.place(places)
        return places

    def _target(self, args: Any, kwargs: Any) -> bool | None:
        """Return whether `to` leads to the device (True), to the host (False) or changes the precision alone."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                return self.waits.holds(value)
            if isinstance(value, str):
                return False
            if _is_place(value):
                return True
        return None


class _Operations(TorchDispatchMode):
    """Follows operations: their results lie where their arguments do."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = [self.waits.holds(value) for value in given]
        if any(there):
            self._count(name, args, given, there)
        out = func(*args, **kwargs)
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if any(there) and not (name == "copy_" and not there[0]):
            self.waits.place(results)
        else:
            # Keep the storage of host tensors too: its address must not become that of a tensor on the device.
            self.waits._kept.extend(value.untyped_storage() for value in results)
        return out

    def _count(self, name: str, args: Any, given: list[Tensor], there: list[bool]) -> None:
        counts = self.waits.counts
        if name in _READS:
            counts["read"] += 1
        elif name in _SIZES:
            counts["size"] += 1
        elif name in _INDEXED:
            for place in args[1]:
                if place is not None:
                    counts["size"] += place.dtype in (torch.bool, torch.uint8)
                    counts["upload"] += not self.waits.holds(place)
        elif name == "copy_":
            counts["read" if there[1] else "upload"] += there[0] != there[1]
        else:
            apart = [value for value, here in zip(given, there, strict=True) if not here and value.ndim]
            if apart:
                shapes = [tuple(value.shape) for value in apart]
                raise AssertionError(f"{name} of tensors on the device and on the host {shapes}; move them first")


def _is_place(value: Any) -> bool:
    return isinstance(value, torch.device)


def _transformed(value: Any) -> bool:
    return not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value)
