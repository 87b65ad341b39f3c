"""`source`: the stock fine-tuned on clean labelled images, the baseline of every adaptation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.base import Job, Labelled, Recipe, Unlabelled, Unsupported
from methods.limits import FractionBelowOne
from methods.nets.weights import Weights
from methods.soups.soup import best_ingredient
from methods.training.finetune import FineTune, fine_tunings
from methods.training.heads import headed


@dataclass(frozen=True)
class SourceOptions(FineTune):
    """Options of the source classifier: those of methods.training.finetune.FineTune, and the choice of its rate.

    scales: fine-tune at each of these multiples of `lr` and keep the best; None for `lr` alone.
    holdout: fraction of the labelled images of each class that is held out to choose by; scales need it.
    """

    later: ClassVar[tuple[str, ...]] = ("scales", "holdout")

    scales: tuple[float, ...] | None = None
    holdout: FractionBelowOne | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        finite = all(0 <= scale < math.inf for scale in self.scales or (1.0,))
        self.check(finite and self.scales != (), "scales", "None or finite numbers of at least 0, at least one")


def source_classifier(stock: Weights, source: Labelled, options: SourceOptions) -> Job:
    """Return the job of the source classifier: the fine-tuned stock, or the best of several rates on held-out images.

    Raises Unsupported for several rates without held-out images.
    """
    scales = options.scales or (1.0,)
    rest, held_out = source.split(options.holdout) if options.holdout else (source, None)
    tuned = fine_tunings([stock] * len(scales), stock, rest, options, scales)
    if len(tuned) == 1:
        return tuned[0]
    if held_out is None:
        raise Unsupported("the best of several scales is chosen on held-out images; set holdout, as in 0.02")
    return Job(best_ingredient, None, tuple(tuned), held_out, f"best of {len(tuned)} fine-tunings of the stock")


class SourceOnly(Recipe):
    """Linear probe, then full fine-tuning (LP-FT; Kumar et al. 2022, arXiv:2202.10054) of the stock on clean images."""

    search = {"lr": (1e-3, 2e-3, 3e-3, 4e-3), "epochs": (15, 30, 60)}

    @dataclass(frozen=True)
    class Config(SourceOptions):
        """Options of the source classifier.

        head: put a linear probe ("probe") or nearest neighbours ("knn") on the stock, which stays as it is; None to
            fine-tune it.
        """

        head: Literal["probe", "knn"] | None = None

        later: ClassVar[tuple[str, ...]] = ("head",)

    def plan(self, stock: Weights, source: Labelled, pool: Unlabelled | None) -> dict[str, Job]:
        if self.config.head is not None:
            return {"": headed(stock, stock, source, self.config.head, self.config.probe_l2)}
        return {"": source_classifier(stock, source, self.config)}
