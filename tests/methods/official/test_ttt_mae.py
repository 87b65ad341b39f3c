"""TTT-MAE, held against yossigandelsman/test_time_training_mae: its loop over test images."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from golden_streams import Golden
from official_streams import OfficialRun, release
from torch import Tensor, nn

from methods.adapters.ttt_mae import TttMae, TttMaeOnline
from methods.nets.masked_autoencoder import Decoder
from methods.nets.weights import Architecture, AutoencoderClassifier

CLASSES, STEPS, VIEWS = 10, 4, 8
SHAPE = Architecture(
    image_size=32,
    patch_size=8,
    dim=32,
    depth=2,
    heads=4,
    decoder_dim=16,
    decoder_depth=2,
    decoder_heads=2,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    pool="token",
)


def model(golden: Golden) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = AutoencoderClassifier(SHAPE, CLASSES, Decoder(SHAPE).state_dict())
        made.decoder["mask_token"] = 0.1 * torch.randn(1, 1, SHAPE.decoder_dim)
        with torch.no_grad():
            made.encoder.get_parameter("cls_token").add_(0.1 * torch.randn(1, 1, SHAPE.dim))
    return made


def images(golden: Golden) -> Tensor:
    return golden.stream[:2, :4]


def theirs_of(ours: Any) -> dict[str, Tensor]:
    """The tensors of our classifier by the release's names; its head normalises features, here by 0 and 1."""
    tensors = {name: tensor.clone() for name, tensor in ours.encoder.state_dict().items()}
    decoder = Decoder(SHAPE)
    for name, tensor in ours.decoder.items():
        tensors[name if name == "mask_token" else f"decoder_{name}"] = tensor.clone()
    tensors["decoder_pos_embed"] = decoder.positions
    tensors["bn.running_mean"] = torch.zeros(SHAPE.dim)
    tensors["bn.running_var"] = torch.full((SHAPE.dim,), 1 - 1e-6)
    tensors["bn.num_batches_tracked"] = torch.tensor(0)
    return {**tensors, "head.weight": ours.head.weight.detach(), "head.bias": ours.head.bias.detach()}


def official(norm_pix: bool, online: bool, ours: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    engine = release("test_time_training_mae", "engine_test_time", {"torch._six": {"inf": math.inf}})
    made: list[Any] = []

    def build(**options: Any) -> Any:
        shape = {"img_size": SHAPE.image_size, "patch_size": SHAPE.patch_size, "embed_dim": SHAPE.dim}
        shape |= {"depth": SHAPE.depth, "num_heads": SHAPE.heads, "decoder_embed_dim": SHAPE.decoder_dim}
        shape |= {"decoder_depth": SHAPE.decoder_depth, "decoder_num_heads": SHAPE.decoder_heads}
        norm = partial(nn.LayerNorm, eps=SHAPE.layer_norm_eps)
        with mock.patch.object(np, "float", float, create=True):  # as in the numpy of the release
            made.append(engine.models_mae_shared.MaskedAutoencoderViT(**{**shape, "norm_layer": norm, **options}))
        return made[-1]

    base = build(num_classes=CLASSES, head_type="linear", norm_pix_loss=norm_pix)
    base.load_state_dict(theirs_of(ours))
    answers: list[Tensor] = []
    forward = type(base).forward

    def noted(self: Any, *inputs: Any, **options: Any) -> Any:
        out = forward(self, *inputs, **options)
        if options.get("reconstruct") is False:
            answers.append(out[3].detach())
        return out

    started: list[tuple[Any, ...]] = []
    start = engine._reinitialize_model
    adapted: list[Mapping[str, Tensor]] = []

    def started_anew(*given: Any) -> Any:
        if started:
            adapted.append({name: tensor.clone() for name, tensor in made[-1].state_dict().items()})
        if not started or not online:
            started.append(start(*given))
        return started[-1]

    draws = torch.Generator().manual_seed(7)
    rand = torch.rand
    every = stream.flatten(0, 1)
    label = torch.zeros((), dtype=torch.int64)
    args = SimpleNamespace(
        model="mae_vit_large_patch16",
        head_type="linear",
        norm_pix_loss=norm_pix,
        stored_latents="",
        optimizer_type="sgd",
        optimizer_momentum=0.9,
        lr=LR,
        finetune_mode="encoder",
        load_loss_scalar=False,
        steps_per_example=STEPS,
        accum_iter=1,
        mask_ratio=0.75,
        num_workers=0,
        verbose=False,
    )
    train = [(image.expand(VIEWS, -1, -1, -1), label) for image in every for _ in range(STEPS)]
    first = SimpleNamespace(mode=lambda found: SimpleNamespace(mode=found[:1]))
    with (
        tempfile.TemporaryDirectory() as args.output_dir,
        mock.patch.dict(vars(engine.models_mae_shared), {args.model: build}),
        mock.patch.object(engine, "_reinitialize_model", started_anew),
        mock.patch.object(engine, "save_accuracy_results"),
        mock.patch.object(engine, "stats", first),  # this scipy has no list of modes
        mock.patch.object(type(base), "forward", noted),
        mock.patch.object(torch, "rand", lambda *size, device: rand(*size, generator=draws)),
        mock.patch("builtins.print"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        test = [(image[None], label) for image in every]
        engine.train_on_test(base, None, None, train, test, torch.device("cpu"), args=args, num_classes=CLASSES)
    assert len(answers) == STEPS * len(every)
    before = base.state_dict()
    moved = {name for name, tensor in adapted[-1].items() if not torch.equal(tensor, before[name])}
    assert {"mask_token", "cls_token", "patch_embed.proj.weight", "norm.bias"} < moved
    assert not any(name.startswith(("decoder", "head", "bn", "pos_embed")) for name in moved)
    assert len(adapted) == len(every)
    return torch.cat(answers[STEPS - 1 :: STEPS]).view(*stream.shape[:2], CLASSES)


LR = 0.05
RUNS = [
    OfficialRun(
        f"{'ttt_mae_online' if online else 'ttt_mae'}-{'patches' if norm_pix else 'pixels'}",
        TttMaeOnline if online else TttMae,
        {"lr": LR, "steps": STEPS, "views": VIEWS, "norm_pix": norm_pix},
        model,
        "yossigandelsman/test_time_training_mae/engine_test_time.py, train_on_test",
        (
            "training of encoder and mask token alone",
            "without a new start at each image" if online else "a new start at each image",
            "patches normalised by themselves" if norm_pix else "raw pixels",
        ),
        partial(official, norm_pix, online),
        images,
    )
    for norm_pix, online in ((False, False), (True, False), (False, True))
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_as_the_release(run: OfficialRun, held_to_release: Callable[[OfficialRun], None]) -> None:
    held_to_release(run)
