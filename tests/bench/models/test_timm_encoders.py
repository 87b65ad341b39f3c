"""Stocks from timm: features equal timm's, files round-trip, and unsuitable networks are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.cli import main as cli
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.models.timm_encoders import timm_architecture
from bench.models.weights_io import load_stock, load_weights, preprocessing_of, save_weights, shown_name
from bench.planning.plan import make_plan
from bench.settings.run_spec import make_spec
from bench.training.pretrain_stock import StockSpec, make_stock, plan_stock, train_stock
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mae


def random_network(name: str, seed: int = 0, **options: Any) -> Any:
    """A timm network without zero parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(name, pretrained=False, **options).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def file_of(network: Any, path: Path) -> Path:
    save_file(network.state_dict(), path)
    return path


def features(stock: Weights, images: Tensor) -> Tensor:
    encoder = stock.architecture.build().eval()
    encoder.load_state_dict(stock.part("encoder"))
    with torch.no_grad():
        out: Tensor = encoder(images)
    return out


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_vit3", "test_vit_relpos"]
)
def test_an_encoder_of_a_file_gives_the_features_of_timm(name: str, tmp_path: Path) -> None:
    network = random_network(name, num_classes=7)
    stock = load_stock(f"timm:{name}@{file_of(network, tmp_path / 'w.safetensors')}")
    shape = stock.architecture
    assert isinstance(shape, TimmArchitecture)
    assert (shape.name, shape.image_size) == (name, 160)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features(stock, images), expected, rtol=1e-5, atol=1e-5)
    assert shape.dim == expected.shape[1]
    assert not stock.part("decoder")
    assert stock.tensors.keys() == {f"encoder.{key}" for key in shape.build().state_dict()}
    config = network.pretrained_cfg
    assert (shape.mean, shape.std) == (tuple(config["mean"]), tuple(config["std"]))
    cut = preprocessing_of(stock)
    assert cut is not None
    assert (cut.size, cut.resize, cut.interpolation) == (160, int(160 / config["crop_pct"]), config["interpolation"])


def test_a_file_says_which_size_its_positions_are_for(tmp_path: Path) -> None:
    small = random_network("test_vit3", img_size=32, num_classes=0)
    stock = load_stock(f"timm:test_vit3@{file_of(small, tmp_path / 'small.safetensors')}")
    assert (stock.architecture.image_size, stock.architecture.cut[0]) == (32, 32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(features(stock, images), small(images), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_can_be_asked_for(tmp_path: Path) -> None:
    cnn = random_network("test_resnet", num_classes=10)
    path = file_of(cnn, tmp_path / "cnn.safetensors")
    name = f"timm:test_resnet@{path}:32"
    stock = load_stock(name)
    assert (stock.architecture.image_size, preprocessing_of(stock).resize) == (32, 32)  # type: ignore[union-attr]
    assert stock.part("encoder").keys() == load_stock(f"timm:test_resnet@{path}").part("encoder").keys()
    assert shown_name(name, stock) == "timm:test_resnet@cnn.safetensors:32"
    vit = random_network("test_vit2", num_classes=0)
    stock = load_stock(f"timm:test_vit2@{file_of(vit, tmp_path / 'vit.safetensors')}:64")
    # timm resamples positions in the same way where it may see images of any size.
    dynamic = timm.create_model("test_vit2", num_classes=0, dynamic_img_size=True).eval()
    dynamic.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(features(stock, images), dynamic(images), rtol=1e-4, atol=1e-5)


def test_a_masked_autoencoder_of_timm_keeps_the_architecture_it_always_had(tmp_path: Path) -> None:
    shape = Architecture(224, 16, 192, 12, 3, 512, 8, 16, (0.5,) * 3, (0.5,) * 3, "token", 1e-6)
    encoder = build_encoder(shape)
    path = tmp_path / "mae.safetensors"
    save_file(dict(encoder.state_dict()), path)
    stock = load_stock(f"timm:vit_tiny_patch16_224@{path}")
    assert stock.architecture == shape
    assert stock.digest == Weights(shape, {f"encoder.{k}": v for k, v in encoder.state_dict().items()}).digest
    learnt = random_network("vit_tiny_patch16_224", num_classes=0)
    stock = load_stock(f"timm:vit_tiny_patch16_224@{file_of(learnt, tmp_path / 'learnt.safetensors')}")
    assert isinstance(stock.architecture, TimmArchitecture)


def test_a_stock_comes_back_from_its_file(tmp_path: Path) -> None:
    network = random_network("test_vit3", img_size=32, num_classes=0)
    stock = load_stock(f"timm:test_vit3@{file_of(network, tmp_path / 'w.safetensors')}")
    shape = replace(stock.architecture, options=(("fc_norm", False), ("init_values", 0.5), ("global_pool", "avg")))
    for weights in (stock, Weights(shape, {"head.bias": torch.zeros(3)})):
        save_weights(tmp_path / "s.safetensors", weights, {})
        again, _ = load_weights(tmp_path / "s.safetensors")
        assert again.architecture == weights.architecture
        assert again.digest == weights.digest
    decoder = mae.Decoder(stock.architecture).state_dict()
    both = Weights(stock.architecture, {**stock.tensors, **{f"decoder.{k}": v for k, v in decoder.items()}})
    save_weights(tmp_path / "both.safetensors", both, {})
    assert load_stock(str(tmp_path / "both.safetensors")).digest == both.digest


GOOD = {"name": "test_resnet", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": 32}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "hf-hub:somebody/net"},
        {"name": "local-dir:/etc"},
        {"name": None},
        {"name": ["test_resnet"]},
        {"image_size": "wide"},
        {"image_size": 10**9, "resize": 10**9},
        {"std": [0, 0, 0]},
        {"mean": [1e999, 0, 0]},
        {"options": [["pretrained", True]]},
        {"options": [["checkpoint_path", "/etc/passwd"]]},
        {"options": [["reg_tokens", 10**9]]},
        {"options": {"global_pool": {}}},
        {"interpolation": 3},
    ],
)
def test_hostile_metadata_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    encoder = {f"encoder.{k}": v for k, v in random_network("test_resnet", num_classes=0).state_dict().items()}
    path = tmp_path / "hostile.safetensors"
    save_file(encoder, path, metadata={"architecture": json.dumps(GOOD)})
    assert load_stock(str(path)).architecture.image_size == 32
    save_file(encoder, path, metadata={"architecture": json.dumps({**GOOD, **change})})
    with pytest.raises(UsageError, match="damaged metadata"):
        load_stock(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, "null", '"name"', "{", '{"name": "test_resnet"}'])
def test_metadata_that_is_no_architecture_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"architecture": text})
    with pytest.raises(UsageError):
        load_stock(str(path))


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("test_resnet", lambda t: t | {"extra": torch.zeros(1)}, "has extra"),
        ("test_resnet", lambda t: {k: v for k, v in t.items() if k != "bn1.running_var"}, r"lacks bn1\.running_var"),
        ("test_vit3", lambda t: t | {"pos_embed": torch.zeros(1, 12, 96)}, r"pos_embed is \[1, 12, 96\]"),
        ("test_vit3", lambda t: t | {"norm.weight": torch.full((96,), torch.nan)}, "not finite"),
        ("test_resnet", lambda t: t | {"conv1.0.weight": torch.zeros(1)}, r"conv1\.0\.weight is \[1\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(spoil(dict(random_network(name, num_classes=0).state_dict())), path)
    with pytest.raises(UsageError, match=sentence):
        load_stock(f"timm:{name}@{path}")


def test_what_cannot_be_a_stock_is_said(tmp_path: Path) -> None:
    for name, error, sentence in [
        ("resnet1", UsageError, "did you mean"),
        ("test_resnet@absent.pth", MissingDataError, "no file"),
        ("test_resnet@absent.pth:0", BenchError, "no file|image_size"),
    ]:
        with pytest.raises(error, match=sentence):
            load_stock(f"timm:{name}")
    cnn = file_of(random_network("test_resnet", num_classes=0), tmp_path / "cnn.safetensors")
    with pytest.raises(UsageError, match=r"image_size 100000 must lie"):
        load_stock(f"timm:test_resnet@{cnn}:100000")
    dino = random_network("test_vit3", num_classes=0)
    with pytest.raises(UsageError, match=r"patches of 16 px, and 40 is no multiple"):
        load_stock(f"timm:test_vit3@{file_of(dino, tmp_path / 'vit.safetensors')}:40")
    # A decoder has no place beside a network without patches.
    stock = load_stock(f"timm:test_resnet@{cnn}:32")
    save_weights(
        tmp_path / "d.safetensors", Weights(stock.architecture, {**stock.tensors, "decoder.x": torch.zeros(1)}), {}
    )
    with pytest.raises(UsageError, match="no tokens of single patches"):
        load_stock(str(tmp_path / "d.safetensors"))


def test_a_folder_of_timm_is_a_stock_with_its_options(tmp_path: Path) -> None:
    options = {"global_pool": "avg", "reg_tokens": 2, "init_values": 0.1, "img_size": 96}
    network = random_network("test_vit3", num_classes=0, **options)
    timm.models.save_for_hf(network, str(tmp_path / "vit"), model_args=options)
    stock = load_stock(f"timm:local-dir:{tmp_path / 'vit'}")
    shape = stock.architecture
    assert (shape.name, shape.image_size, shape.prefix) == ("test_vit3", 96, 2)  # type: ignore[attr-defined]
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(features(stock, images), network(images), rtol=1e-5, atol=1e-5)
    save_weights(tmp_path / "s.safetensors", stock, {})
    assert load_stock(str(tmp_path / "s.safetensors")).digest == stock.digest
    strange = {"mlp_ratio": 3.0}
    network = random_network("test_vit3", num_classes=0, **strange)
    timm.models.save_for_hf(network, str(tmp_path / "odd"), model_args=strange)
    with pytest.raises(UsageError, match="which a stock cannot store"):
        load_stock(f"timm:local-dir:{tmp_path / 'odd'}")


def test_names_of_timm_say_their_sizes_and_constants() -> None:
    dino = timm_architecture("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (dino.image_size, dino.tokens, dino.prefix, dino.dim, dino.resize) == (518, 1369, 5, 384, 518)
    assert timm_architecture("vit_small_patch14_reg4_dinov2.lvd142m", 224).tokens == 256
    siglip = timm_architecture("vit_base_patch16_siglip_224")
    assert (siglip.mean, siglip.prefix, siglip.tokens) == ((0.5,) * 3, 0, 196)
    assert timm_architecture("resnet18.a1_in1k", 160).resize == 160 * 235 // 224


# `bench stock` from random weights, and whole runs.


def quiet(done: int, loss: float | None) -> None:
    """Ignore progress."""


@pytest.mark.parametrize(
    ("arch", "objective", "parts"),
    [
        ("timm:test_vit3:32", None, {"encoder", "decoder"}),
        ("timm:test_resnet:32", None, {"encoder"}),
        ("timm:test_vit3:32", "mocov3", {"encoder"}),
        ("vit_micro_patch8_32", "mmcr", {"encoder"}),
    ],
)
def test_a_stock_of_any_architecture_is_made_read_back_and_reproducible(
    arch: str, objective: str | None, parts: set[str], tmp_path: Path
) -> None:
    spec = StockSpec("digits", arch=arch, objective=objective, steps=2, batch_size=16, limit=40)
    plan = plan_stock(spec)
    weights = make_stock(spec, tmp_path / "a.safetensors", quiet, plan)
    again = load_stock(str(tmp_path / "a.safetensors"))
    assert again.digest == weights.digest
    assert {name.partition(".")[0] for name in again.tensors} == parts
    assert weights.digest == train_stock(plan, spec)[0].digest
    facts = load_weights(tmp_path / "a.safetensors")[1]
    assert facts["objective"] == (objective or ("mae" if "decoder" in parts else "mmcr"))
    assert (facts["command"].count("--objective") == 1) == (objective is not None)
    # Mean and deviation are those of the data.
    assert max(again.architecture.mean) < 0.4
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"arch": "timm:test_resnet:32", "objective": "mae"}, "take the objectives mocov3, mmcr or lejepa"),
        ({"arch": "timm:test_resnet:32", "mask_ratio": 0.5}, "belong to --objective mae, not to mmcr"),
        ({"arch": "timm:test_resnet:32", "devices": 2, "device": "cpu"}, "leave --devices out"),
        ({"arch": "timm:test_resnet"}, "choose one that ends in :32"),
        ({"arch": "timm:resnet1:32"}, "did you mean"),
        ({"arch": "timm:test_vit3:30"}, "30 is no multiple"),
        ({"arch": "timm:resnet18:wide"}, "timm:NAME:PIXELS"),
        ({"arch": "timm:vgg11:3"}, "takes no images of 3 px"),
        ({"objective": "simclr"}, "objective"),
        ({"arch": "resnet18"}, "timm:resnet18:32"),
    ],
)
def test_a_stock_that_cannot_be_made_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_stock(StockSpec("digits", **options))


def bench(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as leave:
        cli.start()
    assert not leave.value.code


@pytest.mark.parametrize(
    ("name", "ingredients"),
    [
        ("test_resnet", '["mocov3","mmcr"]'),
        pytest.param("test_vit3", '["mae","lejepa"]', marks=pytest.mark.slow),
    ],
)
def test_soups_and_adapters_of_a_timm_stock_end_to_end(
    name: str, ingredients: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if name == "test_resnet" else {"img_size": 32}
    path = file_of(random_network(name, num_classes=0, **options), tmp_path / "weights.safetensors")
    stock = f"timm:{name}@{path}" + (":32" if not options else "")
    fast = [
        *("--set", "selfsoup.steps=2", "--set", "selfsoup.batch=16", "--set", f"selfsoup.ingredients={ingredients}"),
        *("--set", "source.epochs=1", "--set", "selfsoup.epochs=1", "--set", "supervised_soup.epochs=1"),
        *("--set", "supervised_soup.scales=[1.0, 2.0]", "--corruption", "fog", "--limit", "12", "--jobs", "1"),
    ]
    methods = "source,selfsoup,supervised_soup,selfsoup+tent"
    bench(
        monkeypatch,
        "run",
        "--method",
        methods,
        "--shift",
        "digits-c",
        "--stock",
        stock,
        *fast,
        "--out",
        str(tmp_path / "out"),
    )
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"done"}
    assert {record["method"] for record in records} == set(methods.split(","))
    assert {record["model"] for record in records} == {
        f"timm:{name}@weights.safetensors" + (":32" if not options else "")
    }
    assert str(tmp_path) not in json.dumps(records)


def test_a_stock_for_other_images_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = file_of(random_network("test_resnet", num_classes=0), tmp_path / "w.safetensors")
    given = {"method": "source", "shift": "digits-c", "stock": f"timm:test_resnet@{path}", "limit": 4}
    with pytest.raises(UsageError, match=r"images of 32 px but the stock takes 160 px; give one of 32, as timm:…:32"):
        make_plan(make_spec(given, {}))
    with pytest.raises(UsageError, match="take the objectives mocov3, mmcr or lejepa"):
        make_plan(make_spec({**given, "method": "selfsoup", "stock": f"timm:test_resnet@{path}:32"}, {}))
