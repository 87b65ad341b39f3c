"""NOTE, held against TaesikGong/NOTE."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch
from golden_streams import Golden
from memory_draws import MemoryDraws, Normalized, in_order, pixels
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.note import Note

LR, SHARE, CAPACITY, EVERY = 1e-3, 0.1, 6, 8


def model(golden: Golden) -> nn.Module:
    """In float64, since steps of Adam amplify the rounding of single images and of whole batches."""
    return nn.Sequential(Normalized(), golden.model("test_resnet")).double()


def official(instance_aware: bool, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    images = stream.flatten(0, 1)
    options = {"batch_size": 128, "num_class": 10, "classes": list(range(10)), "weight_decay": 0, "learning_rate": LR}
    args = Namespace(
        gpu_idx=0, dataset="imagenet", model="resnet18_pretrained", method="NOTE", tgt_train_dist=0, nsample=99999,
        iabn=instance_aware, iabn_k=4, skip_thres=1, load_checkpoint_path="", memory_type="PBRS",
        memory_size=CAPACITY, update_every_x=EVERY, use_learned_stats=True, bn_momentum=SHARE, temperature=1.0,
        no_adapt=False, no_optim=False, epoch=1, opt=options,
    )  # fmt: skip
    with mock.patch.object(torch.cuda, "set_device"):
        note = release(
            "NOTE",
            "learner.note",
            stand_ins={
                "conf": {"args": args},
                "pandas": {},
                "sklearn": {},
                "sklearn.metrics": {"confusion_matrix": None, "f1_score": lambda *_, **__: 0.0},
            },
        )
    label = torch.zeros(1, dtype=torch.int64)
    learner = note.NOTE(model[1], None, {"train": [(image[None], label, label) for image in images]}, "")  # type: ignore[index]
    memory, layers, draws = learner.mem, note.InstanceAwareBatchNorm2d, MemoryDraws(len(images))
    outcomes: set[tuple[bool, bool]] = set()
    sizes: set[bool] = set()
    moves: set[bool] = set()
    add, remove, shrink = memory.add_instance, memory.remove_instance, layers._softshrink

    def noted_add(instance: list[Tensor]) -> None:
        draws.next_image()
        add(instance)

    def noted_removal(label: Tensor) -> bool:
        own = int(label) in memory.get_largest_indices()
        done: bool = remove(label)
        outcomes.add((own, done))
        return done

    def noted_shrink(layer: nn.Module, x: Tensor, limit: Tensor) -> Tensor:
        y: Tensor = shrink(layer, x, limit)
        moves.update((y != 0).flatten().tolist())
        return y

    memory.add_instance, memory.remove_instance = noted_add, noted_removal
    for layer in learner.net.modules():
        if isinstance(layer, layers):
            layer.register_forward_pre_hook(lambda _, inputs: sizes.add(inputs[0][0, 0].numel() > 1))
    answers: list[Tensor] = []
    evaluate = learner.evaluation_online

    def noted_evaluation(*given: object) -> None:
        handle = learner.net.register_forward_hook(lambda _, __, output: answers.append(output))
        evaluate(*given)
        handle.remove()

    learner.evaluation_online = noted_evaluation
    with (
        mock.patch.object(note.memory, "random", draws),
        mock.patch.object(note, "DataLoader", in_order),
        mock.patch.object(layers, "_softshrink", noted_shrink),
        mock.patch("builtins.print"),
    ):
        outcome = [learner.train_online(number + 1) for number in range(len(images))]
    assert outcome.count(0) == len(images) // EVERY
    assert outcomes == {(False, True), (True, True), (True, False)}
    if instance_aware:
        assert sizes == moves == {True, False}
    return torch.cat(answers).view(*stream.shape[:2], -1)


RUNS = [
    OfficialRun(
        f"note-{name}",
        Note,
        {
            "lr": LR,
            "statistics_share": SHARE,
            "capacity": CAPACITY,
            "update_every": EVERY,
            "instance_aware": name == "iabn",
        },
        model,
        "TaesikGong/NOTE/learner/note.py",
        (
            "an image that replaces one of its own class, one of a larger class, and one that is refused",
            *(["statistics of an image that count and that do not", "maps of one value"] if name == "iabn" else []),
        ),
        partial(official, name == "iabn"),
        lambda golden: pixels(golden.stream.double()),
        tolerance=1e-9,
    )
    for name in ("iabn", "plain")
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
