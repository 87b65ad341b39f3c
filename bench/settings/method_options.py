"""Choose the options of each method in a run from published, tuned and given options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from bench.core.devices import has_bf16
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.settings.methods import build_config
from bench.settings.published import NOTHING, DataKind, PublishedOptions, borrowed, published
from bench.settings.run_spec import RunSpec
from bench.settings.shift_options import Budget, budget_of, budgets_of, has_options, tuned_options
from bench.settings.stock_size import rates_for
from bench.shifts.catalog import Family
from methods import METHODS
from methods.table import MethodRow

_COMPARED_MIXES = ("uniform", "greedy", "best", "ensemble")
_HELD_OUT = 0.02


class Described(Protocol):
    """What decides the options of methods on a shift."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    @property
    def classes(self) -> int: ...


@dataclass(frozen=True)
class MethodOptions:
    """The options of methods on a shift and a device, for a classifier with norms of one kind (bn, gn, ln).

    `weights` is the number of weights in the encoder of the stock; None for a ready classifier.
    """

    spec: RunSpec
    shift: Described
    norm: str
    device: str
    weights: int | None = None

    def config(self, row: MethodRow) -> Any:
        """Return a method's frozen options. Raises UsageError for unknown options and invalid values."""
        return build_config(row, self._given(row))

    def _given(self, row: MethodRow) -> dict[str, Any]:
        """Return the options that override a method's defaults; later sources override earlier ones.

        The sources are the machine and the flags, the size of the stock (recipes on shifts without options of their
        own), the budget of the run, published options for the data and norms or the nearest ones, options tuned on the
        shift, and the options of the run.
        """
        known: set[str] = set()
        start: dict[str, Any] = {}
        if row.kind == "recipe":
            config = load_object(row.path).Config
            known = {field.name for field in fields(config)}
            start = self._training() if row.starts_as is None else self._given(METHODS[row.starts_as])
            start = {**self._of_the_stock(config), **start}
        given = {
            **{key: value for key, value in start.items() if key in known},
            **self._budgeted(row),
            **self._published(row).options,
            **self._tuned(row),
        }
        given = {**given, **self._headed(row, known, given), **self._asked(row)}
        return {**_compared(given), **given} if self.spec.with_baselines and "mixes" in known else given

    @property
    def budget(self) -> Budget | None:
        """The budget of the run; None on a shift without budgets."""
        other = self.spec.pool is not None and not budgets_of(self.shift.name)  # the budget is that of the pool
        return None if other else budget_of(self.shift.name, self.spec.budget)

    def _of_the_stock(self, config: type) -> Mapping[str, Any]:
        """Return rates for the size of the stock, on photographs without options of their own."""
        own = self.weights is None or self.shift.family != "imagenet" or has_options(self.shift.name)
        return {} if own or self.weights is None else rates_for(self.weights, config)

    def _budgeted(self, row: MethodRow) -> Mapping[str, Any]:
        budget = self.budget
        return budget.options.get(row.options_of or row.name, {}) if budget is not None else {}

    def _published(self, row: MethodRow) -> PublishedOptions:
        if row.kind != "adapter":
            return NOTHING
        cls = load_object(row.path)
        data = DataKind(self.shift.name, self.shift.family, self.shift.classes)
        return published(cls.presets, cls.rate_rules, data, self.norm, self.spec.batch_size)

    def _tuned(self, row: MethodRow) -> Mapping[str, Any]:
        return tuned_options(self.shift.name, row.options_of or row.name)

    def _asked(self, row: MethodRow) -> Mapping[str, Any]:
        return self.spec.options.get(row.options_of or row.name, {})

    def _chosen(self, row: MethodRow) -> dict[str, Any]:
        """Return the options tuned on the shift, and over them those of the run."""
        return {**self._tuned(row), **self._asked(row)}

    def _headed(self, row: MethodRow, known: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that --head stands for: a soup mixes encoders, by the ways that can mix these.

        Raises UsageError for a recipe that is a way of fine-tuning.
        """
        head = self.spec.head
        if head == "fine-tuned" or row.kind == "adapter":
            return {}
        if "head" not in known:
            raise UsageError(f"--head {head}: {row.name} trains in a way of its own; leave it or --head out")
        if "order" not in known:
            return {"head": head}
        from methods.selfsoup.mixing_options import MIXES

        def mixes_encoders(text: str) -> bool:
            kind = MIXES.get(text.partition(":")[0])  # None for a grid of shares
            return kind is None or kind.of != "classifiers"

        mixes = [text for text in given.get("mixes", ()) if mixes_encoders(text)]
        return {
            "head": head,
            "order": "soup_then_tune",
            **({"mixes": mixes or ["uniform"]} if "mixes" in given else {}),
        }

    def note(self, row: MethodRow) -> str:
        """Say which options are those published for other data or norms; "" if none are."""
        if not (found := borrowed(self._published(row), self._chosen(row))):
            return ""
        where = f"{self.shift.name} on {self.norm}"
        return f"{row.name}: no published options for {where}: using {found} (bench tune chooses better)"

    def _training(self) -> dict[str, Any]:
        """Return the training options that machine and flags decide: bf16 on GPUs that are fast at it, and compile."""
        on_gpu = self.device.startswith("cuda")
        known = self.spec.launch != "slurm" and on_gpu and has_bf16(self.device)
        half = on_gpu and (self.spec.precision == "bf16" or (self.spec.precision == "auto" and known))
        return {**({"bf16": True} if half else {}), **({"compile": True} if self.spec.compile else {})}


def _compared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mixes that a comparison needs, unless a recipe's options set others."""
    if "mixes" in given or given.get("order", "tune_then_soup") != "tune_then_soup":
        return {}
    chosen_on_val = given.get("select_on") == "val" or "holdout" in given
    return {"mixes": _COMPARED_MIXES, **({} if chosen_on_val else {"holdout": _HELD_OUT})}
