"""COME, held against BlueWhaleLab/COME.

The release writes its uncertainty for 1000 classes, so the golden models get a head of so many; the logits of the first
ten are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, fisher_information, play_with_resets, release, with_copies
from torch import Tensor, nn

from methods.adapters.come import ComeEata, ComeSar, ComeTent

CLASSES, STORED = 1000, 10
LIMIT = 0.4 * math.log(CLASSES)
BETA = 1000.0


def many_classes(architecture: str, sharpness: float, golden: Golden) -> nn.Module:
    """A golden model whose ten classes are sharper, beside 990 classes that are drawn."""
    model: Any = golden.model(architecture)
    known = model.get_classifier()
    wide = nn.Linear(known.in_features, CLASSES)
    drawn = torch.randn(wide.weight.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wide.weight.copy_(0.1 * drawn)
        wide.bias.zero_()
        wide.weight[:STORED] = sharpness * known.weight
        wide.bias[:STORED] = sharpness * known.bias
    setattr(model, "fc" if hasattr(model, "fc") else "head", wide)
    return nn.Module.eval(model)


def three_times(golden: Golden) -> Tensor:
    return golden.stream.repeat(3, 1, 1, 1, 1)


def first_classes(resets: Sequence[int], run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    return play_with_resets(resets, run, model, stream, source)[..., :STORED]


def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def official_tent(lr: float, episodic: bool, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    tent = release("COME", "tent_come")
    model = tent.configure_model(model)
    optimizer = sgd(tent.collect_params(model)[0], lr)
    adapted = tent.Tent_COME(model, optimizer, None, steps=2, episodic=episodic)
    return torch.stack([adapted(batch).detach()[:, :STORED] for batch in stream])


def official_eata(lr: float, epsilon: float, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    eata = release("COME", "eata_come")
    model = eata.configure_model(model)
    optimizer = sgd(eata.collect_params(model)[0], lr)
    fishers = fisher_information(model, source)
    adapted = eata.EATA_COME(model, optimizer, fishers, fisher_beta=BETA, e_margin=LIMIT, d_margin=epsilon)
    logits, reliable, used = [], [0], [0]
    for batch in stream:
        logits.append(adapted(batch).detach()[:, :STORED])
        reliable.append(adapted.num_samples_update_1)
        used.append(adapted.num_samples_update_2)
    counts = torch.tensor([reliable, used]).diff(dim=1)
    assert counts[0, 0] == counts[1, 0] > 0
    assert ((counts[1] < counts[0]) & (counts[0] < 16) & (counts[1] > 0)).any()
    return torch.stack(logits)


def play_sar(lr: float, margin: float, model: nn.Module, stream: Tensor) -> tuple[Tensor, list[Tensor], list[int]]:
    """Logits, entropies at the first and at the second pass in turn, and the places of the batches with a reset."""
    sar, sam = release("COME", "sar_come"), release("COME", "sam")
    model = sar.configure_model(model)
    optimizer = sam.SAM(sar.collect_params(model)[0], torch.optim.SGD, lr=lr, momentum=0.9)
    adapted = sar.SAR_COME(model, optimizer, margin_e0=margin)
    entropies: list[Tensor] = []
    resets: list[int] = []
    entropy, restore = sar.dirichlet_entropy, adapted.reset

    def noted(outputs: Tensor) -> Tensor:
        found: Tensor = entropy(outputs)
        entropies.append(found.detach())
        return found

    def counted() -> None:
        resets.append(len(entropies) // 2)
        restore()

    sar.dirichlet_entropy, adapted.reset, sar.print = noted, counted, lambda *_: None
    logits = torch.stack([adapted(batch).detach()[:, :STORED] for batch in stream])
    return logits, entropies, resets


def official_sar(lr: float, second_filter: bool, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    logits, entropies, resets = play_sar(lr, LIMIT, model, stream)
    assert resets, "no reset on this stream"
    assert 1 < resets[0] < len(stream)
    if second_filter:
        pairs = zip(entropies[::2], entropies[1::2], strict=True)
        assert any(((first < LIMIT) & (second >= LIMIT)).any() for first, second in pairs)
    return logits


def official_sar_without_images(lr: float, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    logits, entropies, _ = play_sar(lr, 0.5 * LIMIT, model, stream)
    reliable = [bool((first < 0.5 * LIMIT).any()) for first in entropies[::2]]
    assert reliable == [False, *[True] * 4, False]
    return logits


def runs(
    model: str, sar_sharpness: float, sar_lr: float, sharpness: float, lr: float, epsilon: float
) -> Iterator[OfficialRun]:
    build = partial(many_classes, f"test_{model}", sharpness)
    steps = "two steps on each batch"
    for name, enters, resets in (("", (steps,), ()), ("-episodic", (steps, "reset before each batch"), range(6))):
        yield OfficialRun(
            f"come-tent{name}-{model}",
            ComeTent,
            {"lr": lr, "steps": 2},
            build,
            "BlueWhaleLab/COME/tent_come.py",
            enters,
            partial(official_tent, lr, bool(resets)),
            double=True,
            ours=partial(first_classes, resets),
        )
    yield OfficialRun(
        f"come-eata-{model}",
        ComeEata,
        {"lr": lr, "epsilon": epsilon, "beta": BETA, "fisher_images": 128},
        build,
        "BlueWhaleLab/COME/eata_come.py",
        ("first reliable images", "unreliable images", "redundant images", "Fisher information"),
        partial(official_eata, lr, epsilon),
        double=True,
        ours=partial(first_classes, ()),
    )
    yield OfficialRun(
        f"come-sar-none-{model}",
        ComeSar,
        {"lr": 0.01, "margin": 0.2, "official_quirks": True},
        build,
        "BlueWhaleLab/COME/sar_come.py",
        ("no reliable image before the first update", "none after it"),
        partial(official_sar_without_images, 0.01),
        with_copies,
        double=True,
        ours=partial(first_classes, ()),
    )
    second_filter = model == "resnet"
    yield OfficialRun(
        f"come-sar-{model}",
        ComeSar,
        {"lr": sar_lr, "official_quirks": True},
        partial(many_classes, f"test_{model}", sar_sharpness),
        "BlueWhaleLab/COME/sar_come.py",
        ("reset below 0.2", *(["images no longer reliable at the second pass"] if second_filter else [])),
        partial(official_sar, sar_lr, second_filter),
        three_times,
        double=True,
        ours=partial(first_classes, ()),
    )


RUNS = [
    *runs("resnet", sar_sharpness=4.0, sar_lr=0.01, sharpness=1.5, lr=0.01, epsilon=0.4),
    *runs("vit", sar_sharpness=9.0, sar_lr=0.05, sharpness=4.0, lr=0.001, epsilon=0.8),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
