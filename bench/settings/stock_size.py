"""Default learning rates by the size of the stock, for photographs without options of their own. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

SMALL = 1_000_000
"""Up to this many weights in the encoder, the defaults of the methods hold, which were chosen on such stocks."""

BASE = 85_798_656
"""Weights of the encoder of ViT-B/16 at 224 px, for which Fuller et al. 2026 (arXiv:2602.02890) publish rates."""

AT_BASE = {"lr": 1e-4, "rate": 2.2e-5}
"""The middle of their rates at this size: {6e-5, 8e-5, 1e-4, 1.5e-4} of fine-tunings, {1, 2, 3, 4}e-5 of MAE."""


def rate_at(weights: int, small: float, base: float) -> float:
    """Return a learning rate for an encoder of this many weights: `small` up to SMALL, `base` at BASE.

    In between and beyond a power law through both, which falls as networks grow.
    """
    share = math.log(max(weights, SMALL) / SMALL) / math.log(BASE / SMALL)
    return float(small * (base / small) ** share)


def rates_for(weights: int, config: type) -> dict[str, float]:
    """Return the default rates of a recipe's options (`lr` of fine-tuning, `rate` of ingredients) for a stock.

    Empty for a small stock, and for options that are neither.
    """
    from methods.selfsoup.recipe import SoupOptions
    from methods.training.finetune import FineTune

    if weights <= SMALL:
        return {}
    defaults: dict[str, Any] = {field.name: field.default for field in fields(config)}
    scaled = [
        name
        for name, kind in (("lr", FineTune), ("rate", SoupOptions))
        if issubclass(config, kind) and name in defaults
    ]
    return {name: float(f"{rate_at(weights, defaults[name], AT_BASE[name]):.2g}") for name in scaled}
