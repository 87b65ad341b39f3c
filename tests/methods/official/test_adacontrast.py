"""AdaContrast, held against the online port of mariodoebler/test-time-adaptation.

Its queue, bank, votes and losses are those of the authors' DianCh/AdaContrast, which trains for epochs on all images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun
from torch import Tensor, nn
from torch.nn.functional import normalize
from zoo import CLASSES, double_stream, options, seeded, split_by_children, without_gpu, wrapped, zoo

from methods.adapters.adacontrast import _WEAK_AREA, AdaContrast
from methods.views.moco_views import strong_view
from methods.views.ssl_views import Views


class SharedHead(nn.Module):
    """A transformer's part before its head, as the release wraps one of torchvision, whose head it shares."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return features


def small_batches(golden: Golden) -> Tensor:
    """12 batches of eight."""
    return double_stream(golden).flatten(0, 1).unflatten(0, (-1, 8))


def official(given: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cfg = options(
        optim={"LR": given["lr"], "WD": given["weight_decay"], "METHOD": "SGD", "NESTEROV": True},
        contrast={"TEMPERATURE": given["temperature"]},
        m_teacher={"MOMENTUM": given["teacher_momentum"]},
        adacontrast={"QUEUE_SIZE": given["queue"], "NUM_NEIGHBORS": given["neighbours"]},
    )
    adapted = build_split(cfg, model)
    draws = seeded()
    weaken = Views((_WEAK_AREA, _WEAK_AREA), (1, 1), True, three_augment=False, jitter=0)
    votes: list[str | None] = []
    full: list[bool] = []
    wraps: list[bool] = []
    logits = []
    # The release counts images until there are 1024, a number in its code; it starts here as if it had seen some.
    adapted.first_X_samples = 1024 - given["bank_start"]
    for number, images in enumerate(stream):
        weak = weaken(images.float() * 255, draws).to(images)
        if number == 0:
            drawn = torch.randn(given["queue"], adapted.model.mem_feat.shape[0], generator=draws)
            adapted.model.mem_feat = normalize(drawn.to(images), dim=1).T.clone()
            adapted.model.mem_labels = torch.randint(CLASSES, (given["queue"],), generator=draws)
            adapted.banks = {
                name: value.to(images) if isinstance(value, Tensor) else value for name, value in adapted.banks.items()
            }
        full.append(len(adapted.banks["features"]) >= given["queue"])
        before = adapted.model.queue_ptr
        logits.append(adapted([images, weak, *(strong_view(images, draws) for _ in range(2))]).detach())
        votes.append(adapted.refine_method)
        wraps.append(adapted.model.queue_ptr < before)
    assert set(votes) == {None, "nearest_neighbors"}
    assert any(wraps)
    assert sum(full) > given["queue"] // len(stream[0]) + 1  # until the oldest are replaced, after the newest
    return torch.stack(logits)


def build_split(cfg: Any, model: nn.Module) -> Any:
    """Build it with a head that is learnt, as for the models of torchvision that the release names."""
    inner: Any = model.model
    module = zoo("adacontrast")
    if hasattr(inner, "fc"):
        model = split_by_children(model)
    else:
        module.BaseModel.__init__.__globals__["split_up_model"] = lambda *_, **__: (SharedHead(inner), inner.head)
    with without_gpu():
        return module.AdaContrast(cfg, model, CLASSES)


GIVEN: dict[str, Any] = {
    "lr": 2e-4,
    "weight_decay": 1e-2,
    "temperature": 0.07,
    "teacher_momentum": 0.9,
    "queue": 36,
    "bank_start": 12,
    "neighbours": 3,
}
RUNS = [
    OfficialRun(
        f"adacontrast-{model}",
        AdaContrast,
        GIVEN,
        partial(wrapped, f"test_{model}"),
        "mariodoebler/test-time-adaptation/classification/methods/adacontrast.py",
        (
            "labels of the model, then of the neighbours",
            "labels of the queue anew before the contrast",
            "the queue goes round",
            "the bank full: the newest batch replaced, then the oldest",
        ),
        partial(official, GIVEN),
        small_batches,
    )
    for model in ("resnet", "vit")
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
