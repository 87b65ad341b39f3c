"""Every golden run, also after a reset, and mutants that the comparison must tell apart.

The stored logits are outputs of the authors' releases (tests/golden); nothing here was made by our code.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.bn import BatchNormStatistics
from methods.adapters.deyo import Deyo
from methods.adapters.eata import Eata
from methods.adapters.eta import Eta
from methods.adapters.lame import Lame
from methods.adapters.rdumb import Rdumb
from methods.adapters.rpl import Rpl
from methods.adapters.sar import Sar
from methods.adapters.t3a import T3A
from methods.adapters.tent import Tent
from methods.base import Adapter, Source
from methods.norms import norm_parameters
from methods.online import NormAdapter


class LameProbabilities(Lame):
    """The stored run holds probabilities, of which LAME gives the logarithm."""

    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images).exp()


ETA = {"lr": 1e-2, "epsilon": 0.4}
RUNS: dict[str, tuple[type[Adapter], dict[str, Any]]] = {
    "test_resnet__eta": (Eta, ETA),
    "test_vit__eta": (Eta, ETA),
    "test_resnet__eata": (Eata, {**ETA, "beta": 1000.0, "fisher_images": 128}),
    "test_vit__eata": (Eata, {**ETA, "beta": 1000.0, "fisher_images": 128}),
    "test_resnet__sar": (Sar, {"official_quirks": True}),
    "test_vit__sar": (Sar, {"official_quirks": True}),
    "test_resnet__sar_lr0.01": (Sar, {"lr": 1e-2, "official_quirks": True}),
    "test_vit__sar_lr0.01": (Sar, {"lr": 1e-2, "official_quirks": True}),
    "test_resnet__deyo": (Deyo, {"lr": 1e-2, "plpd": 0.2, "official_names": True}),
    "test_vit__deyo": (Deyo, {"lr": 1e-2, "plpd": 0.2, "official_names": True}),
    "test_resnet__rpl": (Rpl, {"lr": 5e-4}),
    "test_resnet__rdumb": (Rdumb, {"epsilon": 0.4}),
    "test_resnet__norm": (BatchNormStatistics, {}),
    "test_resnet__tent": (Tent, {}),
    "test_vit__tent": (Tent, {}),
    "test_resnet__tent_lr0.01": (Tent, {"lr": 1e-2}),
    "test_vit__tent_lr0.01": (Tent, {"lr": 1e-2}),
    "test_resnet__lame": (LameProbabilities, {}),
    "test_vit__lame": (LameProbabilities, {}),
    "test_resnet__t3a": (T3A, {"official_quirks": True}),
    "test_vit__t3a": (T3A, {"official_quirks": True}),
}


def build(
    golden: Any, run: str, adapter: type[Adapter] | None = None, seed: int = 7, **changed: Any
) -> Callable[[], Adapter]:
    chosen, options = RUNS[run]
    kind = adapter or chosen
    config = kind.Config(**{**options, **changed})
    return lambda: kind(golden.model(run.partition("__")[0]), config, torch.Generator().manual_seed(seed))


def difference(
    golden: Any,
    run: str,
    adapter: type[Adapter] | None = None,
    seed: int = 7,
    after_reset: bool = False,
    **changed: Any,
) -> float:
    made = build(golden, run, adapter, seed, **changed)()
    found: float = golden.difference(made, run, after_reset=after_reset)
    return found


def test_every_stored_run_is_compared() -> None:
    stored = json.loads((Path(__file__).parents[2] / "golden" / "golden.json").read_text())
    assert RUNS.keys() == stored["runs"].keys()


# That reset replays a stream bit by bit is a rule of the conformance suite.
@pytest.mark.parametrize("after_reset", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", RUNS)
def test_matches_the_official_logits(golden: Any, run: str, after_reset: bool) -> None:
    assert golden.agrees(build(golden, run), run, after_reset=after_reset)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["test_resnet__tent_lr0.01", "test_vit__tent_lr0.01", "test_resnet__eta"])
def test_momentum_kept_over_a_reset_is_told_apart(golden: Any, run: str) -> None:
    class KeepsMomentum(RUNS[run][0]):  # type: ignore[misc]
        def reset(self) -> None:
            kept = copy.deepcopy(self.optimizer.state_dict())
            super().reset()
            self.optimizer.load_state_dict(kept)

    assert golden.agrees(build(golden, run, KeepsMomentum), run)
    assert not golden.agrees(build(golden, run, KeepsMomentum), run, after_reset=True)


class Nesterov(NormAdapter):
    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters, lr=self.config.lr, momentum=self.config.momentum, nesterov=True)


class NesterovEta(Nesterov, Eta):
    pass


class NesterovEata(Nesterov, Eata):
    pass


class NesterovSar(Nesterov, Sar):
    pass


class NesterovDeyo(Nesterov, Deyo):
    pass


class NesterovRpl(Nesterov, Rpl):
    pass


class NesterovRdumb(Nesterov, Rdumb):
    pass


class MeanOverAllImages(Eta):
    @torch.no_grad()
    def select(self, logits: Tensor, uncertainty: Tensor, limit: float) -> Tensor:
        before = self.mean
        rows = super().select(logits, uncertainty, limit)
        everything = logits.softmax(-1).mean(0)
        self.mean = 0.9 * before + 0.1 * everything if len(before) else everything
        return rows


class MeanOverReliableImages(Eta):
    @torch.no_grad()
    def select(self, logits: Tensor, uncertainty: Tensor, limit: float) -> Tensor:
        before = self.mean
        rows = super().select(logits, uncertainty, limit)
        reliable = logits[uncertainty < limit].softmax(-1).mean(0)
        self.mean = 0.9 * before + 0.1 * reliable if len(before) else reliable
        return rows


class FisherPerImage(Eata):
    def measure_fisher(self, source: Source) -> list[Tensor]:
        class OneByOne(Source):
            def __iter__(self) -> Any:
                for batch in super().__iter__():
                    yield from (batch._replace(images=image[None]) for image in batch.images)

        return super().measure_fisher(OneByOne(source.read, source.batches))


class FisherOfSourceStatistics(Eata):
    def measure_fisher(self, source: Source) -> list[Tensor]:
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(lambda norm, _: norm.eval() and None) for norm in norms]
        try:
            return super().measure_fisher(source)
        finally:
            for hook in hooks:
                hook.remove()


class AllLayersSar(Sar):
    def chosen(self) -> dict[str, nn.Parameter]:
        return norm_parameters(self.model)


class OneSelectionSar(Sar):
    """Keeps in the second pass what was reliable in the first."""

    def uncertainty(self, logits: Tensor) -> Tensor:
        self.second = not getattr(self, "second", True)
        return super().uncertainty(logits)

    def _descend_from_above(self, images: Tensor, reliable: Tensor, limit: float) -> None:
        super()._descend_from_above(images, reliable, float("inf"))


class AllLayersDeyo(Deyo):
    def chosen(self) -> dict[str, nn.Parameter]:
        return norm_parameters(self.model)


class NoShuffle(Deyo):
    def fall_of_probability(self, images: Tensor, logits: Tensor) -> Tensor:
        return torch.ones(len(images))


def both(run: str, mutant: type[Adapter] | None = None, **changed: Any) -> list[tuple[str, type[Adapter] | None, Any]]:
    return [(f"{architecture}__{run}", mutant, changed) for architecture in ("test_resnet", "test_vit")]


# The stored runs of ETA and EATA on the transformer hold a single update, and no run of SAR a return to the source:
# restatements test what they cannot distinguish (test_eta.py, test_sar.py).
MUTANTS = [
    *both("eta", NesterovEta),
    *both("eta", margin=0.38),
    ("test_resnet__eta", MeanOverAllImages, {}),
    ("test_resnet__eta", MeanOverReliableImages, {}),
    ("test_resnet__eta", None, {"epsilon": 0.35}),
    ("test_resnet__eta", None, {"momentum": 0.89}),
    *both("eata", NesterovEata),
    ("test_resnet__eata", None, {"beta": 0.0}),
    ("test_resnet__eata", None, {"beta": 900.0}),
    ("test_resnet__eata", None, {"fisher_images": 112}),
    ("test_resnet__eata", FisherPerImage, {}),
    ("test_resnet__eata", FisherOfSourceStatistics, {}),
    *both("sar_lr0.01", NesterovSar),
    *both("sar_lr0.01", AllLayersSar),
    *both("sar_lr0.01", rho=0.0),
    *both("sar_lr0.01", rho=0.06),
    ("test_resnet__sar_lr0.01", OneSelectionSar, {}),
    *both("deyo", NesterovDeyo),
    *both("deyo", AllLayersDeyo),
    *both("deyo", NoShuffle),
    *both("deyo", seed=8),
    *both("deyo", plpd=0.3),
    *both("deyo", margin=0.4),
    *both("deyo", weight_margin=0.45),
    ("test_resnet__rpl", NesterovRpl, {}),
    ("test_resnet__rpl", None, {"q": 0.7}),
    ("test_resnet__rdumb", NesterovRdumb, {}),
    ("test_resnet__rdumb", None, {"interval": 2}),
    ("test_resnet__rdumb", None, {"epsilon": 0.3}),
]


# One mutant is quick; the others say how sharp the comparison is, which changes with the stored runs only.
@pytest.mark.parametrize(
    ("run", "mutant", "changed"),
    [pytest.param(*mutant, marks=() if place == 0 else pytest.mark.slow) for place, mutant in enumerate(MUTANTS)],
)
def test_the_comparison_tells_mutants_apart(
    golden: Any, run: str, mutant: type[Adapter] | None, changed: dict[str, Any]
) -> None:
    assert not golden.agrees(build(golden, run, mutant, **changed), run)
