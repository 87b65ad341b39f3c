"""LAME, held against fiveai/LAME."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, checkouts, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.lame import Lame
from methods.nets.feature_head_split import split


class Registry:
    """What the release collects its classes in."""

    def register(self) -> Callable[[type], type]:
        return lambda found: found


def lame_module() -> Any:
    # Its package imports data loading and logging that one adapter does not need.
    package = {"__path__": [str(checkouts() / "LAME" / "src" / "adaptation")]}
    stand_ins = {
        "src.adaptation": package,
        "src.adaptation.non_adaptive": {"NonAdaptiveMethod": object},
        "src.adaptation.build": {"ADAPTER_REGISTRY": Registry()},
    }
    return release("LAME", "src.adaptation.lame", stand_ins)


class Backbone(nn.Module):
    """A classifier with the outputs that the release asks of one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parts, self.backbone = split(model.eval()), SimpleNamespace()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.backbone.out, logits = self.parts(images)
        return {"probas": logits.softmax(1)}

    def format_result(self, images: Tensor, probabilities: Tensor) -> Tensor:
        return probabilities


def official(
    options: Mapping[str, Any], converges: set[bool], model: nn.Module, stream: Tensor, source: Tensor
) -> Tensor:
    module = lame_module()
    adapted = module.LAME.__new__(module.LAME)
    affinity = {"rbf": module.rbf_affinity, "knn": module.kNN_affinity, "linear": module.linear_affinity}
    adapted.affinity = affinity[options["affinity"]](sigma=1.0, knn=options.get("neighbours", 5))
    adapted.force_symmetry = False
    adapted.model = Backbone(model)
    adapted.metric_hook = SimpleNamespace(scalar_dic=defaultdict(list))
    said: list[str] = []
    module.logger = SimpleNamespace(info=said.append)
    rows, stopped = [], set()
    for batch in stream:
        before = len(said)
        rows.append(adapted.run_step(batch))
        stopped.add(len(said) > before)
    assert stopped == converges, stopped
    return torch.stack(rows)


def probabilities(run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    """The release gives probabilities, ours their logarithm."""
    return play_with_resets((), run, model, stream, source).exp()


def fours(golden: Golden) -> Tensor:
    return golden.stream.unflatten(1, (4, 4)).flatten(0, 1)


def run(name: str, model: str, converges: set[bool], small: bool = False, **options: Any) -> OfficialRun:
    enters = [f"{options['affinity']} affinity"]
    enters += ["batch smaller than the number of neighbours"] if small else []
    enters += [{True: "energy converges", False: "all 100 steps"}[kind] for kind in sorted(converges)]
    return OfficialRun(
        f"lame-{name}-{model}",
        Lame,
        options,
        f"test_{model}",
        "fiveai/LAME/src/adaptation/lame.py",
        enters,
        partial(official, options, converges),
        fours if small else lambda golden: golden.stream,
        ours=probabilities,
    )


RUNS = [
    run("rbf", "resnet", {True}, affinity="rbf", neighbours=3),
    run("knn", "resnet", {True}, affinity="knn", neighbours=3),
    run("linear", "resnet", {True}, affinity="linear"),
    run("small", "resnet", {True, False}, small=True, affinity="knn", neighbours=5),
    run("small-rbf", "vit", {True}, small=True, affinity="rbf", neighbours=5),
    run("linear", "vit", {True}, affinity="linear"),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
