"""The two kinds of method, recipes and adapters, and the values that they exchange with their callers.

A *recipe* makes a classifier before the stream starts: it returns a graph of jobs, which the caller runs and caches.
An *adapter* changes a classifier during the stream, batch by batch. Neither ever receives test labels or image ids.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from methods import METHODS, PLAIN
from methods.errors import Unsupported as Unsupported
from methods.limits import limits_of
from methods.nets.weights import Weights
from methods.state import load_module, same, save_module
from methods.table import Access

RateRule = Literal[
    "batch/64", "batch/64, twice that for 1", "batch/32, at most 1", "batch/32, at most 1, twice that for 1"
]
"""By what a release multiplies its rate for a batch of this many images."""


class Images(Protocol):
    """Pixels uint8 [n, 3, h, w]: a tensor in memory, or an object that makes rows when they are read."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def ndim(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """The device on which row indices must lie and on which rows are returned."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor: ...


class Photographs(Images, Protocol):
    """Whole photographs, each stretched to a square of the same size: uint8 [n, 3, s, s]."""

    def aspects(self, rows: Tensor, /) -> Tensor:
        """Return width / height of the photographs of these rows (int64 [k]) as taken: float32 [k], on the CPU."""


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels: uint8 [n, 3, h, w], in an order that says nothing about classes.

    `images` is a tensor or an object whose rows are read as tensors. `digest` identifies the content. `photographs` are
    the same images before they were cut to the size of a model, from which trainings cut their random views; None
    where the images are all there is. No attribute gives access to a label or an id.
    """

    images: Images
    digest: str
    photographs: Photographs | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [n, 3, h, w], not {self.images.dtype} {tuple(self.images.shape)}")
        if len(self.images) == 0:
            raise ValueError("a data set needs at least one image")
        if self.photographs is not None and len(self.photographs) != len(self.images):
            raise ValueError(f"{len(self.images)} images and {len(self.photographs)} photographs; give one of each")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Labelled(Unlabelled):
    """Clean source images with their labels (int64 [n], 0 .. classes - 1). Never holds shifted images."""

    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    classes: int = 0

    def __post_init__(self) -> None:
        Unlabelled.__post_init__(self)
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            shape = tuple(self.labels.shape)
            raise ValueError(f"labels must be int64 [{len(self.images)}], not {self.labels.dtype} {shape}")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes:
            raise ValueError(f"labels must lie in 0 .. {self.classes - 1}")

    def without_labels(self) -> Unlabelled:
        return Unlabelled(self.images, f"unlabelled:{self.digest}", photographs=self.photographs)

    def split(self, fraction: float) -> tuple[Labelled, Labelled]:
        """Return (rest, held out): of each class, the last `fraction` of its images, at least one, is held out.

        Raises ValueError unless fraction is in (0, 1) and each class that is present has two images.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the fraction to hold out must lie in (0, 1), not {fraction}")
        counts = torch.bincount(self.labels, minlength=self.classes)
        if len(single := (counts == 1).nonzero()[:, 0]):
            raise ValueError(f"class {single[0]} has one labelled image, so none can be held out; give more labels")
        kept = counts - (fraction * counts.double()).round().long().clamp(min=1)
        by_class = self.labels.argsort(stable=True)
        sorted_labels = self.labels[by_class]
        place = torch.arange(len(self)) - (counts.cumsum(0) - counts)[sorted_labels]
        held = torch.zeros(len(self), dtype=torch.bool)
        held[by_class] = place >= kept[sorted_labels]
        return self._rows(~held, f"without {fraction:g}"), self._rows(held, f"the {fraction:g} held out")

    def _rows(self, chosen: Tensor, what: str) -> Labelled:
        rows = chosen.nonzero()[:, 0]
        images = self.images[rows] if isinstance(self.images, Tensor) else Chosen(self.images, rows)
        photographs = ChosenPhotographs(self.photographs, rows) if self.photographs is not None else None
        return Labelled(images, f"{self.digest}, {what}", self.labels[rows], self.classes, photographs=photographs)


class Options:
    """Base class of options, with checks that name the option at fault; types of `methods.limits` state most of them.

    later: options of this class that came after it, with the default None; records leave them out where they are None.
    """

    later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        own: Any = type(self)
        for option, limit in limits_of(own):
            self.check(limit.holds(getattr(self, option)), option, limit.words)

    def check(self, holds: bool, option: str, wanted: str) -> None:
        """Raise ValueError unless `holds`; the message names the method, the option, what it must be and its value."""
        if not holds:
            raise ValueError(f"{_method_of(type(self))}.{option} must be {wanted}, not {getattr(self, option)!r}")


def _method_of(options: type) -> str:
    """Return the name under which options are set: of the method's row, of the objective's file, else of the class."""
    from methods import METHODS

    kind = options.__qualname__.partition(".")[0]
    if kind == "Config":
        return options.__module__.rpartition(".")[2]
    rows = (row for row in METHODS.values() if row.path == f"{options.__module__}:{kind}")
    return next((row.options_of or row.name for row in rows), kind.lower())


class Chosen:
    """Selected rows of images that are made on access; no row is read before it is indexed."""

    dtype = torch.uint8
    ndim = 4

    def __init__(self, images: Images, rows: Tensor) -> None:
        self._images = images
        self._rows = rows.to(images.device)
        self.device = images.device
        self.shape = torch.Size((len(rows), *images.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self._images[self._rows[rows]]


class ChosenPhotographs(Chosen):
    """Selected rows of photographs."""

    def __init__(self, photographs: Photographs, rows: Tensor) -> None:
        super().__init__(photographs, rows)
        self._photographs = photographs

    def aspects(self, rows: Tensor) -> Tensor:
        """Return width / height of the photographs of these rows (int64 [k]): float32 [k]."""
        return self._photographs.aspects(self._rows[rows])


class SourceBatch(NamedTuple):
    """Clean source images, float [n, 3, h, w] in [0, 1], with labels (int64 [n]) only if the method declares them."""

    images: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """Batches of clean source images in one fixed random order, read on access; an adapter may keep it on self.

    Iteration yields each batch once. `source[i]` reads the i-th batch again, so a method that replays source images
    during the stream keeps a counter, which is saved and reset with the method.
    """

    read: Callable[[int], SourceBatch]
    batches: int

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> SourceBatch:
        if not 0 <= number < self.batches:
            raise IndexError(f"source has {self.batches} batches, no batch {number}")
        return self.read(number)

    def __iter__(self) -> Iterator[SourceBatch]:
        return map(self.read, range(self.batches))


class Checkpointer(Protocol):
    """Storage for the state from which a killed training resumes; states are tensors and plain values."""

    def load(self) -> dict[str, Any] | None:
        """Return the state saved last, or None for a new training."""

    def due(self) -> bool:
        """Return whether it is time to save."""

    def save(self, state: dict[str, Any]) -> None:
        """Store this state in place of the last one."""

    def finished(self, losses: Tensor) -> None:
        """Store the losses of all steps, float32 [steps]."""


@dataclass(frozen=True)
class Work:
    """The cost of a job, known before it runs: floating-point operations and the optimiser steps that use them."""

    flops: float
    steps: int = 0


JobFunction = Callable[..., Weights]


@dataclass(frozen=True)
class Job:
    """One step of a recipe: `function(inputs, data, config, generator) -> Weights`.

    A `resumable` function also takes `keep: Checkpointer | None`. It resumes from the saved state and returns weights
    that are bit-identical to those of an uninterrupted run. A `shared` function also takes `parallel:
    methods.data_parallel.DataParallelGroup`. Every process of the group calls it with otherwise equal arguments and
    gets the same weights, which equal those of a single process up to rounding.

    A job is a pure function of its fields, so a caller may cache its result by content, run it in another process, or
    share it between recipes. `function` is a module-level function; `config` a frozen dataclass of plain values (or
    None); `data` is Unlabelled (shifted or clean), Labelled (clean only) or None; `inputs` are weights or jobs that
    make them. `label`, `work` and `keeps` are for display and estimates and do not change the result; `keeps` names the
    parts of the weights beside encoder and head: side heads (`methods.nets.weights.SIDE_HEADS`) or "decoder".
    """

    function: JobFunction
    config: Any
    inputs: tuple[Job | Weights, ...]
    data: Unlabelled | None
    label: str
    resumable: bool = False
    work: Work | None = None
    shared: bool = False
    keeps: tuple[str, ...] = ()


_ACCESS = {row.path: row.access for row in (PLAIN, *METHODS.values())}


class _Method(ABC):
    """A method, whose access is that of its row in the table; a class outside the table states it itself."""

    access: ClassVar[Access]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (access := _ACCESS.get(f"{cls.__module__}:{cls.__qualname__}")) is not None:
            cls.access = access


class Recipe(_Method):
    """Makes a classifier offline from a stock, labelled clean images and, if declared, a pool of shifted images.

    Subclasses set `access` and, if they have options, a frozen dataclass `Config` whose fields all have defaults.
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Values worth trying for each option, for tuning on held-out images."""
    pool: ClassVar[Literal["none", "clean", "shifted"]] = "none"
    """The unlabelled images it trains on: clean source images, or shifted images (then `access.test` is "pool")."""

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        """Return the jobs that make each part of the result, by part name.

        The first entry is the method's own row; further entries are parts reported beside it (single ingredients).
        `pool` holds the images that the class attribute `pool` names, None for "none". An entry "connectivity" is a
        report on the first entry, not a part; a run gives it dev images as data, if there are some. A recipe whose
        options include `select_on` also takes `val`: clean labelled test images that are not scored, or None.
        """


class Adapter(_Method):
    """Changes a classifier online, batch by batch; the base class of every test-time method.

    A subclass implements `configure` (choose parameters, build optimisers) and `predict`. Everything it keeps on `self`
    is its state. `state_dict` saves and `reset` restores modules, optimisers, generators, tensors, numbers, strings,
    None, and lists, tuples or dicts of them, without further code; for a module, all that it holds (see
    `methods.state`), including what its own forward pass changes. `self.model` is a private copy of the classifier in
    eval mode, `self.config` the options and `self.generator` the only source of randomness.

    Every `predict` refuses images that break its contract before the subclass sees them (see `check_images`).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Values worth trying for each option, for tuning on held-out images."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published options by "DATA-NORM", as in {"cifar-bn": {"lr": 1e-3}}; a literal, so that it can be read as text.

    DATA is imagenet, cifar or cifar100, or the name of a shift; NORM is bn, ln or gn (see `norms.norm_family`). They
    override the defaults of Config; tuned and requested options override them. A run on other data or norms takes the
    nearest ones and says so.
    """
    rate_rules: ClassVar[Mapping[str, RateRule]] = {}
    """How the release scales a published rate with the batch size, by "DATA-NORM"; a rate without a rule is kept."""
    tested_against: ClassVar[Literal["golden", "restatement", "none"]] = "none"
    """The reference of its tests: outputs of the official code, an independent restatement, or none (plug-ins)."""
    checked_with: ClassVar[Mapping[str, Any]] = {}
    """Options that override the defaults in the conformance suite: little computation, large changes."""
    needs: ClassVar[str | None] = None
    """The recipe whose classifier has what it needs beside the layers of any (None: source); see `table.Row.needs`."""

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls.predict, "_checks_images"):
            cls.predict = _with_checked_images(cls.predict)  # type: ignore[method-assign, assignment]

    @classmethod
    def supports(cls, model: nn.Module, config: Any = None, source: Source | None = None) -> tuple[bool, str]:
        """Return whether it works on a model with these options, and why not; prepares on a copy to find out.

        `source` as for `prepare`: None is refused if `access.source` is not "none".
        """
        try:
            cls(model, config).prepare(source)
        except ValueError as error:
            return False, str(error)
        return True, ""

    def __init__(self, classifier: nn.Module, config: Any = None, generator: torch.Generator | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()
        self.model = copy.deepcopy(classifier).eval().requires_grad_(False)
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self._initial: dict[str, Any] | None = None

    def prepare(self, source: Source | None = None) -> None:
        """Prepare for the stream: call `configure`, then store the state that `reset` restores.

        `source` is None unless `access.source` names it; it has labels only if that is "labelled". Raises RuntimeError
        when called again: use `reset` or a new adapter.
        """
        if self._initial is not None:
            raise RuntimeError("prepare() was called before; use reset() to start again or build a new adapter")
        self.configure(source)
        self._initial = self.state_dict()

    def configure(self, source: Source | None) -> None:
        """Choose what to adapt and build optimisers. Raises Unsupported if the model does not fit."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Adapt on a batch (float [n, 3, h, w] in [0, 1]); return log-probabilities up to a constant, [n, classes].

        Where the scores of the model are not finite, these must not be finite either. Raises ValueError, and changes
        nothing, for images that `check_images` refuses, RuntimeError under `torch.inference_mode()` if it learns.
        """

    def reset(self) -> None:
        """Restore the state after `prepare`: parameters, buffers, optimisers, memories, counters and generators."""
        if self._initial is None:
            raise RuntimeError("call prepare() before reset()")
        self.load_state_dict(self._initial)

    def state_dict(self) -> dict[str, Any]:
        """Return all that distinguishes this adapter from a new one, as plain values and copies of tensors."""
        return self._saved(copied=True)

    def changed(self) -> bool:
        """Return whether any state differs from the state after `prepare`."""
        return not same(self._saved(copied=False), self._initial)

    def _saved(self, *, copied: bool) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("config", "_initial")}
        return {name: _save(name, value, copied) for name, value in kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; tensors are copied, so one state can be loaded many times.

        Attributes that the state does not contain are deleted.
        """
        for name in vars(self).keys() - state.keys() - {"config", "_initial"}:
            delattr(self, name)
        for name, saved in state.items():
            setattr(self, name, _load(vars(self).get(name), saved))


def check_images(images: Tensor, model: nn.Module) -> None:
    """Raise ValueError unless images are float [n, 3, h, w] with n >= 1, in a precision that suits the model.

    Integers are refused since their range is not [0, 1], and float64 unless the model has parameters in float64. The
    range is not checked, since that would make the host wait for the device.
    """
    if images.ndim != 4:
        raise ValueError(f"predict takes images [n, 3, h, w], not {list(images.shape)}; give a batch of images")
    if len(images) == 0:
        raise ValueError("a batch of 0 images has nothing to predict or to learn from; leave it out")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            f"predict takes float images in [0, 1], not {kind}; give images.float() / 255 for values in 0 .. 255"
        )
    if images.dtype == torch.float64 and all(value.dtype != torch.float64 for value in model.parameters()):
        raise ValueError("the images are float64 and no parameter of the model is; give images.float()")


def _with_checked_images(predict: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @functools.wraps(predict)
    def checked(self: Adapter, images: Tensor) -> Tensor:
        check_images(images, self.model)
        return predict(self, images)

    checked._checks_images = True  # type: ignore[attr-defined]
    return checked


def _save(name: str, value: Any, copied: bool) -> Any:
    match value:
        case nn.Module():
            return save_module(value, copied=copied)
        case torch.optim.Optimizer():
            return copy.deepcopy(value.state_dict())
        case torch.Generator():
            return value.get_state()
        case nn.Parameter():
            return None  # belongs to a module that is saved itself
        case Tensor():
            return value.detach().clone() if copied else value.detach()
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return type(value)(_save(name, item, copied) for item in value)
        case dict():
            return {key: _save(name, item, copied) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and cast(Any, value).__dataclass_params__.frozen:
        return None  # options, which never change
    raise TypeError(
        f"self.{name} is a {type(value).__name__}, which cannot be saved and reset; "
        "keep modules, optimisers, tensors, plain values, or lists and dicts of them"
    )


def _load(current: Any, saved: Any) -> Any:
    """Return the restored attribute: objects load the saved state in place, at any depth; values become copies."""
    match current:
        case nn.Module():
            load_module(current, saved)
            return current
        case torch.optim.Optimizer():
            current.load_state_dict(copy.deepcopy(saved))
            return current
        case torch.Generator():
            current.set_state(saved)
            return current
        case nn.Parameter():
            return current
        case Tensor() if isinstance(saved, Tensor):
            return saved.to(current.device, copy=True)
    if dataclasses.is_dataclass(current):
        return current
    match saved:
        case list() | tuple():
            known = current if isinstance(current, list | tuple) else ()
            items = (_load(known[i] if i < len(known) else None, item) for i, item in enumerate(saved))
            return type(saved)(items)
        case dict():
            return {
                key: _load(current.get(key) if isinstance(current, dict) else None, item) for key, item in saved.items()
            }
    return copy.deepcopy(saved)
