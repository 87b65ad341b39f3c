"""How often each adapter would make the host wait for a GPU, counted exactly, so that a new wait is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from torch import Tensor

from bench.core.import_object import load_object
from methods import METHODS, PLAIN
from methods.adapters.cotta import Cotta
from methods.adapters.lame import Lame
from methods.conformance import Case, source_for
from methods.example_models import example_model, fitting_example

ROWS = [PLAIN, *(row for row in METHODS.values() if row.kind == "adapter")]

# For the third batch of four images: copies from the device, shapes that depend on values, copies to the device.
# docs/architecture.md says what they are for. Methods that are not named wait for nothing.
WAITS: dict[str, tuple[int, int, int]] = {
    "lame": (2, 0, 0),  # one look at convergence for every ten updates
    "foa": (1, 0, 5),  # the losses of all candidates; each candidate's prompts
    "memo": (0, 0, 0),  # one read for each buffer of a model whose images go together
    "eta": (0, 1, 0),  # the images to learn from
    "eata": (0, 1, 0),
    "eata_val": (0, 1, 0),
    "rdumb": (0, 1, 0),
    "come_eata": (0, 1, 0),
    "sar": (1, 2, 0),  # the reliable images, before and after the climb; the moving average
    "come_sar": (1, 2, 0),
    "deyo": (0, 2, 0),  # the certain images, and those that depend on shape
    "roid": (0, 1, 0),  # the images with a weight
    "cmf": (0, 1, 0),
    "rotta": (1, 0, 0),  # labels and uncertainty, for the memory on the host
    "note": (1, 0, 0),
    "sotta": (1, 0, 0),
    "cotta": (1, 0, 0),  # the confidence
    "petal": (1, 0, 0),
}

# CoTTA uploads twice for each parameter of which weights are restored, so their number is a matter of chance.
OPTIONS: dict[str, dict[str, Any]] = {"cotta": {"restore": 0.0}}


def waits_of(case: Case, batch: int = 2) -> tuple[int, int, int]:
    """Return the waits of one batch of the stream: reads, sizes and uploads."""
    model, stream = example_model(case.model), case.stream
    waits = HostWaits()
    waits.place((*model.parameters(), *model.buffers(), stream))
    with waits:
        adapter = case.adapter(model, case.config, waits.generator())
        adapter.prepare(source_for(case.adapter, next(model.parameters())))
    for images in stream[: batch + 1]:
        waits.forget()
        with waits:
            answer = adapter.predict(images)
    assert waits.holds(answer), "the answer is on the host"
    assert answer.isfinite().all()
    return waits.counts["read"], waits.counts["size"], waits.counts["upload"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_adapter_waits_as_often_as_stated(row: Any) -> None:
    adapter = load_object(row.path)
    model = "layer_norm" if row.name == "foa" else fitting_example(row.needs)
    options = {**adapter.checked_with, **OPTIONS.get(row.name, {})}
    case = Case(adapter, adapter.Config(**options), model)
    assert waits_of(case) == WAITS.get(row.name, (0, 0, 0)), "if the new waits are needed, change WAITS and the page"


def test_lame_looks_at_convergence_every_ten_updates() -> None:
    for steps, looks in ((9, 0), (10, 1), (20, 2)):
        case = Case(Lame, Lame.Config(steps=steps, affinity="linear"), "batch_norm")
        assert waits_of(case)[0] <= looks
    assert waits_of(Case(Lame, Lame.Config(steps=9), "batch_norm")) == (0, 0, 0)


def test_cotta_reads_no_confidence_without_a_threshold() -> None:
    case = Case(Cotta, Cotta.Config(threshold=0.0, restore=0.0), "batch_norm")
    assert waits_of(case) == (0, 0, 0)


Values = Callable[[Tensor], Any]
KINDS: list[tuple[str, Values]] = [
    ("read", lambda x: x.sum().item()),
    ("read", lambda x: float(x.sum())),
    ("read", lambda x: bool(x.sum() > 0)),
    ("read", lambda x: x.tolist()),
    ("read", lambda x: x.sum().tolist()),
    ("read", lambda x: x.cpu()),
    ("read", lambda x: x.to("cpu", torch.float64)),
    ("read", lambda x: torch.equal(x, x + 1)),
    ("read", lambda x: torch.zeros(3).copy_(x)),
    ("size", lambda x: x.nonzero()),
    ("size", lambda x: torch.where(x > 0)),
    ("size", lambda x: x[x > 0]),
    ("size", lambda x: x.masked_select(x > 0)),
    ("size", lambda x: x.unique()),
    ("size", lambda x: x.long().bincount()),
    ("size", lambda x: x.clone().index_put_((x > 0,), torch.zeros_like(x[:1]))),
    ("upload", lambda x: torch.zeros(3).to(x.device)),
    ("upload", lambda x: torch.zeros(3).to(x)),
    ("upload", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
    ("upload", lambda x: x[torch.tensor([0, 1])]),
    ("upload", lambda x: x.clone().copy_(torch.zeros(3))),
    ("none", lambda x: torch.zeros(3).to(x.device, non_blocking=True)),
    ("none", lambda x: torch.zeros(3, device=x.device) + x),
    ("none", lambda x: torch.where(x > 0, x, 0.0).masked_fill(x > 1, 2.0).topk(2).values.double()),
    ("none", lambda x: torch.rand(3).sum().item() + torch.tensor([1, 2]).unique().tolist()[0]),
]


@pytest.mark.parametrize(("kind", "waiting"), KINDS)
def test_each_kind_of_wait_is_counted_once(kind: str, waiting: Values) -> None:
    x = torch.tensor([1.0, 0.5, 2.0])
    waits = HostWaits()
    waits.place([x])
    with waits:
        waiting(x)
    assert {name: count for name, count in waits.counts.items() if count} == ({} if kind == "none" else {kind: 1})


def test_tensors_in_different_places_do_not_meet() -> None:
    x = torch.ones(3)
    waits = HostWaits()
    waits.place([x])
    for mixed in (lambda: x + torch.ones(3), lambda: x.cpu() + x, lambda: x.numpy()):
        with waits, pytest.raises(AssertionError, match="device"):
            mixed()
    with waits:
        assert (x.cpu() + torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        assert waits.holds(x * torch.tensor(2.0))
