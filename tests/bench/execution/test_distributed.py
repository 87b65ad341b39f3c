"""One training in several processes: the same weights as one process, one clear error, nothing left behind.

The processes import this module, so it imports nothing heavy that one test alone needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.execution import distributed
from bench.execution.checkpointing import FileCheckpointer
from bench.execution.distributed import Call, spread
from bench.models.weights_io import load_stock, load_weights
from methods.base import Labelled, Unlabelled
from methods.data_parallel import ALONE, DataParallelGroup
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Weights
from methods.recipes import prime
from methods.recipes.augmix import AugMixing
from methods.recipes.source_contrast import Contrasting, fine_tune_contrastively
from methods.recipes.source_rotation import Jointly, fine_tune_jointly
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.joint_training import Together, inter_train_together
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.training.finetune import FineTune, Repeat, fine_tune

COUNT = 65


def pixels(count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def labelled() -> Labelled:
    labels = torch.randint(0, 10, (COUNT,), generator=torch.Generator().manual_seed(1))
    return Labelled(pixels(), "labelled", labels, 10)


@dataclass(frozen=True)
class Trainings:
    """Several trainings, of images with labels or without, in processes that are started once."""

    each: tuple[Any, ...]


@dataclass(frozen=True)
class Gradients:
    """The gradients of layers before and after the rows of several views are gathered; AdamW would hide their scale."""

    views: int = 3
    total: int = 8

    def take(self, parallel: DataParallelGroup) -> Weights:
        draws = torch.Generator().manual_seed(0)
        rows = torch.randn(self.views, self.total, 6, generator=draws)
        before, after = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)
        parameters = [*before.parameters(), *after.parameters()]
        for parameter in parameters:
            parameter.data = torch.randn(parameter.shape, generator=draws)
        share = parallel.share(self.total)

        def loss(own: Tensor) -> Tensor:
            return after(share.everyone(before(own.flatten(0, 1)), self.views).sin()).square().mean(1).std()

        together = parallel.spread(loss, parameters)
        together(share.own(rows, 1)).backward()
        gradients = {str(number): cast(Tensor, p.grad) for number, p in enumerate(parameters)}
        return Weights(Architecture(), gradients)


def trainings(
    inputs: Sequence[Weights],
    data: Labelled,
    config: Trainings,
    generator: torch.Generator,
    parallel: DataParallelGroup = ALONE,
) -> Weights:
    """All weights of several trainings, named by their numbers."""
    tensors: dict[str, Tensor] = {}
    for number, how in enumerate(config.each):
        draws = torch.Generator().manual_seed(7 + number)
        match how:
            case Gradients():
                made = how.take(parallel)
            case Contrasting():
                made = fine_tune_contrastively(inputs, data, how, draws, parallel=parallel)
            case Jointly():
                made = fine_tune_jointly(inputs, data, how, draws, parallel=parallel)
            case FineTune():
                made = fine_tune(inputs, data, how, draws, parallel=parallel)
            case Pretraining():
                made = pretrain((), data.without_labels(), how, draws, parallel=parallel)
            case Together():
                made = inter_train_together(inputs, data.without_labels(), how, draws, parallel=parallel)
            case _:
                made = inter_train(inputs, data.without_labels(), how, draws, parallel=parallel)
        tensors |= {f"{number}.{name}": tensor for name, tensor in made.tensors.items()}
    return Weights(inputs[0].architecture, tensors)


def assert_close(one: Weights, other: Weights, tolerance: float = 1e-5) -> None:
    """Equal tensor by tensor, the distance relative to the norm; without those that no loss depends on.

    A key's bias moves all logits of a query alike, and a shift before a batch norm is taken off again. Their gradient
    is rounding alone, which AdamW scales up to whole steps. The bias of a head for rotations starts from zero and, with
    all four equally frequent, stays so small that the same rounding is ten times as much of it.
    """
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        there = other.tensors[name]
        if name.endswith("qkv.bias"):
            third = len(tensor) // 3
            tensor, there = (torch.cat([t[:third], t[2 * third :]]) for t in (tensor, there))
        distance = float((tensor - there).norm() / tensor.norm().clamp_min(1e-12))
        limit = 10 * tolerance if name.endswith("rotation.bias") else tolerance
        assert distance < limit, f"{name}: {distance}"


def ingredient(name: str, steps: int = 20, accumulate: int | None = None, **options: Any) -> Ingredient:
    return Ingredient(OBJECTIVES[name].Config(**options), steps=steps, batch_size=32, accumulate=accumulate)


FEW = (
    Gradients(),
    ingredient("mae"),
    ingredient("mocov3"),
    ingredient("mocov3", accumulate=2),
    FineTune(epochs=7, batch_size=32),  # the last batch of an epoch is one image
    FineTune(epochs=10, batch_size=32, accumulate=2),
    Repeat(epochs=3, batch_size=32, augmentation=AugMixing()),
    Repeat(epochs=3, batch_size=32, accumulate=2, augmentation=prime.PrimeMixing()),
    Jointly(epochs=3, batch_size=32),
    Jointly(epochs=3, batch_size=32, accumulate=2, rotations="rand"),
    Contrasting(epochs=3, batch_size=32),
)
MANY = (
    ingredient("mae", accumulate=4),
    ingredient("mocov3", momentum=0.9, symmetric=True, key_head=True),
    ingredient("mmcr"),
    ingredient("lejepa", crops=3),
    Together((ingredient("mae"), ingredient("lejepa"), ingredient("mmcr")), 32),
    Pretraining(load_stock("digits").architecture, steps=20, batch_size=32),
)
NORMED = (
    ingredient("mocov3_official", hidden=64, out=16),
    ingredient("mmcr_official", hidden=64, out=16, momentum=0.9, local=0.1, crops=3),
    ingredient("lejepa_official", hidden=64, out=16, locals_=2),
)


def brief(training: Any) -> Any:
    """Return the same training with few steps."""
    short = {name: count for name, count in {"steps": 5, "epochs": 2}.items() if hasattr(training, name)}
    return replace(training, **short)


BRIEF = (*map(brief, FEW), replace(brief(ingredient("mae")), batch_size=31))  # 16 and 15 rows


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start as forks of one that has loaded all modules; an interpreter of its own takes five seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    monkeypatch.setattr(distributed, "multiprocessing", SimpleNamespace(get_context=lambda _: context))


@pytest.mark.parametrize(
    ("each", "processes"),
    [
        (BRIEF, 2),
        pytest.param(FEW, 3, marks=pytest.mark.slow),
        pytest.param(MANY, 2, marks=pytest.mark.slow),
        pytest.param(MANY, 3, marks=pytest.mark.slow),
        pytest.param(NORMED, 3, marks=pytest.mark.slow),
    ],
    ids=["brief-2", "few-3", "many-2", "many-3", "normed-3"],
)
def test_several_processes_give_the_weights_of_one(
    each: tuple[Any, ...], processes: int, stock: str, request: pytest.FixtureRequest
) -> None:
    torch.set_num_threads(1)
    if each is BRIEF:
        request.getfixturevalue("forked")
    start = load_stock(stock if each is BRIEF else "digits")
    call = Call(trainings, [start], labelled(), Trainings(each), 0, "cpu")
    alone, together = call.here(None), spread(call, None, processes)
    if each is NORMED:
        for weights in (alone, together):
            for name in [name for name in weights.tensors if name.endswith("encoder.norm.bias")]:
                del weights.tensors[name]
    assert_close(alone, together)
    assert not multiprocessing.active_children()


class Trap:
    """Images on which one process dies or fails at its tenth batch, in the first training only."""

    dtype = torch.uint8
    ndim = 4
    device = torch.device("cpu")

    def __init__(self, flag: Path, how: str) -> None:
        self._flag, self._how = flag, how
        self._images = pixels()
        self.shape = self._images.shape
        self._read = 0

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        self._read += 1
        if self._how == "wait":
            (self._flag / os.environ["RANK"]).write_text(str(os.getpid()))
            time.sleep(0.2)
        elif os.environ.get("RANK") == "1" and self._read == 10 and not self._flag.exists():
            self._flag.touch()
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no memory for the images of this process")
        return self._images[rows]


KILLED = "process 1 of 2 of a training was killed by SIGKILL .* to continue from its last"


@pytest.mark.parametrize(
    ("how", "error", "said", "again"),
    [
        ("kill", BenchError, KILLED, 1),
        pytest.param("kill", BenchError, KILLED, 2, marks=pytest.mark.slow),
        pytest.param("fail", MemoryError, "no memory for the images of this process", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("forked")
def test_a_process_that_ends_early_ends_the_training_which_then_goes_on(
    how: str, error: type[Exception], said: str, again: int, stock: str, tmp_path: Path
) -> None:
    """In as many processes as before, or in one."""
    torch.set_num_threads(1)
    data = Unlabelled(Trap(tmp_path / "flag", how), "pool")
    call = Call(inter_train, [load_stock(stock)], data, ingredient("mocov3"), 7, "cpu")
    with pytest.raises(error, match=said):
        spread(call, FileCheckpointer(tmp_path / "x.pt", 0.0), 2)
    assert not multiprocessing.active_children()
    state = FileCheckpointer(tmp_path / "x.pt").load()
    assert state is not None
    step = state["step"]
    assert 5 < step < 10
    checkpointer = FileCheckpointer(tmp_path / "x.pt", 0.0)
    resumed = call.here(checkpointer) if again == 1 else spread(call, checkpointer, again)
    assert checkpointer.seconds_before > 0
    assert len(checkpointer.losses) == 20
    alone = FileCheckpointer(tmp_path / "y.pt")
    assert_close(call.here(alone), resumed)
    assert checkpointer.losses == pytest.approx(alone.losses, rel=1e-4)


@pytest.mark.slow
def test_divergence_is_the_error_of_one_process(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    how = FineTune(epochs=10, batch_size=32, lr=1e30)
    call = Call(fine_tune, [load_stock("digits")], labelled(), how, 7, "cpu")
    messages = []
    for way in (lambda: call.here(None), lambda: spread(call, None, 2)):
        with pytest.raises(FloatingPointError) as caught:
            way()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.slow
def test_the_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bench.execution.distributed import Call, spread
from bench.models.weights_io import load_stock
from methods.base import Unlabelled
from methods.selfsoup.ingredients import inter_train
from tests.bench.execution.test_distributed import Trap, ingredient
if __name__ == "__main__":
    data = Unlabelled(Trap(Path({str(tmp_path)!r}), "wait"), "pool")
    spread(Call(inter_train, [load_stock("digits")], data, ingredient("mae", 1000), 7, "cpu"), None, 2)
"""
    (tmp_path / "ask.py").write_text(script)
    home = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, str(tmp_path / "ask.py")], env=home) as asking:
        members = [tmp_path / "0", tmp_path / "1"]
        until = time.monotonic() + 120
        while not all(member.exists() and member.read_text() for member in members):
            assert asking.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        asking.kill()
    numbers = [int(member.read_text()) for member in members]
    while any(running(number) for number in numbers):
        assert time.monotonic() < until
        time.sleep(0.1)


def running(number: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_and_a_stock_may_be_spread(stock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.runs.run import run
    from bench.settings.run_spec import make_spec
    from bench.training.pretrain_stock import ShownCheckpointer, StockSpec, plan_stock, train_stock
    from tests.bench.conftest import FAST

    asked = {"method": "selfsoup", "shift": "digits-c", "stock": stock, "limit": 64, "severity": "3", "seeds": 1}
    asked |= {"corruption": "fog", "set": {"selfsoup": FAST["selfsoup"]}, "jobs": 1}
    accuracies = []
    for devices in (1, 2):
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / f"cache{devices}"))
        records = run(make_spec(asked, {"devices": devices, "out": tmp_path / str(devices)})).records()
        accuracies.append({r.key: r.metrics.nll for r in records if r.metrics is not None})
    assert accuracies[0] == pytest.approx(accuracies[1], rel=1e-4)
    facts = [load_weights(path)[1] for path in (tmp_path / "cache2" / "weights").glob("*.safetensors")]
    assert sorted(f["label"] for f in facts if f.get("devices") == 2) == sorted(
        f["label"] for f in facts if "ingredient" in f["label"]
    )

    spec = StockSpec("digits", steps=30, batch_size=32, limit=100, threads=1)
    made = []
    for devices in (1, 2):
        each = replace(spec, devices=devices)
        steps: list[int] = []
        plan = plan_stock(each)
        assert plan.key == plan_stock(spec).key
        checkpointer = ShownCheckpointer(tmp_path / "stock.pt", lambda done, _, steps=steps: steps.append(done), 0.0)
        made.append(train_stock(plan, each, checkpointer)[0])
        checkpointer.forget()
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (0, 30)
    assert_close(*made)


@pytest.mark.slow
def test_parameters_that_a_loss_does_not_reach_stay_as_they_are() -> None:
    """An encoder that pools before its last norm, which MAE on tokens does not use."""
    torch.set_num_threads(1)
    options = (("global_pool", "avg"),)
    shape = TimmArchitecture("vit_tiny_patch16_224", 32, (0.5,) * 3, (0.5,) * 3, 32, options=options)
    encoder = shape.initial(torch.Generator().manual_seed(0))
    stock = Weights(shape, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()})
    call = Call(inter_train, [stock], labelled().without_labels(), ingredient("mae", 4, 2), 7, "cpu")
    together = spread(call, None, 2)
    assert_close(call.here(None), together)
    assert torch.equal(together.tensors["encoder.fc_norm.weight"], stock.tensors["encoder.fc_norm.weight"])
