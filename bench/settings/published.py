"""Find the published options of a method for the data and the norms of a run, and say where each comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.errors import nearest

# What the number of classes and the resolution of the data decide less than the normalisation of the model does.
_OF_THE_STEP = ("lr", "optimizer", "momentum", "nesterov", "weight_decay")
# What depends on what the pictures show and on how many there are.
_OF_THE_PICTURES = ("flip", "crop", "padding", "rotate", "source_images", "queue", "official_quirks")
_NORMS = ("bn", "gn", "ln")
# Number of classes of the data that options are published for.
_CLASSES = {"cifar": 10, "cifar100": 100, "imagenet": 1000}

RATE_RULES: dict[str, Callable[[int], float]] = {
    "batch/64": lambda batch: batch / 64,
    "batch/64, twice that for 1": lambda batch: batch / 64 if batch > 1 else 2 / 64,
    "batch/32, at most 1": lambda batch: min(1.0, batch / 32),
    "batch/32, at most 1, twice that for 1": lambda batch: min(1.0, batch / 32) if batch > 1 else 2 / 32,
}
"""By what a published rate is multiplied for a batch of this many images; see `Adapter.rate_rules`."""


@dataclass(frozen=True)
class DataKind:
    """What decides the options for a data set: the name of the shift, its family and the number of classes."""

    name: str
    family: str
    classes: int

    @property
    def keys(self) -> tuple[str, ...]:
        """Names under which options for exactly this data are published, the most special first."""
        return self.name, f"{self.family}{self.classes}", self.family

    def nearest(self, names: Sequence[str]) -> list[str]:
        """Sort names of data: those of this data, then others, the nearest number of classes first."""
        own = [name for name in self.keys if name in names]
        others = [name for name in names if name in _CLASSES and name not in own]
        return own + sorted(others, key=lambda name: abs(math.log(_CLASSES[name] / self.classes)))


@dataclass(frozen=True)
class PublishedOptions:
    """Published options, and for each the key of `presets` that it is from. `exact`: the key is of this data and norm.

    `scale` is what the published rate was multiplied by for the size of the batch, `rule` says why ("": not at all).
    """

    options: Mapping[str, Any]
    origin: Mapping[str, str]
    exact: bool
    rule: str = ""
    scale: float = 1.0


NOTHING = PublishedOptions({}, {}, True)


def published(
    presets: Mapping[str, Mapping[str, Any]], rules: Mapping[str, str], data: DataKind, norm: str, batch_size: int = 64
) -> PublishedOptions:
    """Choose among a method's published options for data and norms (bn, gn, ln).

    Where none are published for both, the options of the step (rate, optimiser) are those for the same norms on other
    data, and the others, which follow the number of classes, those for the same data or else the nearest number of
    classes; but what depends on the pictures themselves, such as mirroring, is taken from the same data only. The
    result is empty for a method without published options.
    """
    names = data.nearest([key.rpartition("-")[0] for key in presets])
    for_norm = next((f"{name}-{norm}" for name in names if f"{name}-{norm}" in presets), None)
    for_data = next(
        (f"{name}-{kind}" for name in names for kind in (norm, *_NORMS) if f"{name}-{kind}" in presets), None
    )
    if for_data is None:
        return NOTHING
    same_data = for_data.rpartition("-")[0] in data.keys
    exact = same_data and for_data == for_norm
    origin = {option: for_data for option in presets[for_data] if same_data or option not in _OF_THE_PICTURES}
    if for_norm is not None and for_norm != for_data:
        origin = {option: key for option, key in origin.items() if option not in _OF_THE_STEP}
        origin |= {option: for_norm for option in presets[for_norm] if option in _OF_THE_STEP}
    options = {option: presets[key][option] for option, key in origin.items()}
    rule = rules.get(origin.get("lr", ""), "")
    scale = RATE_RULES[nearest(rule, RATE_RULES, "rate rule")](batch_size) if rule else 1.0
    if rule:
        options["lr"] *= scale
    return PublishedOptions(options, origin, exact, rule, scale)


@dataclass(frozen=True)
class InForce:
    """The value of an option, as text, and where it comes from; as text "10 (budget paper of source)".

    origin: the default, a tuning, published options. budget: the budget that sets it; `origin` then says of which
    recipe, if not of this one. rule: by what the batch size multiplies the value. note: what else changes it.
    """

    value: str
    origin: str = "default"
    budget: str = ""
    rule: str = ""
    note: str = ""

    @property
    def where(self) -> str:
        """Where it comes from, without the budget."""
        return f"{self.origin}, times {self.rule}" if self.rule else self.origin

    def __str__(self) -> str:
        words = (f"budget {self.budget}" if self.budget else "", self.where)
        return f"{self.value} ({' '.join(filter(None, words))}){self.note}"


def origins(found: PublishedOptions) -> dict[str, InForce]:
    """Return each option with its value, not multiplied for the batch, and where it comes from."""
    words = {}
    for option, value in found.options.items():
        where = "published" if found.exact else f"of {found.origin[option]}"
        scaled = option == "lr" and found.rule
        shown = f"{value / found.scale}" if scaled else f"{value}"
        words[option] = InForce(shown, where, rule=found.rule if scaled else "")
    return words


def borrowed(found: PublishedOptions, overridden: Mapping[str, Any]) -> str:
    """Say which options are those of other data or norms: "lr of imagenet-ln, epsilon of cifar-bn"; "" if none are."""
    if found.exact:
        return ""
    return ", ".join(f"{option} of {key}" for option, key in found.origin.items() if option not in overridden)
