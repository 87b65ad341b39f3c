"""`supervised_soup`: a model soup of several fine-tunings of one stock, on clean labelled images only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.finetune import FineTune, fine_tunings
from methods.soup import uniform_soup
from methods.stock import Weights
from methods.table import Access


class SupervisedSoup(Recipe):
    """Uniform average of fine-tunings of one stock at several learning rates (Wortsman et al. 2022, arXiv:2203.05482).

    All start from the same linear-probe head, without which their heads could not be averaged.
    """

    access: ClassVar[Access] = Access()
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (1e-3, 2e-3, 3e-3, 4e-3),
        "scales": ((0.5, 0.75, 1.0, 1.25), (1.0, 1.0, 1.0, 1.0)),
        "epochs": (15, 30, 60),
    }

    @dataclass(frozen=True)
    class Config(FineTune):
        """Options of fine-tuning; see methods.finetune.FineTune.

        scales: one fine-tuning for each entry, at that multiple of `lr`.
        """

        scales: tuple[float, ...] = (0.6, 0.8, 1.0, 1.5)

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        tuned = fine_tunings([stock] * len(self.config.scales), stock, source, self.config, self.config.scales)
        return {"": Job(uniform_soup, None, tuple(tuned), None, "supervised soup")}
