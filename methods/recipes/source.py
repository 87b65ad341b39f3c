"""`source`: the stock fine-tuned on clean labelled images, the baseline of every adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import Weights
from methods.table import Access
from methods.training.finetune import FineTune, fine_tunings


class SourceOnly(Recipe):
    """Linear probe, then full fine-tuning (LP-FT; Kumar et al. 2022, arXiv:2202.10054) of the stock on clean images."""

    access: ClassVar[Access] = Access()
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (1e-3, 2e-3, 3e-3, 4e-3),
        "epochs": (15, 30, 60),
    }

    @dataclass(frozen=True)
    class Config(FineTune):
        """Options of fine-tuning; see methods.training.finetune.FineTune."""

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        return {"": fine_tunings([stock], stock, source, self.config, (1.0,))[0]}
