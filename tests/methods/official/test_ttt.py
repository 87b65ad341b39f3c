"""Test-time training, held against yueatsprograms/ttt_cifar_release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.ttt import Ttt, TttOnline
from methods.views.padded_crops import crop_padded, draw_crops

# Along a stream, BatchNorm at the higher rate turns rounding into other predictions.
LR, SLOWER, COPIES, PADDING = 0.02, 0.001, 8, 4


class Turning(nn.Module):
    """A classifier in three parts with a head that tells rotations, as the release's `--shared layer3`."""

    def __init__(self, extractor: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.net = nn.Sequential(extractor, head)
        self.rotation = nn.Linear(head.in_features, 4)

    def rotation_logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.rotation(self.net[0](images))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def seeded(build: Callable[[], Turning]) -> Turning:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval()


def turning_resnet(golden: Golden) -> nn.Module:
    resnet = golden.model("test_resnet")
    *layers, head = resnet.children()
    assert isinstance(head, nn.Linear)
    return seeded(lambda: Turning(nn.Sequential(*layers), head))


def turning_group_norm(golden: Golden) -> nn.Module:
    def build() -> Turning:
        layers = (nn.Conv2d(3, 16, 3, 2), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.GroupNorm(8, 32))
        made = Turning(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(32, 10))
        for parameter in made.parameters():
            parameter.data.mul_(2)
        return made

    return seeded(build)


def short_stream(golden: Golden) -> Tensor:
    return golden.stream[:3, :6]


class Player:
    """Stands for what the release reads and draws: images, our crops and turns; and notes its predictions."""

    def __init__(self, model: Turning, stream: Tensor) -> None:
        self.model, self.stream = model, stream
        self.draws = torch.Generator().manual_seed(7)
        self.logits, self.views = list[Tensor](), list[Tensor]()
        self.adapted = 0

    def build_model(self, args: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        heads = release("ttt_cifar_release", "models.SSHead")
        extractor, rotation = self.model.net[0], self.model.rotation
        self.model.net.register_forward_hook(lambda net, inputs, output: self.logits.append(output))
        return self.model.net, extractor, rotation, heads.ExtractorHead(extractor, rotation)

    def prepare_test_data(self, args: Any) -> tuple[Any, None]:
        images = self.stream.flatten(0, 1)

        class Images:
            data = images

            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, number: int) -> tuple[None, int]:
                return None, 0

        return Images(), None

    def view(self, image: Tensor) -> Tensor:
        """The release asks for one view at a time; we draw those of a step together."""
        if not self.views:
            crops = draw_crops(COPIES, PADDING, self.draws, flip=True)
            self.views = list(crop_padded(image.expand(COPIES, -1, -1, -1), crops, PADDING))
            self.adapted += 1
        return self.views.pop(0)

    def randint(self, high: int, size: tuple[int, ...], **_: Any) -> Tensor:
        return DRAWN(high, size, generator=self.draws)


DRAWN = torch.randint


def official(flags: Mapping[str, Any], model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    assert isinstance(model, Turning)
    player = Player(model, stream)
    saved = {"net": model.net.state_dict(), "head": model.rotation.state_dict()}
    saved = {name: {key: value.clone() for key, value in state.items()} for name, state in saved.items()}
    with TemporaryDirectory() as folder:
        torch.save(saved, f"{folder}/ckpt.pth")
        given = {"batch_size": COPIES, "shared": "layer3", "outf": folder, "resume": folder} | dict(flags)
        words = [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items() if value is not False
        ]
        stand_ins = {
            "colorama": {"Fore": SimpleNamespace()},
            "tqdm": {"tqdm": lambda each: each},
            "PIL": {"Image": SimpleNamespace(fromarray=lambda image: image)},
            "utils.test_helpers": {"build_model": player.build_model},
            "utils.prepare_dataset": {
                "prepare_test_data": player.prepare_test_data,
                "tr_transforms": player.view,
                "te_transforms": lambda image: image,
            },
        }
        benchmark = torch.backends.cudnn.benchmark
        with mock.patch("sys.argv", ["test_adapt.py", *words]), mock.patch.object(torch, "randint", player.randint):
            release("ttt_cifar_release", "test_calls.test_adapt", stand_ins)
        torch.backends.cudnn.benchmark = benchmark
    images, steps = stream.shape[0] * stream.shape[1], given["niter"]
    assert player.adapted % steps == 0
    assert (player.adapted < images * steps) == ("threshold" in flags)
    assert player.adapted > images * steps / 4
    # With a threshold the last image may leave everything at the source.
    moved = any(not torch.equal(value, saved["head"][key]) for key, value in model.rotation.state_dict().items())
    assert moved == ("fix_ssh" not in flags) or "threshold" in flags
    averages = [(name, value) for name, value in model.net.state_dict().items() if name.endswith("running_mean")]
    still = "fix_bn" in flags
    assert all(torch.equal(value, saved["net"][name]) == still for name, value in averages)
    return torch.cat(player.logits).view(*stream.shape[:2], -1)


def run_of(
    name: str,
    adapter: type[Ttt],
    model: Callable[[Golden], nn.Module],
    enters: tuple[str, ...],
    flags: Mapping[str, Any],
    options: Mapping[str, Any],
) -> OfficialRun:
    given = {"lr": flags["lr"], "copies": COPIES, "crop": "padded", "flip": True, "steps": flags["niter"], **options}
    file = "yueatsprograms/ttt_cifar_release/test_calls/test_adapt.py"
    return OfficialRun(name, adapter, given, model, file, enters, partial(official, flags), short_stream)


RUNS = [
    run_of(
        "ttt-slow-bn",
        Ttt,
        turning_resnet,
        ("from the source for each image", "moving averages"),
        {"lr": SLOWER, "niter": 3},
        {},
    ),
    run_of("ttt-slow-gn", Ttt, turning_group_norm, ("from the source for each image",), {"lr": LR, "niter": 10}, {}),
    run_of(
        "ttt-online-bn",
        TttOnline,
        turning_resnet,
        ("along the stream", "moving averages"),
        {"lr": SLOWER, "niter": 1, "online": True},
        {},
    ),
    run_of(
        "ttt-online-gn",
        TttOnline,
        turning_group_norm,
        ("along the stream",),
        {"lr": LR, "niter": 1, "online": True},
        {},
    ),
    run_of(
        "ttt-fixed-bn",
        TttOnline,
        turning_resnet,
        ("source statistics",),
        {"lr": SLOWER, "niter": 1, "online": True, "fix_bn": True},
        {"fix_bn": True},
    ),
    run_of(
        "ttt-fixed-head",
        TttOnline,
        turning_resnet,
        ("encoder alone",),
        {"lr": SLOWER, "niter": 1, "online": True, "fix_ssh": True},
        {"fix_head": True},
    ),
    # The release adds 0.001 to its threshold.
    run_of(
        "ttt-threshold",
        Ttt,
        turning_group_norm,
        ("images that are upright enough",),
        {"lr": LR, "niter": 2, "threshold": 0.123},
        {"threshold": 0.124},
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
