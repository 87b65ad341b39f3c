"""SoTTA, held against taeckyung/SoTTA."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from memory_draws import MemoryDraws, Normalized, in_order, pixels
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.sotta import Sotta

LR, SHARE, CAPACITY, EVERY = 1e-3, 0.2, 6, 8
# Least probabilities with which the memory fills soon, and with which it is empty at first.
CONFIDENCE = {"full": 0.3, "empty": 0.7}


def model(golden: Golden) -> nn.Module:
    """In float64, since steps of Adam amplify the rounding of single images and of whole batches."""
    return nn.Sequential(Normalized(), golden.model("test_resnet")).double()


# Eight images of which none is confident, then eight of which two are, then the others.
UNSURE_FIRST = [11, 3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def stream(name: str, golden: Golden) -> Tensor:
    images = pixels(golden.stream.double())
    return images if name == "full" else images.view(12, 8, *images.shape[2:])[UNSURE_FIRST].view_as(images)


def official(name: str, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    images = stream.flatten(0, 1)
    options = {"batch_size": 128, "num_class": 10, "weight_decay": 0, "learning_rate": LR, "file_path": ""}
    args = Namespace(
        gpu_idx=0, dataset="imagenetnoisy", model="resnet18_pretrained", method="SoTTA", tgt="", tgt_train_dist=0,
        nsample=99999, seed=0, noisy_type=None, noisy_size=None, noisy_class=None, parallel=False, log_grad=False,
        tta_attack_type=None, load_checkpoint_path="", memory_type="HUS", memory_size=CAPACITY, update_every_x=EVERY,
        high_threshold=CONFIDENCE[name], use_learned_stats=True, bn_momentum=SHARE, temperature=1.0, esm=True, epoch=1,
        opt=options,
    )  # fmt: skip
    with mock.patch.object(torch.cuda, "set_device"):
        sotta = release(
            "SoTTA",
            "learner.sotta",
            stand_ins={
                "conf": {"args": args},
                "data_loader.data_loader": {"load_cache": lambda *_, **__: None, "save_cache": lambda *_, **__: None},
                "data_loader.NoisyDataset": {"NOISY_CLASS_IDX": 10000},
                "sklearn": {},
                "sklearn.metrics": {"confusion_matrix": None, "f1_score": lambda *_, **__: 0.0},
            },
        )
    label = torch.zeros(1, dtype=torch.int64)
    learner = sotta.SoTTA(model[1], None, {"train": [(image[None], label, label) for image in images]}, "")  # type: ignore[index]
    memory, draws = learner.mem, MemoryDraws(len(images))
    replaced: set[bool] = set()
    entered: set[bool] = set()
    held: list[int] = []
    add, remove, get = memory.add_instance, memory.remove_instance, memory.get_memory

    def noted_add(instance: list[Any]) -> None:
        draws.next_image()
        entered.add(bool(instance[3] >= CONFIDENCE[name]))
        add(instance)

    def noted_removal(label: Any) -> bool:
        replaced.add(int(label) in memory.get_largest_indices())
        done: bool = remove(label)
        return done

    def noted_memory() -> Any:
        held.append(memory.get_occupancy())
        return get()

    memory.add_instance, memory.remove_instance, memory.get_memory = noted_add, noted_removal, noted_memory
    answers: list[Tensor] = []
    evaluate = learner.evaluation_online

    def noted_evaluation(*given: object) -> None:
        handle = learner.net.register_forward_hook(lambda _, __, output: answers.append(output))
        evaluate(*given)
        handle.remove()

    learner.evaluation_online = noted_evaluation
    with (
        mock.patch.object(sotta.memory, "random", draws),
        mock.patch.object(sotta, "DataLoader", in_order),
        mock.patch("builtins.print"),
    ):
        for number in range(len(images)):
            learner.train_online(number + 1)
    assert isinstance(learner.optimizer, sotta.SAM)
    assert entered == {True, False}
    assert len(held) == len(images) // EVERY
    assert held[-1] > 0
    if name == "full":
        assert replaced == {True, False}
    else:
        assert held[0] == 0
    return torch.cat(answers).view(*stream.shape[:2], -1)


RUNS = [
    OfficialRun(
        f"sotta-{name}",
        Sotta,
        {
            "lr": LR,
            "statistics_share": SHARE,
            "capacity": CAPACITY,
            "update_every": EVERY,
            "confidence": CONFIDENCE[name],
        },
        model,
        "taeckyung/SoTTA/learner/sotta.py",
        ("images that are not confident", *enters),
        partial(official, name),
        partial(stream, name),
        tolerance=1e-9,
    )
    for name, enters in (
        ("full", ["an image that replaces one of its own class, and one of a larger class"]),
        ("empty", ["an update without any confident image"]),
    )
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
