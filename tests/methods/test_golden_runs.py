"""Every golden run of the entropy family, and mutants that the comparison must tell apart.

The stored logits are outputs of the authors' releases (tests/golden); nothing here was made by our code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.base import Adapter
from methods.deyo import Deyo
from methods.eata import Eata
from methods.eta import Eta
from methods.rdumb import Rdumb
from methods.rpl import Rpl
from methods.sar import Sar

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
}


def difference(golden: Any, run: str, adapter: type[Adapter] | None = None, seed: int = 7, **changed: Any) -> float:
    chosen, options = RUNS[run]
    chosen = adapter or chosen
    model = golden.model(run.partition("__")[0])
    config = chosen.Config(**{**options, **changed})
    found: float = golden.difference(chosen(model, config, torch.Generator().manual_seed(seed)), run)
    return found


@pytest.mark.parametrize("run", RUNS)
def test_matches_the_official_logits(golden: Any, run: str) -> None:
    assert difference(golden, run) <= 1e-4
