"""Count where a GPU would make the host wait, on a CPU: a pretended CUDA device that follows tensors.

Inside the context `torch.device("cuda")` is that device: tensors made or moved there, and all that is computed from
them, say that they are there, and so do generators made for it. Code therefore takes the ways that it takes on a GPU. A
tensor or generator that would be in the wrong place on a GPU is an error here too. Values and gradients are real.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
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
# The decompositions look at whether they converged.
_READS = ("_local_scalar_dense", "equal", "is_nonzero", "_linalg_svd", "_linalg_eigh", "_linalg_check_errors")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_GIVEN = ("tensor", "as_tensor", "new_tensor", "from_numpy", "scalar_tensor")
_MOVES = ("tolist", "cpu", "cuda", "to", "numpy", "pin_memory")
_DEVICE = torch.device("cuda")
_HOST = torch.device("cpu")
_Generator = torch.Generator
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = tuple(str(_ROOT / name) + "/" for name in ("bench", "methods", "corruptions"))


class _Instances(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class DeviceGenerator(_Generator, metaclass=_Instances):
    """A generator of the pretended device, or of the host, with the random numbers of the host."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        """Do nothing: the base class knows no pretended device."""

    @property
    def device(self) -> torch.device:
        return self.place

    def manual_seed(self, seed: int) -> DeviceGenerator:
        super().manual_seed(seed)
        return self


class HostWaits:
    """Within this context, `counts` holds the number of waits of each kind.

    read: a value or tensor is copied from the device (`item`, `bool`, `float`, `tolist`, `cpu`, `equal`).
    size: a shape depends on values (`nonzero`, indexing by a mask and its gradient, `bincount`, `unique`).
    upload: a tensor is copied to the device without `non_blocking`, for which the host waits as well.

    `sites` holds the same by kind and the innermost function of this project, as in "methods/losses.py:entropy".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sites: Counter[tuple[str, str]] = Counter()
        # Kept, so that no new storage gets the address of an old one.
        self._there: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._modes = (_Calls(self), _Operations(self))

    def generator(self, seed: int = 0) -> Any:
        """Return a generator of the device."""
        return DeviceGenerator("cuda").manual_seed(seed)

    def count(self, kind: str, number: int = 1) -> None:
        """Count waits of a kind, here and in the function of this project that made them."""
        if number:
            self.counts[kind] += number
            self.sites[kind, _site()] += number

    def forget(self) -> None:
        """Start to count anew."""
        self.counts.clear()
        self.sites.clear()

    def __enter__(self) -> HostWaits:
        torch.Generator = DeviceGenerator  # type: ignore[misc, assignment]
        torch._C._nn._parse_to = _parse_to
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.Generator = _Generator  # type: ignore[misc]
        torch._C._nn._parse_to = _PARSE_TO
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
        self.count("read")
        copied = result.clone()
        self._kept.append(self._there.pop(copied.untyped_storage()._cdata, None))
        return copied

    def to_device(self, result: Tensor, *, waits: bool) -> Tensor:
        """Count an upload and return a copy that is on the device."""
        self.count("upload", int(waits))
        copied = result.clone()
        self.place([copied])
        return copied


class _Calls(TorchFunctionMode):
    """Follows what torch does not see as operations on one device: places, and copies between host and device."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args)
        if name == "unravel_index":
            return self._unravelled(*args, **kwargs)
        if func is Tensor.backward:
            return self._backward(*args, **kwargs)
        if name == "one_hot" and self.waits.holds(args[0]):
            return self._one_hot(*args, **kwargs)
        if name in _MOVES and not _transformed(args[0]):
            return self._moved(name, func, args, kwargs)
        self._check_generator(name, args, kwargs)
        given = kwargs.get("device")
        if given is None:
            return func(*args, **kwargs)
        target = torch.device(given)
        out = func(*args, **kwargs | {"device": _HOST})
        if target.type == "cuda" and not self.waits.holds(out):
            if name == "as_tensor":
                return self.waits.to_device(out, waits=True)
            self.waits.count("upload", int(name in _GIVEN))
            self.waits.place([out])
            return out
        if target.type == "cuda":
            return out
        return self.waits.to_host(out) if self.waits.holds(out) else out

    def _attribute(self, func: Any, args: Any) -> Any:
        what = getattr(func.__self__, "__name__", "")
        if what not in ("device", "is_cuda", "is_cpu") or _transformed(args[0]):
            return func(*args)
        there = self.waits.holds(args[0])
        return {"device": _DEVICE if there else func(*args), "is_cuda": there, "is_cpu": not there}[what]

    def _check_generator(self, name: str, args: Any, kwargs: Any) -> None:
        """Raise AssertionError where a generator is not on the device on which its numbers are to be."""
        generator = kwargs.get("generator")
        if generator is None:
            return
        first = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("tensor")
        made = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        here = self.waits.holds(first) if first is not None else made
        if (generator.device.type == "cuda") != here:
            raise AssertionError(
                f"{name} with a generator of {generator.device}, the numbers elsewhere; make them agree"
            )

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        there = self.waits.holds(args[0])
        if name == "pin_memory":
            assert not there, "pin_memory() of a tensor on the device"
            return args[0]
        if name == "numpy" and there:
            raise AssertionError("numpy() of a tensor on the device; call cpu() first")
        if name == "tolist" and there:
            self.waits.count("read")
        if name == "cpu" and there:
            return self.waits.to_host(args[0])
        if name == "cuda":
            return args[0] if there else self.waits.to_device(args[0], waits=not kwargs.get("non_blocking", False))
        if name != "to":
            return func(*args, **kwargs)
        target = self._target(args[1:], kwargs)
        out = func(*(_on_host(value) for value in args), **{key: _on_host(value) for key, value in kwargs.items()})
        if target is False and there:
            return self.waits.to_host(out)
        if target is True and not there:
            return self.waits.to_device(out, waits=not kwargs.get("non_blocking", False))
        return out

    def _unravelled(self, flat: Tensor, shape: Any) -> Any:
        """Do what `unravel_index` does, which makes two tensors on the device unseen by this mode."""
        if not self.waits.holds(flat):
            return torch.unravel_index(flat, shape)
        self.waits.count("upload", 2)
        with torch._C.DisableTorchFunction():
            numbers = flat.numpy()
        places = tuple(torch.from_numpy(place) for place in np.unravel_index(numbers, tuple(shape)))
        self.waits.place(places)
        return places

    def _backward(
        self,
        loss: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = (),
    ) -> None:
        """Do what `backward` does, and follow the hooks that run inside, where this mode would be off."""
        given = torch.ones_like(loss) if gradient is None else gradient
        self.waits.place([given])
        keep = create_graph if retain_graph is None else retain_graph
        with self:
            torch.autograd.graph._engine_run_backward(
                (loss,), (given,), keep, create_graph, tuple(inputs or ()), allow_unreachable=True, accumulate_grad=True
            )

    def _one_hot(self, labels: Tensor, num_classes: int = -1) -> Tensor:
        """Do what `one_hot` does, which on a GPU looks at no value if it is told the number of classes."""
        self.waits.count("read", int(num_classes < 0))
        with torch._C._DisableTorchDispatch():
            out = torch.nn.functional.one_hot(labels, num_classes)
        self.waits.place([out])
        return out

    def _target(self, args: Any, kwargs: Any) -> bool | None:
        """Return whether `to` leads to the device (True), to the host (False) or changes the precision alone."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                return self.waits.holds(value)
            if isinstance(value, str | torch.device):
                return torch.device(value).type == "cuda"
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
        # Zeros that the engine of autograd puts in place of a missing gradient, which lies where the values do.
        missing = not given and name in ("zeros", "full", "scalar_tensor") and torch._C._current_graph_task_id() != -1
        if missing or (any(there) and not (name == "copy_" and not there[0])):
            self.waits.place(results)
        else:
            # Keep the storage of host tensors too: its address must not become that of a tensor on the device.
            self.waits._kept.extend(value.untyped_storage() for value in results)
        return out

    def _count(self, name: str, args: Any, given: list[Tensor], there: list[bool]) -> None:
        count = self.waits.count
        if name in _READS:
            count("read")
        elif name in _SIZES:
            count("size")
        elif name in _INDEXED:
            for place in args[1]:
                if place is not None:
                    count("size", int(place.dtype in (torch.bool, torch.uint8)))
                    count("upload", int(not self.waits.holds(place)))
        elif name == "copy_":
            waiting = not (len(args) > 2 and args[2]) or there[1]
            count("read" if there[1] else "upload", int(there[0] != there[1] and waiting))
        else:
            apart = [value for value, here in zip(given, there, strict=True) if not here and value.ndim]
            if apart:
                shapes = [tuple(value.shape) for value in apart]
                raise AssertionError(f"{name} of tensors on the device and on the host {shapes}; move them first")


_PARSE_TO = torch._C._nn._parse_to


def _parse_to(*args: Any, **kwargs: Any) -> Any:
    """Do what `Module.to` does with its arguments, which reads the device of a tensor unseen by the modes."""
    like = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if like is None:
        return _PARSE_TO(*args, **kwargs)
    return _PARSE_TO(like.device, like.dtype)


def _on_host(value: Any) -> Any:
    return _HOST if isinstance(value, str | torch.device) else value


def _site() -> str:
    """Return the innermost function of this project that is running, with its file."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGES):
            return f"{Path(code.co_filename).relative_to(_ROOT)}:{code.co_qualname.replace('.<locals>', '')}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _transformed(value: Any) -> bool:
    return not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value)
