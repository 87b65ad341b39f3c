"""Validate the settings of a run from command-line flags and run files. Does not import torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.core.conditions import CLEAN, Condition, Draws
from bench.core.errors import UsageError, nearest
from bench.core.invalid_input import in_words
from bench.settings.run_fields import RunFields
from bench.settings.shift_options import budget_of
from leaderboards.record import SUITE

_OTHER_NAMES = {"track": "tracker"}
"""Other names of settings that run files may use."""


class Slurm(BaseModel):
    """Resources that a job of `--launch slurm` requests; None means the cluster's default.

    gpus: GPUs that a training job is spread over; other jobs take one. time: minutes. mem: GB. requeues: how often a
    job that has run into `time` starts again, as a preempted one always does; trainings continue from their last
    checkpoint. other: further sbatch options by name, as in {"exclude": "node7"}.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = Field(default=240, ge=1)
    gpus: int = Field(default=0, ge=0)
    cpus: int = Field(default=1, ge=1)
    mem: float | None = Field(default=None, gt=0)
    requeues: int = Field(default=3, ge=0)
    other: dict[str, str] = Field(default_factory=dict)


class RunSpec(RunFields, BaseModel):
    """Resolved settings of one run; field names are the flags' names.

    `method`, `severity` and `corruption` take lists or comma-separated text ("1-5" is a range). `set` holds options by
    method name. `classes`, `label` and `part` define how a folder or table is read (None: from its layout; see
    `bench.shifts.data_root.Reading`). `pool` is the shift whose adapt half, under all of its corruptions,
    recipes with a pool learn from (None: the conditions of the run). `labels` is the number of labelled clean images a
    class (None: the default of the shift, 0: all of them). `budget` chooses among the budgets of the shift (None: the
    first, if it has any).
    `of_suite` names the suite, with its version, whose runs these are; records tell it, and it changes nothing else.
    `devices` is the number of GPUs, or of CPU processes, that share each training (None: one, or a SLURM job's GPUs).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    of_suite: str | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict, alias="set")
    slurm: Slurm = Field(default_factory=Slurm)

    if not TYPE_CHECKING:  # type checkers see the fields as arguments

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise UsageError(_sentence(error.errors()[0])) from None

    @model_validator(mode="before")
    @classmethod
    def _take_paths(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: str(value) if isinstance(value, PurePath) else value for name, value in values.items()}

    @field_validator("method", "corruption", mode="before")
    @classmethod
    def _split_text(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"must be a name or a list of names, not {value!r}")
        items = value.split(",") if isinstance(value, str) else value
        names = tuple(str(item).strip() for item in items if str(item).strip())
        if not names:
            raise ValueError("is empty; name at least one")
        return tuple(dict.fromkeys(names))

    @field_validator("severity", mode="before")
    @classmethod
    def _read_severity(cls, value: Any) -> Any:
        return read_severities(value)

    @field_validator("of_suite")
    @classmethod
    def _is_a_suite(cls, value: str | None) -> str | None:
        if value is not None and not SUITE.fullmatch(value):
            raise ValueError("is what a run of a suite writes, as in 'digits v1'; leave it out")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> RunSpec:
        if sum(given is not None for given in (self.model, self.stock, self.init_from)) > 1:
            raise ValueError("--model, --stock and --init-from exclude each other; give one")
        if self.rerun and self.only_failed:
            raise ValueError("--rerun and --only-failed exclude each other; give one")
        if self.launch == "serial" and self.jobs not in (None, 1):
            raise ValueError("--launch serial is one process; leave --jobs out")
        if self.launch != "slurm" and self.slurm != Slurm():
            raise ValueError("--slurm settings belong to --launch slurm; add it or leave them out")
        if (self.seeds or 1) % (self.ingredient_draws or 1):
            raise ValueError(
                f"--ingredient-draws {self.ingredient_draws} divides the seeds among so many sets of ingredients; give "
                f"--seeds as a multiple of it, not {self.seeds or 1}"
            )
        if 0 < self.slurm.gpus < (self.devices or 1):
            raise ValueError(f"--devices {self.devices} needs as many GPUs in a job; leave gpus out of --slurm")
        return self

    @property
    def recipe_shift(self) -> str:
        """The shift for which the options and the budget of recipes are chosen."""
        return self.pool or self.shift

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The `seeds` consecutive seeds from `seed` on: --seeds 3 runs 0, 1, 2."""
        return tuple(range(self.seed, self.seed + (self.seeds or 1)))

    def draws(self, seed: int) -> Draws:
        """Return the seeds of a trial: of its labels and stream, and of what it learns from images without labels."""
        if self.ingredient_draws is None and self.ingredient_seed is None:
            return Draws(seed, seed)
        return Draws(seed, (self.ingredient_seed or 0) + seed % (self.ingredient_draws or 1))

    def conditions(self, corruptions: tuple[str, ...]) -> tuple[Condition, ...]:
        """Return clean, then the given corruptions at each severity of the run."""
        return (CLEAN, *(Condition(name, level) for level in self.severity for name in corruptions))


def read_severities(value: Any) -> tuple[float, ...]:
    """Parse severities from 5, "3,5", "1-5" or a sequence of numbers. Raises ValueError for anything else."""
    if isinstance(value, str):
        low, dash, high = value.partition("-")
        if dash and low.strip().isdigit() and high.strip().isdigit():
            value = list(range(int(low), int(high) + 1))
        else:
            value = [part for part in value.split(",") if part.strip()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    try:
        levels = tuple(dict.fromkeys(float(level) for level in value))
    except (TypeError, ValueError):
        raise ValueError("takes numbers from 1 to 5, as in 5, 3,5 or 1-5") from None
    if not levels or any(not 0 < level <= 5 for level in levels):
        raise ValueError("takes numbers above 0 and up to 5, as in 5, 3,5 or 1-5")
    return levels


def make_spec(*layers: Mapping[str, Any]) -> RunSpec:
    """Merge settings, where later layers override earlier ones and `set` merges by option, and validate them.

    The settings of the run's budget come before all layers. Raises UsageError for unknown, missing or invalid settings.
    """
    return validate(merge(*layers))


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings by their field names, with `set`. Raises UsageError for unknown ones."""
    merged: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for key, value in layer.items():
            name = key.replace("-", "_")
            name = _OTHER_NAMES.get(name, name)
            nearest(name, [*(field for field in RunSpec.model_fields if field != "options"), "set"], "setting")
            if name == "set":
                if not isinstance(value, Mapping):
                    raise UsageError(
                        f"set must hold a table of options for each method, as in [set.tent], not {value!r}"
                    )
                for method, values in value.items():
                    if not isinstance(values, Mapping):
                        raise UsageError(f"set.{method} must be a table of options, as in [set.{method}]")
                    options.setdefault(method, {}).update(values)
            elif value is not None:
                merged[name] = value
    return merged | {"set": options}


def validate(merged: Mapping[str, Any]) -> RunSpec:
    """Return the spec of merged settings. Raises UsageError for missing and invalid ones."""
    for needed in ("method", "shift"):
        if needed not in merged:
            raise UsageError(
                f"no {needed} given; add --{needed} NAME (see `bench list {needed}s`) or try `bench run --demo`"
            )
    budget = budget_of(str(merged.get("pool") or merged["shift"]), merged.get("budget"))
    if budget is not None:
        merged = {**budget.settings, **merged}
    return RunSpec(**merged)


def _sentence(error: Any) -> str:
    """Return what is wrong with a setting, named as its flag; parts of `slurm` as the flag takes them."""
    name, *inner = (str(step) for step in error["loc"]) if error["loc"] else ("",)
    known = [*Slurm.model_fields] if name == "slurm" else [*(f for f in RunSpec.model_fields if f != "options"), "set"]
    if error["type"] == "extra_forbidden":
        nearest(inner[-1] if inner else name, known, "setting of slurm" if inner else "setting")
    if error["type"] == "missing":
        return f"no {name} given; add {name}=NAME (see `bench list {name}s`)"
    flag = f"--{name.replace('_', '-')} " if name else ""
    return f"{flag}{'='.join([*inner, ''])[:-1] + ' ' if inner else ''}{in_words(error)}"


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML run file, whose keys are the flags' names. Raises UsageError."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        hint = "did you mean --demo?" if str(path) == "demo" else "choose one of runs/ or write your own"
        raise UsageError(f"no run file {path}; {hint}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a run file, as runs/digits-c.toml") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a TOML file: it is no text in UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from None
