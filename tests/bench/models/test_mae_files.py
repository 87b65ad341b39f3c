"""Files in the layout of MAE's release give the results of a plain reimplementation of its forward pass."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.models.weights_io import load_stock, preprocessing_of, save_weights
from methods.nets.weights import build_encoder
from methods.selfsoup.objectives import mae

DIM, DEPTH, HEADS, DECODER, DECODER_DEPTH, DECODER_HEADS, PATCH, SIDE = 128, 2, 2, 64, 2, 2, 8, 4


def positions(dim: int, side: int) -> Tensor:
    """The fixed embedding, as the release computes it with numpy in the order (w, h)."""
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    w, h = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    halves = []
    for grid in (w, h):
        angles = np.einsum("m,d->md", grid.reshape(-1), omega)
        halves.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    table = np.concatenate([np.zeros([1, dim]), np.concatenate(halves, axis=1)], axis=0)
    return torch.from_numpy(table).float()[None]


def official(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of the release."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    def block(prefix: str, dim: int) -> dict[str, Tensor]:
        return {
            f"{prefix}.norm1.weight": 1 + random(dim),
            f"{prefix}.norm1.bias": random(dim),
            f"{prefix}.attn.qkv.weight": random(3 * dim, dim),
            f"{prefix}.attn.qkv.bias": random(3 * dim),
            f"{prefix}.attn.proj.weight": random(dim, dim),
            f"{prefix}.attn.proj.bias": random(dim),
            f"{prefix}.norm2.weight": 1 + random(dim),
            f"{prefix}.norm2.bias": random(dim),
            f"{prefix}.mlp.fc1.weight": random(4 * dim, dim),
            f"{prefix}.mlp.fc1.bias": random(4 * dim),
            f"{prefix}.mlp.fc2.weight": random(dim, 4 * dim),
            f"{prefix}.mlp.fc2.bias": random(dim),
        }

    tensors = {
        "cls_token": random(1, 1, DIM),
        "pos_embed": positions(DIM, SIDE),
        "mask_token": random(1, 1, DECODER),
        "decoder_pos_embed": positions(DECODER, SIDE),
        "patch_embed.proj.weight": random(DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(DIM),
    }
    for number in range(DEPTH):
        tensors |= block(f"blocks.{number}", DIM)
    tensors |= {"norm.weight": 1 + random(DIM), "norm.bias": random(DIM)}
    tensors |= {"decoder_embed.weight": random(DECODER, DIM), "decoder_embed.bias": random(DECODER)}
    for number in range(DECODER_DEPTH):
        tensors |= block(f"decoder_blocks.{number}", DECODER)
    tensors |= {"decoder_norm.weight": 1 + random(DECODER), "decoder_norm.bias": random(DECODER)}
    tensors |= {"decoder_pred.weight": random(3 * PATCH**2, DECODER), "decoder_pred.bias": random(3 * PATCH**2)}
    return tensors


def run_block(t: dict[str, Tensor], prefix: str, x: Tensor, heads: int, eps: float) -> Tensor:
    n, length, dim = x.shape

    def norm(name: str, value: Tensor) -> Tensor:
        mean, variance = value.mean(-1, keepdim=True), value.var(-1, keepdim=True, unbiased=False)
        return (value - mean) / (variance + eps).sqrt() * t[f"{prefix}.{name}.weight"] + t[f"{prefix}.{name}.bias"]

    qkv = norm("norm1", x) @ t[f"{prefix}.attn.qkv.weight"].T + t[f"{prefix}.attn.qkv.bias"]
    q, k, v = qkv.reshape(n, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).reshape(n, length, dim)
    x = x + mixed @ t[f"{prefix}.attn.proj.weight"].T + t[f"{prefix}.attn.proj.bias"]
    hidden = norm("norm2", x) @ t[f"{prefix}.mlp.fc1.weight"].T + t[f"{prefix}.mlp.fc1.bias"]
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + gelu @ t[f"{prefix}.mlp.fc2.weight"].T + t[f"{prefix}.mlp.fc2.bias"]


def official_loss(t: dict[str, Tensor], images: Tensor, noise: Tensor, *, norm_pix: bool, eps: float = 1e-6) -> Tensor:
    """forward_encoder with random_masking, forward_decoder and forward_loss of the release."""
    n, patches = noise.shape
    keep = int(patches * (1 - 0.75))
    x = F.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + t["pos_embed"][:, 1:]
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    x = torch.gather(x, 1, shuffle[:, :keep, None].repeat(1, 1, DIM))
    mask = torch.ones(n, patches)
    mask[:, :keep] = 0
    mask = torch.gather(mask, 1, restore)
    x = torch.cat([(t["cls_token"] + t["pos_embed"][:, :1]).expand(n, -1, -1), x], dim=1)
    for number in range(DEPTH):
        x = run_block(t, f"blocks.{number}", x, HEADS, eps)
    x = F.layer_norm(x, (DIM,), t["norm.weight"], t["norm.bias"], eps)
    x = x @ t["decoder_embed.weight"].T + t["decoder_embed.bias"]
    every = torch.cat([x[:, 1:], t["mask_token"].repeat(n, patches - keep, 1)], dim=1)
    every = torch.gather(every, 1, restore[..., None].repeat(1, 1, DECODER))
    x = torch.cat([x[:, :1], every], dim=1) + t["decoder_pos_embed"]
    for number in range(DECODER_DEPTH):
        x = run_block(t, f"decoder_blocks.{number}", x, DECODER_HEADS, eps)
    x = F.layer_norm(x, (DECODER,), t["decoder_norm.weight"], t["decoder_norm.bias"], eps)
    prediction = (x @ t["decoder_pred.weight"].T + t["decoder_pred.bias"])[:, 1:]
    target = images.reshape(n, 3, SIDE, PATCH, SIDE, PATCH)
    target = torch.einsum("nchpwq->nhwpqc", target).reshape(n, patches, PATCH**2 * 3)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    loss = ((prediction - target) ** 2).mean(-1)
    return (loss * mask).sum() / mask.sum()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mae_tiny.pth"
    torch.save({"model": official()}, path)
    return path


@pytest.mark.parametrize("norm_pix", [False, True])
def test_encoder_and_decoder_compute_what_the_release_does(tmp_path: Path, *, norm_pix: bool) -> None:
    # Small contrasts, where the epsilon of the norms shows.
    images = 1e-3 * torch.randn(5, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
    tensors = official()
    tensors |= {k: 1e-3 * v for k, v in tensors.items() if k in ("cls_token", "pos_embed", "patch_embed.proj.bias")}
    torch.save({"model": tensors}, tmp_path / "quiet.pth")
    stock = load_stock(str(tmp_path / "quiet.pth"))
    encoder = build_encoder(stock.architecture)
    encoder.load_state_dict(stock.part("encoder"))
    objective = mae.Config(norm_pix=norm_pix).build(stock, torch.Generator().manual_seed(9))
    noise = torch.rand(5, SIDE**2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mine = objective.loss(encoder, [images], torch.Generator().manual_seed(2))
        theirs = official_loss(tensors, images, noise, norm_pix=norm_pix)
        other_eps = official_loss(tensors, images, noise, norm_pix=norm_pix, eps=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert abs(float(other_eps - theirs)) > 1e-3 * float(theirs)


def test_the_representation_is_the_class_token(file: Path) -> None:
    stock, t = load_stock(str(file)), official()
    encoder = build_encoder(stock.architecture).eval()
    encoder.load_state_dict(stock.part("encoder"))
    images = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    x = F.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([t["cls_token"].expand(2, -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + t["pos_embed"]
    for number in range(DEPTH):
        x = run_block(t, f"blocks.{number}", x, HEADS, 1e-6)
    x = F.layer_norm(x, (DIM,), t["norm.weight"], t["norm.bias"], 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), x[:, 0], rtol=1e-4, atol=1e-4)


def test_the_architecture_of_the_release_is_read_from_its_shapes(tmp_path: Path) -> None:
    """ViT-B/16 with a decoder of 8 blocks and 512 channels; shapes do not determine the release's head counts."""
    from bench.models.mae_files import architecture_of

    for width, depth, heads, patch in ((768, 12, 12, 16), (1024, 24, 16, 16), (1280, 32, 16, 14)):
        side = 224 // patch
        shapes = {
            "patch_embed.proj.weight": (width, 3, patch, patch),
            "pos_embed": (1, side * side + 1, width),
            "decoder_embed.bias": (512,),
            **{f"blocks.{n}.norm1.bias": (width,) for n in range(depth)},
            **{f"decoder_blocks.{n}.norm1.bias": (512,) for n in range(8)},
        }
        found = architecture_of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "x")
        assert (found.image_size, found.patch_size, found.dim, found.depth, found.heads) == (
            224,
            patch,
            width,
            depth,
            heads,
        )
        assert (found.decoder_dim, found.decoder_depth, found.decoder_heads) == (512, 8, 16)
        assert (found.layer_norm_eps, found.pool) == (1e-6, "token")


def test_safetensors_and_training_checkpoints_hold_the_same_stock(file: Path, tmp_path: Path) -> None:
    wanted = load_stock(str(file)).digest
    save_file(official(), tmp_path / "same.safetensors")
    torch.save(
        {"model": official(), "epoch": 799, "args": argparse.Namespace(model="x")}, tmp_path / "checkpoint-799.pth"
    )
    assert load_stock(str(tmp_path / "same.safetensors")).digest == wanted
    assert load_stock(str(tmp_path / "checkpoint-799.pth")).digest == wanted


def test_a_file_of_the_encoder_alone_has_no_decoder(tmp_path: Path) -> None:
    tensors = {k: v for k, v in official().items() if not k.startswith(("decoder", "mask_token"))}
    torch.save({"model": tensors}, tmp_path / "encoder.pth")
    stock = load_stock(str(tmp_path / "encoder.pth"))
    assert not stock.part("decoder")
    fresh = mae.Config().build(stock, torch.Generator().manual_seed(0))
    assert len(fresh.decoder.blocks) == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.1.attn.qkv.bias"), "lacks blocks.1.attn.qkv.bias"),
        (lambda t: t.pop("decoder_pred.weight"), "lacks pred.weight"),
        (lambda t: t.pop("patch_embed.proj.weight"), "layout of MAE's release"),
        (lambda t: t.update({"blocks.0.ls1.gamma": torch.ones(DIM)}), "has blocks.0.ls1.gamma"),
        (lambda t: t.update({"norm.bias": torch.zeros(3)}), r"norm.bias is \[3\]"),
        (lambda t: t["cls_token"].fill_(torch.inf), "not finite"),
        (lambda t: t["decoder_pos_embed"].add_(1), "learned decoder positions"),
        (lambda t: t.update(pos_embed=torch.zeros(1, 12, DIM)), "pos_embed is"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.zeros(130, 3, PATCH, PATCH)}), "MAE"),
    ],
)
def test_files_that_are_something_else_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    tensors = official()
    change(tensors)
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(UsageError, match=said) as caught:
        load_stock(str(tmp_path / "bad.pth"))
    assert "bad.pth" in str(caught.value)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UsageError, match=r"lacks patch_embed\.proj\.weight"):
        load_stock(str(tmp_path / "resnet.pth"))


def test_a_stock_file_that_lost_tensors_is_refused(tmp_path: Path) -> None:
    from methods.nets.weights import Weights

    stock = load_stock("digits")
    tensors = {name: tensor for name, tensor in stock.tensors.items() if "blocks.2" not in name}
    save_weights(tmp_path / "less.safetensors", Weights(stock.architecture, tensors), {})
    with pytest.raises(UsageError, match=r"lacks blocks\.2"):
        load_stock(str(tmp_path / "less.safetensors"))
    save_file(dict(stock.tensors), tmp_path / "odd.safetensors", metadata={"architecture": '{"dim": "wide"}'})
    with pytest.raises(UsageError, match="damaged metadata"):
        load_stock(str(tmp_path / "odd.safetensors"))


class TestTimm:
    """Encoders of timm: features equal timm's own, the decoder is a fresh one."""

    @pytest.mark.parametrize("pool", ["token", "avg"])
    def test_features_are_those_of_timm(self, pool: str, tmp_path: Path) -> None:
        options = {"global_pool": pool, "fc_norm": False}
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
        timm.models.save_for_hf(network, str(tmp_path / "vit"), model_args=options)
        stock = load_stock(f"timm:local-dir:{tmp_path / 'vit'}")
        assert not stock.part("decoder")
        encoder = stock.architecture.build().eval()
        encoder.load_state_dict(stock.part("encoder"))
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images), network(images), rtol=1e-5, atol=1e-5)
        assert stock.architecture.mean == (0.5, 0.5, 0.5)
        found = preprocessing_of(stock)
        assert found is not None
        assert found.size == 224

    def test_a_file_of_a_classifier_loses_its_head(self, tmp_path: Path) -> None:
        network = timm.create_model("test_vit", num_classes=10)
        torch.save(network.state_dict(), tmp_path / "c.pth")
        with pytest.raises(UsageError, match="architecture"):
            load_stock(f"timm:resnet10t@{tmp_path / 'c.pth'}")
        network = timm.create_model("vit_tiny_patch16_224", num_classes=10)
        torch.save(network.state_dict(), tmp_path / "c.pth")
        stock = load_stock(f"timm:vit_tiny_patch16_224@{tmp_path / 'c.pth'}")
        assert not any("head" in name for name in stock.tensors)


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="bench stock --data DATA"):
        load_stock(str(tmp_path / "absent.pth"))
    with pytest.raises(BenchError, match="no stock 'vit'"):
        load_stock("vit")
