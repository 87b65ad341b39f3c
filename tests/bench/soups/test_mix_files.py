"""`bench soup mix` and `inspect` on files: what they write and refuse, and that they never run what a file holds."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.models.tensor_files import Checkpoint, write_tensors
from bench.models.weights_io import load_stock, load_weights, save_weights
from bench.soups.mix_files import inspect, mix
from methods.nets.weights import Weights
from methods.soups.soup import uniform_soup


def tensors(seed: int, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(5, 4, generator=generator), "b": torch.randn((), generator=generator), **more}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_file(tensors(seed, count=torch.tensor(7)), path)
    return paths


def mixed(files: list[Path], how: str = "uniform", **more: Any) -> dict[str, Tensor]:
    out = files[0].parent / "soup.safetensors"
    options: dict[str, Any] = {"stock": None, "weights": (), "average_statistics": False} | more
    mix(files, out, how, **options)
    found: dict[str, Tensor] = load_file(out)
    return found


def test_soup_of_files_is_the_mean(files: list[Path]) -> None:
    found = mixed(files)
    every = [load_file(path) for path in files]
    for name in ("a.weight", "b"):
        mean = torch.stack([own[name].double() for own in every]).mean(0).float()
        assert torch.equal(found[name], mean)
    assert found["count"] == 7
    facts = json.loads(Checkpoint(files[0].parent / "soup.safetensors").metadata["facts"])
    assert [item["file"] for item in facts["ingredients"]] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert all(item["digest"].startswith("sha256:") for item in facts["ingredients"])


def test_files_and_memory_give_the_same_bits(tmp_path: Path) -> None:
    stock = load_stock("digits")
    generator = torch.Generator().manual_seed(0)
    models = [
        Weights(
            stock.architecture,
            {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in stock.tensors.items()},
        )
        for _ in range(3)
    ]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, model in zip(paths, models, strict=True):
        save_weights(path, model, {})
    mix(paths, tmp_path / "soup.safetensors", "uniform", None, (), False)
    assert load_weights(tmp_path / "soup.safetensors")[0].digest == uniform_soup(models).digest


def test_a_weighted_and_a_measured_soup(files: list[Path]) -> None:
    first, second, third = (load_file(path)["a.weight"] for path in files)
    found = mixed(files, "weighted", weights=(0.5, 0.75, -0.25))
    torch.testing.assert_close(found["a.weight"], 0.5 * first + 0.75 * second - 0.25 * third)
    found = mixed(files[1:], "wise:alpha=0.25", stock=files[0])
    torch.testing.assert_close(found["a.weight"], 0.75 * first + 0.125 * (second + third))


def test_pickled_state_dicts_are_read_as_weights_only(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {f"module.{n}": t for n, t in tensors(0).items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(tensors(1), tmp_path / "plain.pt")
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    torch.save({"x": [1, 2]}, tmp_path / "list.pth")
    (tmp_path / "broken.pth").write_bytes((tmp_path / "plain.pt").read_bytes()[:300])
    found = mixed([tmp_path / "wrapped.pth", tmp_path / "plain.pt"])
    torch.testing.assert_close(found["b"], (tensors(0)["b"] + tensors(1)["b"]) / 2)
    for name in ("evil.pth", "list.pth", "broken.pth"):
        with pytest.raises(UsageError, match=name):
            Checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_mixed_is_one_sentence_and_writes_nothing(files: list[Path], tmp_path: Path) -> None:
    def refused(message: str, given: list[Path], how: str = "uniform", **more: Any) -> None:
        with pytest.raises(UsageError, match=message):
            mixed(given, how, **more)
        assert not (tmp_path / "soup.safetensors").exists()

    def file(name: str, content: dict[str, Tensor]) -> Path:
        path = tmp_path / name
        save_file(content, path)
        return path

    count = torch.tensor(7)
    refused("other stock|different stocks", [_of_stock(tmp_path, "x"), _of_stock(tmp_path, "y")])
    refused("lacks", [files[0], file("more.safetensors", tensors(0))])
    refused(
        "is not finite", [files[0], file("nan.safetensors", tensors(0, count=count) | {"b": torch.tensor(torch.nan)})]
    )
    refused("differ between", [files[0], file("count.safetensors", tensors(0, count=torch.tensor(8)))])
    refused("shape|float32", [files[0], file("shape.safetensors", tensors(0, count=count) | {"b": torch.ones(2)})])
    norm = file("norm.safetensors", tensors(0, count=count) | {"n.running_mean": torch.zeros(2)})
    refused("BatchNorm", [norm, norm])
    refused("--stock", files, "model_stock")
    refused("sum to 1", files, "weighted", weights=(1.0, 1.0, 1.0))
    refused("2 weights for 3", files, "weighted", weights=(0.5, 0.5))
    refused("needs --weights", files, "weighted")
    refused("belongs to", files, "uniform", weights=(1.0,))
    refused("did you mean", files, "unifrom")
    assert mixed([norm, norm], average_statistics=True)["n.running_mean"].tolist() == [0, 0]
    with pytest.raises(MissingDataError, match="no file"):
        Checkpoint(tmp_path / "missing.safetensors")
    assert not list(tmp_path.glob(".*"))


def test_where_a_soup_may_be_written(files: list[Path], tmp_path: Path) -> None:
    for out, error, sentence in (
        (files[1], UsageError, "would be lost"),
        (tmp_path / "x.pth", UsageError, r"name the file .*x\.safetensors"),
        (files[0] / "below.safetensors", BenchError, "cannot write"),
    ):
        before = [path.read_bytes() for path in files]
        with pytest.raises(error, match=sentence):
            mix(files, out, "uniform", None, (), False)
        assert [path.read_bytes() for path in files] == before


def test_odd_files_are_one_sentence(files: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    whole = files[0].read_bytes()
    for name, content, sentence in (
        ("half.safetensors", whole[: len(whole) // 2], "not a whole safetensors file"),
        ("none.safetensors", b"", "not a whole safetensors file"),
        ("pickle.pt", pickle.dumps({"a": print}), "holds more than tensors"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            mixed([files[0], tmp_path / name])
    torch.save(tensors(0), tmp_path / "short.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "short.pth").read_bytes()[:200])
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"steps": torch.tensor([3])}, tmp_path / "ints.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    for name, sentence in (
        ("short.pth", "cannot be read"),
        ("folder.safetensors", "is a folder"),
        ("ints.safetensors", "nothing to mix"),
        ("empty.safetensors", "nothing to mix"),
    ):
        with pytest.raises(UsageError, match=sentence) as caught:
            mixed([tmp_path / name, tmp_path / name])
        assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_the_same_weights_twice_are_said(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    mixed([files[0], files[1], files[0]])
    assert "hold the same weights, which were counted twice" in capsys.readouterr().out
    mixed(files)
    assert "counted twice" not in capsys.readouterr().out


def test_facts_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    paths = []
    for number, facts in enumerate(("not json", "[1]", '{"stocks": 3}', '{"stocks": ["x"]}')):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(tensors(number), paths[-1], {"facts": facts})
    assert mixed(paths)["b"].shape == ()


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    """Two names of one storage, which safetensors refuses, are mixed alike and written separately."""
    for seed in range(2):
        shared = tensors(seed)["a.weight"]
        torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / f"{seed}.pth")
    found = mixed([tmp_path / "0.pth", tmp_path / "1.pth"])
    assert torch.equal(found["embed.weight"], found["head.weight"])


def test_inspection_leaves_out_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [tensors(0), tensors(1), tensors(2) | {"b": torch.ones(3)}, tensors(3) | {"b": torch.tensor(torch.nan)}]
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path, each in zip(paths, content, strict=True):
        save_file(each, path)
    inspect(paths, paths[0], as_json=True)
    found = json.loads(capsys.readouterr().out)
    own = float((content[2]["a.weight"].double() - content[0]["a.weight"].double()).norm())
    assert found["files"][2]["distance"] == pytest.approx(own)
    assert (found["files"][3]["finite"], found["files"][3]["norm"], found["files"][3]["distance"]) == (
        False,
        None,
        None,
    )
    assert found["cosines"][1][2] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(
            *((content[i]["a.weight"].double() - content[0]["a.weight"].double()).flatten() for i in (1, 2)), dim=0
        ))
    )  # fmt: skip
    inspect(paths, paths[0], as_json=False)
    assert "NO" in capsys.readouterr().out


def _of_stock(folder: Path, stock: str) -> Path:
    path = folder / f"of-{stock}.safetensors"
    save_file(tensors(0), path, {"facts": json.dumps({"stocks": [stock]})})
    return path


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    def fail(name: str) -> Tensor:
        raise OSError(28, "No space left on device")

    with pytest.raises(BenchError, match="No space left"):
        write_tensors(tmp_path / "x.safetensors", {"a": (torch.float32, (2,))}, fail, {})
    assert not list(tmp_path.iterdir())


def test_inspection_measures_from_the_stock(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    inspect(files, files[0], as_json=True)
    found = json.loads(capsys.readouterr().out)
    one, two = (load_file(path) for path in files[:2])
    squares = sum(float((two[n].double() - one[n].double()).square().sum()) for n in ("a.weight", "b"))
    assert found["files"][1]["distance"] == pytest.approx(squares**0.5)
    assert found["cosines"][1][1] == pytest.approx(1)
    inspect(files, None, as_json=False)
    assert "numbers" in capsys.readouterr().out


class TestFilesOfOthers:
    def test_shards_of_the_hub(self, tmp_path: Path) -> None:
        whole = tensors(0, count=torch.tensor(7))
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            names = {"a.weight": "model-00001-of-00002.safetensors"}
            names |= dict.fromkeys(("b", "count"), "model-00002-of-00002.safetensors")
            for shard in sorted(set(names.values())):
                save_file({n: whole[n] for n, own in names.items() if own == shard}, tmp_path / folder / shard)
            (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        mix([tmp_path / "a", tmp_path / "b/model.safetensors.index.json"], tmp_path / "soup.safetensors", "uniform",
            None, (), False)  # fmt: skip
        found = load_file(tmp_path / "soup.safetensors")
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        (tmp_path / "b/model-00002-of-00002.safetensors").unlink()
        with pytest.raises(MissingDataError, match=r"names model-00002-of-00002\.safetensors, which is not beside"):
            Checkpoint(tmp_path / "b")

    def test_prefixes_of_training_code(self, tmp_path: Path) -> None:
        for number, prefix in enumerate(("", "_orig_mod.module.", "model.", "backbone.")):
            torch.save({"state_dict": {prefix + n: t for n, t in tensors(number).items()}}, tmp_path / f"{number}.pth")
        found = mixed([tmp_path / f"{number}.pth" for number in range(4)])
        mean = torch.stack([tensors(number)["b"].double() for number in range(4)]).mean().float()
        assert torch.equal(found["b"], mean)

    def test_half_precision_is_mixed_in_single(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save_file({n: t.half() for n, t in tensors(0).items()}, tmp_path / "0.safetensors")
        save_file(tensors(1), tmp_path / "1.safetensors")
        found = mixed([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
        first = tensors(0)["b"].half().float()
        assert found["b"].dtype == torch.float32
        assert torch.equal(found["b"], ((first.double() + tensors(1)["b"].double()) / 2).float())
        assert (
            "2 tensors were stored in half precision; they were mixed and written in float32" in capsys.readouterr().out
        )

    def test_factors_of_lora_are_refused_and_merged_ones_are_not(self, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        merged = []
        for number in range(2):
            a, b = torch.randn(2, 4, generator=generator), torch.randn(5, 2, generator=generator)
            factors = {"base.q.lora_A.weight": a, "base.q.lora_B.weight": b}
            save_file(factors, tmp_path / f"{number}.safetensors")
            merged.append(b @ a)
            save_file({"q": b @ a}, tmp_path / f"merged{number}.safetensors")
        with pytest.raises(UsageError, match=r"holds LoRA factors \(base\.q\.lora_A\.weight\).*merge them into"):
            mixed([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
        found = mixed([tmp_path / "merged0.safetensors", tmp_path / "merged1.safetensors"])
        torch.testing.assert_close(found["q"], (merged[0] + merged[1]) / 2)

    def test_numbers_of_numpy_beside_the_weights(self, tmp_path: Path) -> None:
        import numpy as np

        content = {"model": tensors(0), "loss": np.float64(0.5), "step": np.int64(3), "ok": np.bool_(True)}
        torch.save(content, tmp_path / "0.pth")
        torch.save({"model": tensors(1), "acc": np.float32(1)}, tmp_path / "1.pth")
        assert torch.equal(mixed([tmp_path / "0.pth", tmp_path / "1.pth"])["b"], mixed([tmp_path / "0.pth",
                           tmp_path / "1.pth"])["b"])  # fmt: skip

    def test_files_that_share_nothing_have_no_cosine(
        self, files: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_file({"other": torch.ones(3)}, files[0].parent / "other.safetensors")
        other = files[0].parent / "other.safetensors"
        inspect(files[:2], other, as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert found["cosines"] == [[None, None], [None, None]]
        assert found["shared"] == [0, 0]
        assert found["files"][0]["distance"] is None
        inspect(files[:2], other, as_json=False)
        assert "share no tensor of the same name and shape" in capsys.readouterr().out
        inspect(files[:2], files[0], as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert found["cosines"][0] == [None, None], "a file that did not move has no direction"
        assert found["cosines"][1][1] == pytest.approx(1)
        assert found["shared"] == [2, 2]


class TestMoreWaysOfMixing:
    def test_dare_keeps_a_part_and_rescales_it(self, tmp_path: Path) -> None:
        stock = {"w": torch.zeros(400, 100)}
        one, two = {"w": torch.full((400, 100), 2.0)}, {"w": torch.full((400, 100), 4.0)}
        paths = [tmp_path / f"{n}.safetensors" for n in ("stock", "one", "two")]
        for path, content in zip(paths, (stock, one, two), strict=True):
            save_file(content, path)
        found = mixed(paths[1:], "dare:keep=0.25", stock=paths[0])["w"]
        assert set(found.unique().tolist()) == {0, 4.0, 8.0, 12.0}  # (2 / 0.25) / 2, (4 / 0.25) / 2, both
        assert float(found.mean()) == pytest.approx(3, abs=0.1)
        assert float((found == 0).float().mean()) == pytest.approx(0.75**2, abs=0.02)
        assert torch.equal(found, mixed(paths[1:], "dare:keep=0.25", stock=paths[0])["w"])
        assert not torch.equal(found, mixed(paths[1:], "dare:keep=0.25:seed=1", stock=paths[0])["w"])
        assert torch.equal(mixed(paths[1:], "dare:keep=1", stock=paths[0])["w"], torch.full((400, 100), 3.0))

    def test_slerp_goes_along_the_circle(self, tmp_path: Path) -> None:
        angle = 1.1
        first, second = torch.tensor([2.0, 0]), 2 * torch.tensor([angle, angle]).cos() * torch.tensor([1.0, 0])
        second = second + 2 * torch.tensor([0.0, 1]) * torch.tensor(angle).sin()
        for name, tensor in (("a", first), ("b", second)):
            save_file({"w": tensor}, tmp_path / f"{name}.safetensors")
        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for position in (0, 0.25, 0.5, 1):
            found = mixed(files, f"slerp:position={position}")["w"]
            at = torch.tensor(angle * position)
            torch.testing.assert_close(found, 2 * torch.stack([at.cos(), at.sin()]))
        with pytest.raises(UsageError, match="slerp goes from one model to another; give two, not 3"):
            mixed([*files, files[0]], "slerp")

    def test_model_stock_for_each_filter(self, tmp_path: Path) -> None:
        """Each row is mixed as the rule mixes it alone."""
        generator = torch.Generator().manual_seed(0)
        stock, *others = (torch.randn(6, 3, 2, 2, generator=generator) for _ in range(4))
        others = [stock + 0.1 * other for other in others]
        for number, tensor in enumerate((stock, *others)):
            save_file({"w": tensor, "b": tensor[:, 0, 0, 0].contiguous()}, tmp_path / f"{number}.safetensors")
        paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
        found = mixed(paths[1:], "model_stock:filter_wise=1", stock=paths[0])
        for row in range(6):
            for number, tensor in enumerate((stock, *others)):
                save_file({"w": tensor[row].contiguous()}, tmp_path / f"row{number}.safetensors")
            rows = [tmp_path / f"row{number}.safetensors" for number in range(4)]
            alone = mixed(rows[1:], "model_stock", stock=rows[0])
            torch.testing.assert_close(found["w"][row], alone["w"])
        torch.testing.assert_close(found["b"], mixed(paths[1:], "model_stock", stock=paths[0])["b"])

    @pytest.mark.parametrize(("keep", "kept"), [(0.5, 2), (0.39, 1), (0.79, 3), (0.05, 1)])
    def test_ties_keeps_as_many_as_mergekit(self, keep: float, kept: int, tmp_path: Path) -> None:
        """Of 5 entries int(5 keep), and one at least."""
        save_file({"w": torch.zeros(5)}, tmp_path / "stock.safetensors")
        save_file({"w": torch.tensor([1.0, 2, 3, 4, 5])}, tmp_path / "one.safetensors")
        found = mixed([tmp_path / "one.safetensors"], f"ties:keep={keep}", stock=tmp_path / "stock.safetensors")["w"]
        assert found.tolist() == [0.0] * (5 - kept) + [float(value) for value in range(6 - kept, 6)]


class TestWhichWeights:
    """Selection of weights in a file: timm's choice, prefixes of other code, and selection by key."""

    def saved(self, tmp_path: Path, **content: Any) -> Path:
        torch.save(content, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    def networks(self) -> tuple[Any, Any]:
        import timm

        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=5), timm.create_model("test_resnet", num_classes=5)

    @pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model_ema",),
                                      ("model", "state_dict"), ("state_dict_ema",)])  # fmt: skip
    def test_those_of_timm(self, keys: tuple[str, ...], tmp_path: Path) -> None:
        import timm

        from bench.models.load_model import load_ready

        path = self.saved(tmp_path, **{key: n.state_dict() for key, n in zip(keys, self.networks(), strict=False)})
        reference = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(path)).state_dict()
        model = load_ready(f"timm:test_resnet@{path}")
        assert all(torch.equal(tensor, reference[name]) for name, tensor in model.network.state_dict().items())
        assert bool(model.notes) == (len(keys) > 1)
        for key, network in zip(keys, self.networks(), strict=False):
            chosen = load_ready(f"timm:test_resnet@{path}#{key}")
            assert torch.equal(chosen.network.state_dict()["fc.weight"], network.state_dict()["fc.weight"])
            assert chosen.name.endswith(f"x.pth#{key}")

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "backbone.",
                                        "teacher.backbone.", "net."])  # fmt: skip
    def test_prefixes(self, prefix: str, tmp_path: Path) -> None:
        from bench.models.load_model import load_ready

        first, second = self.networks()
        content = {prefix + name: tensor for name, tensor in first.state_dict().items()}
        if prefix.startswith("teacher"):
            content |= {f"student.backbone.{name}": tensor for name, tensor in second.state_dict().items()}
            content["teacher.head.mlp.weight"] = torch.ones(2)
        model = load_ready(f"timm:test_resnet@{self.saved(tmp_path, state_dict=content)}")
        assert torch.equal(model.network.state_dict()["fc.weight"], first.state_dict()["fc.weight"])
        assert bool(model.notes) == (prefix not in ("module.", "_orig_mod.", "_orig_mod.module."))
        if prefix.startswith("teacher"):
            assert "left out" in model.notes[0]

    def test_a_teacher_and_its_student(self, tmp_path: Path) -> None:
        from bench.models.timm_encoders import timm_stock

        first, second = self.networks()
        of = [
            {f"backbone.{n}": t for n, t in net.state_dict().items() if not n.startswith("fc.")}
            for net in (first, second)
        ]
        path = self.saved(tmp_path, student=of[1], teacher={**of[0], "head.mlp.0.weight": torch.ones(3)}, epoch=3)
        weights = timm_stock(f"test_resnet@{path}")
        assert torch.equal(weights.tensors["encoder.conv1.0.weight"], first.state_dict()["conv1.0.weight"])
        weights = timm_stock(f"test_resnet@{path}#student")
        assert torch.equal(weights.tensors["encoder.conv1.0.weight"], second.state_dict()["conv1.0.weight"])

    def test_a_key_that_is_not_there(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, model=tensors(0), model_ema=tensors(1))
        with pytest.raises(UsageError, match="has no weights under modle, but model, model_ema; name one of these"):
            Checkpoint(Path(f"{path}#modle"))
        assert torch.equal(Checkpoint(Path(f"{path}#model"))["b"], tensors(0)["b"])
