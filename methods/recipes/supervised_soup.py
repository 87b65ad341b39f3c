"""`supervised_soup`: a model soup of several fine-tunings of one stock, on clean labelled images only."""

from __future__ import annotations

from dataclasses import dataclass

from methods.base import Job, Labelled, Recipe, Unlabelled
from methods.nets.weights import Weights
from methods.selfsoup.mixing_options import Mixing, mix_classifiers, selection
from methods.training.finetune import fine_tunings, probe_of


class SupervisedSoup(Recipe):
    """Uniform average of fine-tunings of one stock at several learning rates (Wortsman et al. 2022, arXiv:2203.05482).

    All start from the same linear-probe head; otherwise their heads could not be averaged.
    """

    search = {
        "lr": (1e-3, 2e-3, 3e-3, 4e-3),
        "scales": ((0.5, 0.75, 1.0, 1.25), (1.0, 1.0, 1.0, 1.0)),
        "epochs": (15, 30, 60),
    }

    @dataclass(frozen=True)
    class Config(Mixing):
        """Options of fine-tuning and mixing; one fine-tuning for each entry of scales."""

        scales: tuple[float, ...] = (0.6, 0.8, 1.0, 1.5)

    def plan(
        self, stock: Weights, source: Labelled, pool: Unlabelled | None, val: Labelled | None = None
    ) -> dict[str, Job]:
        config = self.config
        source, held_out = selection(source, val, config)
        tuned = fine_tunings([stock] * len(config.scales), stock, source, config, config.scales)
        return mix_classifiers(tuned, probe_of(stock, source, config), source, held_out, config)
