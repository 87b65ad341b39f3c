"""PETAL, held against dhanajitb/petal; its posterior against torch's averages of models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from cotta_family import play
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from zoo import double, double_stream, labelled, play_labelled, seeded

from methods.adapters.common.teachers import learnable
from methods.adapters.petal import Petal


def official(kind: str, given: dict[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    """The release with our posterior: its own is trained in scripts that cannot be loaded."""
    ours = Petal(copy.deepcopy(model), Petal.Config(**given), seeded())
    ours.prepare(labelled(source.to(stream)))
    petal = release(f"petal/{kind}", "petal", {"my_transforms": {}})
    petal.get_tta_transforms = lambda: None
    means, variances = copy.deepcopy(model), copy.deepcopy(model)
    for of, values in ((means, ours.means), (variances, ours.variances)):
        for parameter, value in zip(learnable(of), values, strict=True):
            parameter.data.copy_(value)
    model, means, variances = (petal.configure_model(each) for each in (model, means, variances))
    parameters, _ = petal.collect_params(model)
    if kind == "imagenet":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=given["lr"], momentum=0.9, nesterov=True)
        fixed: dict[str, Any] = {}
    else:
        optimizer = torch.optim.Adam(parameters, lr=given["lr"], betas=(0.9, 0.999))
        fixed = {"mt_alpha": given["teacher_momentum"], "ap": given["threshold"]}
    named = {**fixed, "spw": given["strength"]}
    if given["by"] == "fisher":
        adapted = petal.PETALFim(model, means, variances, optimizer, perc=given["restore"], **named)
        return play(adapted, stream, given["threshold"], None, ours.generator)
    adapted = petal.PETALSRes(model, means, variances, optimizer, rst_m=given["restore"], **named)
    return play(adapted, stream, given["threshold"], given["restore"], ours.generator)


# The strengths move the logits by more than 1e-3.
CIFAR: dict[str, Any] = {
    "lr": 1e-3,
    "optimizer": "adam",
    "restore": 0.5,
    "threshold": 0.757,
    "symmetric": False,
    "teacher_momentum": 0.9,
    "strength": 1e-6,
    "posterior_epochs": 3,
    "by": "fisher",
}
IMAGENET: dict[str, Any] = {
    "lr": 0.01,
    "restore": 0.5,
    "threshold": 0.1,
    "teacher_momentum": 0.999,
    "strength": 1e-6,
    "posterior_epochs": 3,
    "by": "fisher",
}
RUNS = [
    OfficialRun(
        f"petal-{kind}-{by}",
        Petal,
        {**given, "by": by},
        double("test_resnet"),
        f"dhanajitb/petal/{kind}/petal.py",
        (*branches, "restoration by Fisher information" if by == "fisher" else "restoration under one mask"),
        partial(official, kind, {**given, "by": by}),
        stream,
        ours=play_labelled,
    )
    for kind, given, branches, stream in (
        ("cifar", CIFAR, ("views averaged", "one view"), lambda golden: double_stream(golden)[:3]),
        ("imagenet", IMAGENET, ("one view",), double_stream),
    )
    for by in ("fisher", "random")
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)


@contextmanager
def watched(seen: list[tuple[float, nn.Module]]) -> Iterator[None]:
    """Note the rate and a copy of the model after each epoch of the training on source images."""
    train = Petal._train

    def noted(self: Petal, model: nn.Module, source: Any, optimizer: torch.optim.Optimizer) -> None:
        train(self, model, source, optimizer)
        seen.append((optimizer.param_groups[0]["lr"], copy.deepcopy(model)))

    with mock.patch.object(Petal, "_train", noted):
        yield


def test_the_posterior_is_that_of_averaged_models_at_the_rates_of_the_script(golden: Golden) -> None:
    seen: list[tuple[float, nn.Module]] = []
    adapter = Petal(golden.model("test_resnet").double(), Petal.Config(), seeded())
    with watched(seen):
        adapter.prepare(labelled(golden.source.double()))
    scheduled = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1 * 0.2**3)
    scheduler = torch.optim.swa_utils.SWALR(scheduled, swa_lr=0.01, anneal_epochs=3, anneal_strategy="linear")
    rates = [scheduled.param_groups[0]["lr"]]
    for _ in range(4):
        rates.append(scheduled.param_groups[0]["lr"])
        scheduled.step()
        scheduler.step()
    assert [rate for rate, _ in seen] == pytest.approx(rates)
    average = AveragedModel(seen[1][1])
    squares = AveragedModel(seen[1][1])
    for _, model in seen[1:]:
        average.update_parameters(model)
        squared = copy.deepcopy(model)
        for parameter in squared.parameters():
            parameter.data.square_()
        squares.update_parameters(squared)
    for ours, theirs in zip(adapter.means, learnable(average.module), strict=True):
        torch.testing.assert_close(ours.double(), theirs.data, rtol=0, atol=1e-6)
    pairs = zip(adapter.variances, learnable(squares.module), learnable(average.module), strict=True)
    for ours, square, mean in pairs:
        torch.testing.assert_close(ours.double(), (square - mean**2).data, rtol=1e-3, atol=1e-9)
    assert all((variance >= 0).all() for variance in adapter.variances)


def test_source_images_need_labels(golden: Golden) -> None:
    with pytest.raises(ValueError, match="give prepare"):
        Petal(golden.model("test_resnet")).prepare()


@pytest.mark.parametrize(
    "wrong", [{"by": "chance"}, {"strength": -1.0}, {"posterior_epochs": 2}, {"posterior_lr": -1.0}]
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"petal.{next(iter(wrong))} must be"):
        Petal.Config(**wrong)
