"""Save, compare and restore the whole state of a module, beyond its weights, as plain values.

A forward pass may change more than `state_dict` covers: buffers that are not persistent, and tensors, numbers and
strings kept as attributes, also inside lists, dicts and objects. Everything that can be reached from the attributes of
a module and of its submodules counts, except torch's own bookkeeping (including hooks).
"""

from __future__ import annotations

import copy
import datetime
import enum
import functools
import random
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from methods.private_apis import in_transform

MACHINERY = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = frozenset({bool, int, float, complex, str, type(None)})
_FIXED = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.GenericAlias,
    enum.Enum,
    re.Pattern,
    PurePath,
    datetime.date,
    datetime.timedelta,
    range,
    slice,
    bytes,
    frozenset,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    np.dtype,
    np.ufunc,
    type(Ellipsis),
    types.MappingProxyType,
    weakref.ref,
)
_LIBRARIES = frozenset(
    {"torch", "torchvision", "timm", "bench", "corruptions", "methods", "leaderboards", *sys.stdlib_module_names}
)

Saved = Any
"""A plain value as it is, or a list of its kind ("tensor", "dict", ...) and its content."""


class Unsaved(TypeError):
    """Raised where part of a module cannot be saved and restored; the message names it and says what to do."""


def save_module(module: nn.Module, *, weights: bool = True, copied: bool = True) -> dict[str, Any]:
    """Return {"weights": its state_dict, "beside": the rest of its state}, as plain values and tensors.

    `weights=False` leaves "weights" empty and saves all buffers under "beside". `copied=False` returns the tensors
    themselves, for comparison. Raises Unsaved for what cannot be saved: an iterator, or an object that exposes no
    attributes.
    """
    held = module.state_dict() if weights else {}
    return {"weights": copy.deepcopy(held) if copied else held, "beside": _Saving(module, copied).modules(weights)}


def load_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `save_module` returned. Parameters and buffers are written in place; other tensors become copies.

    Attributes added since then are deleted. Raises RuntimeError where the weights do not fit.
    """
    weights = saved["weights"]
    _Loading(module).modules(saved["beside"], weights)
    if weights:
        module.load_state_dict(weights)


def same(one: Any, other: Any) -> bool:
    """Return whether two saved states are exactly equal; NaN equals NaN."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and _equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if in_transform(one) or one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Undo, on exit, all changes to a module and to torch's generator on the CPU. Raises Unsaved."""
    before = save_module(module)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            load_module(module, before)


def constants(module: nn.Module) -> dict[str, Tensor]:
    """Return all numbers of a module beyond parameters and buffers, as tensors by their path.

    Tensors and numpy arrays count everywhere; plain numbers count only in user-defined classes, because library classes
    keep sizes and switches there, which the weights already determine.
    """
    reach = _Reach(module)
    for path, part in module.named_modules():
        for name, value in _attributes(part):
            if name != "training":
                reach.look(value, f"{path}.{name}".lstrip("."), _own(part))
    return reach.found


def _attributes(part: nn.Module) -> Iterator[tuple[str, Any]]:
    says = type(part).get_extra_state is not nn.Module.get_extra_state  # then `state_dict` covers it
    if not says and not isinstance(part, torch.jit.ScriptModule):
        yield from ((name, value) for name, value in vars(part).items() if name not in MACHINERY)


def _named(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


class _Saving:
    def __init__(self, root: nn.Module, copied: bool) -> None:
        self._root, self._copied = root, copied
        self._owned = {id(value): name for name, value in _named(root)}
        self._parts = {id(part) for part in root.modules()}
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []

    def modules(self, weights: bool) -> dict[str, Any]:
        """Return {submodule: [its attributes, its buffers outside `state_dict`]}; all buffers without weights."""
        saved = {}
        for path, part in self._root.named_modules():
            values = {}
            for name, value in _attributes(part):
                values[name] = value if type(value) in _PLAIN else self.value(value, f"{path}.{name}".lstrip("."))
            out = part._non_persistent_buffers_set
            buffers = {
                name: None if value is None else self._tensor(value)
                for name, value in part._buffers.items()
                if value is None or name in out or not weights
            }
            saved[path] = [values, buffers]
        return saved

    def _tensor(self, value: Tensor) -> Tensor:
        return value.detach().clone() if self._copied else value.detach()

    def value(self, value: Any, where: str) -> Saved:
        if type(value) in _PLAIN or (type(value) is tuple and all(type(item) in _PLAIN for item in value)):
            return value
        if id(value) in self._owned:
            return ["weight", self._owned[id(value)]]
        if id(value) in self._parts or isinstance(value, _FIXED):
            return ["fixed"]
        if isinstance(value, tuple):
            return ["tuple", [self.value(item, f"{where}[{i}]") for i, item in enumerate(value)]]
        if id(value) in self._seen:
            return ["again", self._seen[id(value)]]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)  # kept alive so that no other object gets its id
        return self._mutable(value, where)

    def _mutable(self, value: Any, where: str) -> Saved:
        match value:
            case Tensor():
                return ["tensor", self._tensor(value)]
            case np.ndarray() | np.generic() if not value.dtype.hasobject and value.dtype.fields is None:
                raw = torch.from_numpy(np.frombuffer(bytearray(value.tobytes()), np.uint8))
                return ["array", [raw, value.dtype.str, list(value.shape), isinstance(value, np.ndarray)]]
            case nn.Module():
                return ["module", save_module(value, copied=self._copied)]
            case torch.Generator():
                return ["generator", value.get_state()]
            case random.Random():
                return ["random", self.value(value.getstate(), where)]
            case np.random.Generator():
                return ["numpy", self.value(value.bit_generator.state, where)]
            case list() | deque():
                return ["list", [self.value(item, f"{where}[{i}]") for i, item in enumerate(value)]]
            case set() if all(type(item) in _PLAIN for item in value):
                return ["set", sorted(value, key=repr)]
            case dict() if all(type(key) in _PLAIN for key in value):
                return ["dict", {key: self.value(item, f"{where}[{key!r}]") for key, item in value.items()}]
            case dict():
                return ["values", [self.value(item, f"{where}[{key!r}]") for key, item in value.items()]]
            case functools.partial():
                return ["partial", self.value((value.args, value.keywords), where)]
        names = _names(value)
        if names is not None:
            return ["object", {name: self.value(getattr(value, name), f"{where}.{name}") for name in names}]
        if _is_fixed(value):
            return ["fixed"]
        raise Unsaved(
            f"the model keeps a {type(value).__name__} in {where}, which cannot be saved and reset; keep tensors, "
            "plain values, or lists and dicts of them there"
        )


class _Loading:
    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._owned = dict(_named(root))
        self._made: list[Any] = []

    def modules(self, saved: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        for path, part in self._root.named_modules():
            if path not in saved:
                continue
            values, buffers = saved[path]
            own = vars(part)
            for name in [name for name, _ in _attributes(part) if name not in values]:
                del own[name]
            for name, value in values.items():
                own[name] = value if type(value) in _PLAIN else self.value(own.get(name), value, f"{path}.{name}")
            for name, current in list(part._buffers.items()):
                full = f"{path}.{name}".lstrip(".")
                if name in buffers:
                    part._buffers[name] = _put(current, buffers[name])
                elif full not in weights:
                    delattr(part, name)
                elif not _takes(current, weights[full]):
                    part._buffers[name] = weights[full].clone()

    def value(self, current: Any, saved: Saved, where: str) -> Any:
        if type(saved) in _PLAIN or type(saved) is tuple:
            return saved
        kind, *rest = saved
        match kind:
            case "fixed":
                return current
            case "weight":
                return self._owned.get(rest[0], current)
            case "again":
                return self._made[rest[0]]
            case "tuple":
                known = (
                    current if isinstance(current, tuple) and len(current) == len(rest[0]) else [None] * len(rest[0])
                )
                items = [self.value(known[i], item, where) for i, item in enumerate(rest[0])]
                if isinstance(known, list):
                    return tuple(items)
                if all(item is old for item, old in zip(items, known, strict=True)):
                    return known
                return known._make(items) if hasattr(known, "_make") else type(known)(items)
        place = len(self._made)
        self._made.append(current)  # set first, so that self-references resolve
        self._made[place] = self._mutable(kind, current, rest[0], where)
        return self._made[place]

    def _mutable(self, kind: str, current: Any, saved: Any, where: str) -> Any:
        match kind, current:
            case "tensor", _:
                return _put(current, saved, copied=True)
            case "array", _:
                raw, dtype, shape, whole = saved
                made = np.frombuffer(bytearray(raw.cpu().numpy().tobytes()), np.dtype(dtype)).reshape(shape)
                return made if whole else made[()]
            case "module", nn.Module():
                load_module(current, saved)
            case "generator", torch.Generator():
                current.set_state(saved.cpu())
            case "random", random.Random():
                current.setstate(self.value(None, saved, where))
            case "numpy", np.random.Generator():
                current.bit_generator.state = self.value(None, saved, where)
            case "list", list() | deque():
                items = [self.value(old, item, where) for old, item in _beside(current, saved)]
                current.clear()
                current.extend(items)
            case "list", _:
                return [self.value(None, item, where) for item in saved]
            case "set", set():
                current.clear()
                current.update(saved)
            case "set", _:
                return set(saved)
            case "dict", dict():
                known = {key: self.value(current.get(key), item, where) for key, item in saved.items()}
                current.clear()
                current.update(known)
            case "dict", _:
                return {key: self.value(None, item, where) for key, item in saved.items()}
            case "values", dict() if len(current) >= len(saved):
                for key, item in list(zip(current, saved, strict=False)):
                    current[key] = self.value(current[key], item, where)
                for key in list(current)[len(saved) :]:
                    del current[key]
            case "partial", functools.partial():
                args, keywords = self.value((current.args, current.keywords), saved, where)
                cast(Any, current).__setstate__((current.func, args, keywords, vars(current)))
            case "object", _ if _names(current) is not None:
                for name in _names(current) or ():
                    if name not in saved:
                        object.__delattr__(current, name)
                for name, item in saved.items():
                    old = getattr(current, name, None)
                    made = self.value(old, item, where)
                    if made is not old or not hasattr(current, name):
                        object.__setattr__(current, name, made)
            case _:
                raise Unsaved(
                    f"the model replaced the object in {where.lstrip('.')} by a {type(current).__name__}, "
                    "which cannot be reset; keep the same object there and change its content"
                )
        return current


class _Reach:
    """Collects the numbers in attributes; each object is visited once."""

    def __init__(self, root: nn.Module) -> None:
        self.found: dict[str, Tensor] = {}
        self._seen = {id(value): value for value in (*root.modules(), *(value for _, value in _named(root)))}

    def look(self, value: Any, where: str, own: bool) -> None:
        if type(value) in (bool, int, float, complex):
            if own:
                self.found[f"{where} = {value!r}"] = torch.empty(0)
            return
        if value is None or isinstance(value, (str, *_FIXED)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        match value:
            case Tensor():
                self.found[where] = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            case np.ndarray() if value.dtype.hasobject:
                self.look(value.tolist(), where, own)
            case np.ndarray() | np.generic():
                raw = torch.from_numpy(np.frombuffer(bytearray(value.tobytes()), np.uint8))
                self.found[f"{where}, {value.dtype.str} {list(value.shape)}"] = raw
            case nn.Module():
                for name, inner in (*_named(value), *constants(value).items()):
                    if id(inner) not in self._seen:
                        self.found[f"{where}.{name}"] = inner.detach()
            case list() | tuple() | deque():
                for number, item in enumerate(value):
                    self.look(item, f"{where}[{number}]", own)
            case dict():
                for number, (key, item) in enumerate(value.items()):
                    self.look(item, f"{where}[{repr(key) if type(key) in _PLAIN else number}]", own)
            case set() | frozenset() if all(type(item) in _PLAIN for item in value):
                self.look(sorted(value, key=repr), where, own)
            case functools.partial():
                self.look((value.args, value.keywords), where, own)
            case _:
                for name in _names(value) or ():
                    self.look(getattr(value, name), f"{where}.{name}", _own(value))


def _beside(current: Sequence[Any] | deque[Any], saved: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Pair every saved item with the current item at its index, or with None."""
    return zip([*current, *([None] * len(saved))], saved, strict=False)


def _names(value: Any) -> list[str] | None:
    """Return the attributes of an object that keeps its state in them; None if it exposes none."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch" and not kind.__module__.startswith("torch.distributions"):
        return None
    slots = [slot for base in kind.__mro__ for slot in _slots(base)]
    if not hasattr(value, "__dict__") and not slots:
        return None
    return [*getattr(value, "__dict__", ()), *(slot for slot in slots if hasattr(value, slot))]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(slot for slot in named if slot not in ("__dict__", "__weakref__") and not slot.startswith("__"))


def _is_fixed(value: Any) -> bool:
    place = type(value).__module__.partition(".")[0]
    return place in ("torch", "functools", "operator") or type(value) is object or isinstance(value, int | float | str)


def _own(value: Any) -> bool:
    """Return whether the class of a value is user-defined rather than part of a library or this project."""
    place = type(value).__module__
    if place.partition(".")[0] in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(place), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.intersection(PurePath(file).parts)


def _takes(current: Tensor | None, saved: Tensor) -> bool:
    """Return whether the saved tensor can be written into the current one in place."""
    return (
        current is not None
        and not in_transform(current)
        and current.shape == saved.shape
        and current.dtype == saved.dtype
        and (not current.is_inference() or torch.is_inference_mode_enabled())
    )


def _put(current: Any, saved: Tensor | None, *, copied: bool = False) -> Tensor | None:
    """Write a saved tensor into the current one and return it, or return a copy where it does not fit.

    `copied`: always return a copy, unless an optimiser may hold the current tensor; other code may own that one by now.
    """
    known = current if isinstance(current, Tensor) else None
    if saved is None:
        return None
    held = known is not None and known.requires_grad and known.is_leaf
    if known is not None and _takes(known, saved) and (held or not copied):
        with torch.no_grad():
            known.copy_(saved)
        return known
    return saved.to(saved.device if known is None else known.device, copy=True)
