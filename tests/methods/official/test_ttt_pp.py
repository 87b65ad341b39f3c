"""TTT++, held against vita-epfl/ttt-plus-plus."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, play_with_resets, release
from torch import Tensor, nn

from methods.adapters.ttt_pp import TttPp
from methods.views.simclr_views import simclr_view

FOLDER = "ttt-plus-plus/cifar"
BATCH, WIDTH = 4, 16
Batch = tuple[Any, Tensor]


class Contrasting(nn.Module):
    """A classifier in two parts with a projection head, as the release's SupConResNet and its linear classifier."""

    def __init__(self, extractor: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.features, self.head = extractor, head
        self.projection = nn.Sequential(nn.Linear(head.in_features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def contrasting_resnet(golden: Golden) -> nn.Module:
    *layers, head = golden.model("test_resnet").children()
    assert isinstance(head, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Contrasting(nn.Sequential(*layers), head).eval()


def small_batches(golden: Golden) -> Tensor:
    return golden.stream[:, :BATCH]


def in_small_batches(source: Tensor) -> Tensor:
    """The source in batches of the size of those of the stream, as in a run."""
    return source.reshape(-1, BATCH, *source.shape[2:])


def ours(run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    return play_with_resets((), run, model, stream, in_small_batches(source))


class Normalised(nn.Module):
    """Extractor and projection as one network of unit vectors, with the names that the release uses."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(self.encoder(images)), dim=1)


@contextmanager
def making(dtype: torch.dtype) -> Iterator[None]:
    """Let tensors that are made without a type have this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Epochs:
    """A loader that gives nothing in its first epoch, as the release aligns from the second on, then a batch each."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.begun = batches, False

    def __iter__(self) -> Iterator[Batch]:
        if self.begun:
            yield next(self.batches)
        self.begun = True


class Player:
    """Stands for what the release reads and draws: images and our views of them; and notes its predictions."""

    def __init__(self, model: Contrasting, stream: Tensor, source: Tensor, part: int) -> None:
        self.model, self.stream, self.source, self.part = model, stream, source, part
        self.draws = torch.Generator().manual_seed(7)
        self.logits, self.calls = list[Tensor](), 0
        self.queues: list[Any] = []

    def build(self, args: Any) -> tuple[nn.Module, ...]:
        heads = release(FOLDER, "models.SSHead")
        extractor, projection, head = self.model.features, self.model.projection, self.model.head
        return heads.ExtractorHead(extractor, head), extractor, projection, Normalised(extractor, projection), head

    def of_stream(self, args: Any, ttt: bool = False, num_sample: int | None = None) -> tuple[None, Any]:
        batches = ((images, torch.zeros(BATCH)) for images in self.stream)
        return None, Epochs(batches) if args.method == "align" else batches

    def view(self, images: Tensor, *, colours: bool = True) -> Tensor:
        with making(torch.float32):
            return simclr_view(images, self.draws, colours=colours)

    def views(self) -> Iterator[Batch]:
        for images in self.stream:
            yield [self.view(images) for _ in range(2)], torch.zeros(BATCH)

    def of_training(self, args: Any, num_sample: int | None = None) -> tuple[None, Any]:
        if args.ssl == "contrastive":
            return None, Epochs(self.views())
        assert args.batch_size == self.part
        images = torch.cat([self.view(batch, colours=False) for batch in self.source])
        whole = len(images) // self.part * self.part
        return None, [(part, None) for part in images[:whole].split(self.part)]

    def test(self, batches: Any, net: nn.Module) -> tuple[float]:
        self.calls += 1
        if self.calls > 2:  # before the first epoch and after it, nothing has happened
            net.eval()
            with torch.no_grad():
                self.logits.append(net(self.stream[self.calls - 3]))
            net.train()
        return (0.5,)

    def queue(self, real: Any) -> Callable[..., Any]:
        def build(dim: int, length: int) -> Any:
            made = real(dim, length)
            get, made.given = made.get, []

            def noted() -> Any:
                made.given.append(get() is not None)
                return get()

            made.get = noted
            self.queues.append(made)
            return made

        return build


def played(player: Player, given: Mapping[str, Any], folder: str) -> None:
    """Run the script with these flags."""
    flags = {"outf": folder, "seed": 0, "nepoch": len(player.stream) + 1, "bnepoch": 0, "temperature": 0.5}
    flags |= {"batch_size": BATCH, "batch_size_align": BATCH, **given}
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    stand_ins = {
        "colorama": {"Fore": SimpleNamespace()},
        "online": {"FeatureQueue": player.queue(release(FOLDER, "online").FeatureQueue)},
        "utils.test_helpers": {
            "build_resnet50": player.build,
            "load_resnet50": lambda *_: None,
            "test": player.test,
        },
        "utils.prepare_dataset": {
            "prepare_test_data": player.of_stream,
            "prepare_train_data": player.of_training,
        },
    }
    # Its schedule follows the test error.
    still = SimpleNamespace(step=lambda error: None)
    schedule = mock.patch.object(torch.optim.lr_scheduler, "ReduceLROnPlateau", return_value=still)
    seeds = mock.patch.object(random, "seed"), mock.patch.object(np.random, "seed")
    benchmark = torch.backends.cudnn.benchmark
    quiet = mock.patch("sys.argv", ["ttt++.py", *words]), mock.patch("builtins.print")
    with quiet[0], quiet[1], schedule, seeds[0], seeds[1], making(player.stream.dtype):
        release(FOLDER, "ttt++", stand_ins)
    torch.backends.cudnn.benchmark = benchmark


def official(flags: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    assert isinstance(model, Contrasting)
    player = Player(model, stream, in_small_batches(source), max(flags["queue_size"], BATCH))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with TemporaryDirectory() as folder:
        played(player, flags, folder)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"features", *(() if "fix_ssh" in flags else ("projection",))}
    assert any(name.endswith("running_mean") for name in moved)
    filled = (flags["queue_size"] - BATCH) // BATCH
    spaces = ("align_ext" in flags) + ("align_ssh" in flags)
    assert len(player.queues) == (spaces if filled else 0)
    assert all(queue.given == [place >= filled for place in range(len(stream))] for queue in player.queues)
    return torch.stack(player.logits)


def run_of(name: str, enters: tuple[str, ...], flags: Mapping[str, Any], options: Mapping[str, Any]) -> OfficialRun:
    return OfficialRun(
        name,
        TttPp,
        {"lr": flags["lr"], "queue": flags["queue_size"], **options},
        contrasting_resnet,
        "vita-epfl/ttt-plus-plus/cifar/ttt++.py",
        enters,
        partial(official, flags),
        small_batches,
        ours=ours,
        double=True,
    )


LR, SCALES, QUEUE = 2e-4, (1e-4, 1e-6), 12
ALIGNED = {"scale_ext": SCALES[0], "scale_ssh": SCALES[1]}
OPTIONS = {"encoder_scale": SCALES[0], "projection_scale": SCALES[1]}
RUNS = [
    run_of(
        "ttt_pp-both",
        ("contrast", "alignment of features and projections", "a queue that fills and goes round"),
        {"method": "both", "lr": LR, "queue_size": QUEUE, "align_ext": True, "align_ssh": True, "fix_ssh": True}
        | ALIGNED,
        OPTIONS,
    ),
    run_of(
        "ttt_pp-align",
        ("alignment alone", "no queue"),
        {"method": "align", "lr": LR, "queue_size": BATCH, "align_ext": True, "align_ssh": True, "fix_ssh": True}
        | ALIGNED,
        {**OPTIONS, "contrast": False},
    ),
    run_of(
        "ttt_pp-contrast",
        ("contrast alone", "the projection head learns"),
        {"method": "ssl", "lr": LR, "queue_size": BATCH},
        {"encoder_scale": 0.0, "projection_scale": 0.0, "fix_head": False},
    ),
    run_of(
        "ttt_pp-encoder",
        ("contrast", "alignment of features alone", "the projection head learns", "a queue that fills and goes round"),
        {"method": "both", "lr": LR, "queue_size": QUEUE, "align_ext": True} | ALIGNED,
        {**OPTIONS, "projection_scale": 0.0, "fix_head": False},
    ),
    run_of(
        "ttt_pp-projection",
        ("contrast", "alignment of projections alone"),
        {"method": "both", "lr": LR, "queue_size": QUEUE, "align_ssh": True, "fix_ssh": True} | ALIGNED,
        {**OPTIONS, "encoder_scale": 0.0},
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
