"""ActMAD, held against jmiemirza/ActMAD."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.actmad import ActMad
from methods.views.padded_crops import crop_padded, draw_crops

LR, PADDING = 0.01, 4
ABSENT: dict[str, Any] = {
    "utils.data_loader": {"get_loader": None, "set_severity": None, "set_yolo_save_dir": None},
    "utils.testing_yolov3": {"test": None},
    "utils.results_manager": {"ResultsManager": mock.MagicMock},
}


class Entered:
    """The release's reader of activations, which notes whether a later layer had changed a map before it was read."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.rectified = kind, False

    def __call__(self) -> Any:
        reader = self.kind()
        note, outer = reader.statistics_update, self

        def noted() -> None:
            outer.rectified |= any(bool((output >= 0).all()) for output in reader.outputs)
            note()

        reader.statistics_update = noted
        return reader


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return file


def own_cuda(it: Tensor, *_: Any) -> Tensor:
    """What `.cuda()` is for a tensor on the CPU: another tensor."""
    return it.clone()


class Player:
    """Stands for the release's test: predicts, after each step, the batch that the step was on."""

    def __init__(self, stream: Tensor) -> None:
        self.stream, self.logits = stream, list[Tensor]()

    def __call__(self, model: nn.Module) -> None:
        model.eval()
        with torch.no_grad():
            self.logits.append(model(self.stream[len(self.logits)]))


def official_cifar(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    cifar = release("ActMAD", "methods.actmad_cifar", ABSENT)
    draws = torch.Generator().manual_seed(7)
    player, calls = Player(stream), list[str]()

    def cropped(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, None]]:
        for batch in batches:
            yield crop_padded(batch, draw_crops(len(batch), PADDING, draws, flip=True), PADDING), None

    def loader(args: Any, split: str, use_tr_transform: bool = False) -> Any:
        assert split == "train" or args.task == "fog"
        if split == "test" and not use_tr_transform:
            return stream
        return cropped(source if split == "train" else stream)

    def test(batches: Any, adapted: nn.Module) -> float:
        assert batches is stream
        if calls:  # the first is before adaptation
            player(adapted)
        calls.append("test")
        return 0.5

    cifar.globals.TASKS = ["fog"]
    cifar.get_loader, cifar.set_severity, cifar.test = loader, lambda args: True, test
    cifar.SaveEmb = reader = Entered(cifar.SaveEmb)
    args = SimpleNamespace(dataset="cifar10", ckpt_path=saved(model), lr=LR, milestone_1=3, milestone_2=6)
    with mock.patch.object(Tensor, "cuda", own_cuda):
        cifar.actmad_cifar(args, model)
    assert reader.rectified
    return torch.stack(player.logits)


def with_spare_layers(golden: Golden) -> nn.Module:
    """The golden model after 26 layers that never run, as many as the release leaves out in its detector."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.ModuleList(nn.BatchNorm2d(1) for _ in range(26))
            self.model = golden.model("test_resnet")

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images)
            return logits

    return Behind().eval()


def official_kitti(model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    kitti = release("ActMAD", "methods.actmad_kitti", ABSENT)
    player = Player(stream)

    def loader(args: Any, split: str, pad: float, rect: bool) -> Any:
        return [(255 * batch, None, None, None) for batch in (source if split == "train" else stream)]

    def test(*, model: nn.Module, **_: Any) -> list[float]:
        if len(player.logits) < len(stream):  # once more at the end
            player(model)
        return [0.5]

    kitti.globals.TASKS = ["fog"]
    kitti.get_loader, kitti.set_severity, kitti.test = loader, lambda args: True, test
    kitti.set_yolo_save_dir = lambda *_, **__: None
    with TemporaryDirectory() as folder, mock.patch.object(Tensor, "cuda", own_cuda):
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        named = {"img_size": [32, 32], "batch_size": 16, "conf_thres": 0.1, "iou_thres": 0.1, "augment": False}
        named |= {"lr": LR, "actmad_save": "each_batch", "save_dir": folder, "severity": "fog_30"}
        kitti.actmad_kitti(
            SimpleNamespace(dataset="kitti", ckpt_path=f"{folder}/model.pt", **named),
            model,
        )
    return torch.stack(player.logits)


RUNS = [
    OfficialRun(
        "actmad-cifar-resnet",
        ActMad,
        {"lr": LR, "padding": PADDING, "flip": True, "source_images": 50000, "official_quirks": True},
        "test_resnet",
        "jmiemirza/ActMAD/methods/actmad_cifar.py",
        ("random crops", "maps after activations in place"),
        official_cifar,
    ),
    # The detector's loss is twice ours, so the rate doubles and the decay halves.
    OfficialRun(
        "actmad-kitti-resnet",
        ActMad,
        {"lr": 2 * LR, "weight_decay": 5e-4 / 2},
        with_spare_layers,
        "jmiemirza/ActMAD/methods/actmad_kitti.py",
        ("maps before activations",),
        official_kitti,
    ),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
