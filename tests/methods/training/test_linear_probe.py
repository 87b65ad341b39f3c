"""The streamed linear probe against scikit-learn and scipy, on digits and photographs; its file and its memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

import methods.training.finetune
import methods.training.linear_probe
from methods.base import Labelled
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.ingredients import tensors_of
from methods.training.finetune import Probe, probe
from methods.training.linear_probe import linear_probe, streamed_probe
from methods.training.loop import reset

CPU = torch.device("cpu")
DATA = os.environ.get("SOUPBENCH_TEST_DATA", "")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits() -> tuple[Tensor, Tensor]:
    """Pixels, edges and random rectified sums of the digits of scikit-learn; some pixels never vary."""
    data = load_digits()
    pixels = torch.from_numpy(data.images).float()[:, None] / 16
    edges = F.avg_pool2d((pixels[:, :, 1:] - pixels[:, :, :-1]).abs(), 2)
    rest = torch.relu(pixels.flatten(1) @ torch.randn(64, 32, generator=seeded()))
    return torch.cat([pixels.flatten(1), edges.flatten(1), rest], 1), torch.from_numpy(data.target)


def photographs() -> tuple[Tensor, Tensor]:
    """Colours, and random rectified sums of them, of 3,000 train images of CIFAR-10; closely correlated."""
    if not DATA or not Path(DATA, "cifar10", "train.parquet").is_file():
        pytest.skip("set SOUPBENCH_TEST_DATA to a folder with cifar10/train.parquet")
    table = pq.read_table(Path(DATA, "cifar10", "train.parquet")).slice(0, 3000)
    images, labels = (table.column(name).to_pylist() for name in table.column_names[:2])
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in images])
    colours = F.avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, 8).flatten(1)
    rest = torch.relu(colours @ torch.randn(48, 32, generator=seeded()))
    return torch.cat([colours, rest], 1), torch.tensor(labels)


def standardised(features: Tensor) -> np.ndarray:
    raw = features.double().numpy()
    return (raw - raw.mean(0)) / (raw.std(0) + 1e-5)


def unfolded(found: tuple[Tensor, Tensor], features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias for standardised features; only differences between biases of classes mean anything."""
    weight, bias = (each.double() for each in found)
    raw = features.double()
    own = weight * (raw.std(0, unbiased=False) + 1e-5)
    free = bias + weight @ raw.mean(0)
    return own.numpy(), (free - free.mean()).numpy()


@pytest.fixture(params=["digits", "photographs"])
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Features and labels, read in several chunks of which the last is smaller."""
    monkeypatch.setattr(methods.training.linear_probe, "_CHUNK", 110 * 701)
    return digits() if request.param == "digits" else photographs()


@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_the_optimum_is_scikit_learn_s(task: tuple[Tensor, Tensor], l2: float) -> None:
    features, labels = task
    z = standardised(features)
    theirs = LogisticRegression(C=1 / (l2 * len(z)), tol=1e-9, max_iter=5000).fit(z, labels.numpy())
    weight, bias = unfolded(streamed_probe(torch.split(features, 500), labels, 10, CPU, l2=l2), features)
    assert np.abs(weight - theirs.coef_).max() < 1e-4
    assert np.abs(bias - (theirs.intercept_ - theirs.intercept_.mean())).max() < 1e-4
    ours = torch.softmax(torch.from_numpy(z @ weight.T + bias), 1).numpy()
    assert np.abs(ours - theirs.predict_proba(z)).max() < 1e-4


def test_the_optimum_is_scipy_s() -> None:
    """Newton's method with exact products of the Hessian, on a loss written with numpy."""
    features, labels = digits()
    z, l2, count = standardised(features), 1e-2, len(features)
    wanted = np.eye(10)[labels.numpy()]

    def parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = values[:-10].reshape(10, -1), values[-10:]
        return weight, z @ weight.T + bias

    def loss(values: np.ndarray) -> float:
        weight, logits = parts(values)
        return float((logsumexp(logits, 1) - (logits * wanted).sum(1)).mean() + l2 / 2 * np.square(weight).sum())

    def shares(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits - logsumexp(logits, 1, keepdims=True))

    def gradient(values: np.ndarray) -> np.ndarray:
        weight, logits = parts(values)
        off = (shares(logits) - wanted) / count
        return np.concatenate([(off.T @ z + l2 * weight).ravel(), off.sum(0)])

    def curvature(values: np.ndarray, along: np.ndarray) -> np.ndarray:
        _, logits = parts(values)
        weight, change = parts(along)
        p = shares(logits)
        off = p * (change - (p * change).sum(1, keepdims=True)) / count
        return np.concatenate([(off.T @ z + l2 * weight).ravel(), off.sum(0)])

    start = np.zeros(10 * z.shape[1] + 10)
    best = minimize(loss, start, jac=gradient, hessp=curvature, method="Newton-CG", options={"xtol": 1e-9})
    weight, bias = unfolded(streamed_probe(torch.split(features, 500), labels, 10, CPU, l2=l2), features)
    assert np.abs(weight - best.x[:-10].reshape(10, -1)).max() < 1e-4
    assert np.abs(bias - (best.x[-10:] - best.x[-10:].mean())).max() < 1e-4


def test_it_agrees_with_the_probe_in_memory(task: tuple[Tensor, Tensor]) -> None:
    features, labels = task
    ours = unfolded(streamed_probe(torch.split(features, 333), labels, 10, CPU), features)
    theirs = unfolded(linear_probe(features, labels, 10), features)
    # The other one is itself up to 1e-4 away from the optimum.
    assert all(np.abs(one - other).max() < 2e-4 for one, other in zip(ours, theirs, strict=True))


def test_large_values_far_from_zero_lose_nothing() -> None:
    features, labels = digits()
    moved = features * 1e-2 + 100
    ours, _ = unfolded(streamed_probe(torch.split(moved, 100), labels, 10, CPU), moved)
    theirs, _ = unfolded(linear_probe(moved, labels, 10), moved)
    assert np.abs(ours - theirs).max() < 1e-4


def small_task(count: int = 60) -> tuple[Weights, Labelled]:
    shape = Architecture(image_size=16, patch_size=8, dim=16, depth=1, heads=2)
    encoder = build_encoder(shape)
    reset(encoder, seeded())
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 3, 16, 16), generator=seeded())
    images = (noise + 80 * labels[:, None, None, None]).to(torch.uint8)
    return Weights(shape, tensors_of(encoder, "encoder")), Labelled(images, "task", labels, 3)


def test_a_job_takes_the_file_above_the_stated_size(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, data = small_task()
    size = len(data) * (16 + 3)
    results = []
    for limit in (size, size - 1):
        monkeypatch.setattr(methods.training.finetune, "IN_MEMORY", limit)
        files: list[object] = []
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda files=files: files.append(0) or open_file())
        results.append(probe([stock], data, Probe(), seeded()))
        assert len(files) == (limit < size)
    for name, tensor in results[0].tensors.items():
        assert torch.allclose(tensor, results[1].tensors[name], rtol=1e-3, atol=1e-4), name


open_file = tempfile.TemporaryFile


def test_the_file_has_no_name_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: opened.append(open_file()) or opened[-1])
    features, labels = digits()

    def batches() -> Iterator[Tensor]:
        for batch in torch.split(features, 500):
            yield batch
            assert list(tmp_path.iterdir()) == []

    streamed_probe(batches(), labels, 10, CPU)
    with pytest.raises(ValueError, match="1000 features for 1797 labels"):
        streamed_probe(torch.split(features[:1000], 500), labels, 10, CPU)
    assert [file.closed for file in opened] == [True, True]


def test_a_full_disk_is_named_before_the_features_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(methods.training.linear_probe.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 100))
    features, labels = digits()
    with pytest.raises(OSError, match="set TMPDIR to a folder with more room"):
        streamed_probe(torch.split(features, 500), labels, 10, CPU)
    with pytest.raises(ValueError, match="l2 must be positive"):
        streamed_probe([], labels, 10, CPU, l2=0.0)


PROGRAM = """
import resource, sys, torch
from methods.training.linear_probe import streamed_probe
count, width, classes = map(int, sys.argv[1:])
generator = torch.Generator().manual_seed(0)
labels = torch.randint(classes, (count,), generator=generator)
batches = (torch.randn(min(512, count - i), width, generator=generator) for i in range(0, count, 512))
streamed_probe(batches, labels, classes, torch.device("cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(count: int, width: int, classes: int) -> float:
    """Largest resident memory of a process that fits a probe."""
    command = [sys.executable, "-c", PROGRAM, str(count), str(width), str(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * unit / 2**20


@pytest.mark.slow
def test_ten_times_as_many_images_take_no_more_memory() -> None:
    """From 100,000 images on, which fill every chunk; 900,000 more of width 192 are 659 MiB in float32."""
    few, many = peak_mib(100_000, 192, 5), peak_mib(1_000_000, 192, 5)
    assert many - few < 100, (few, many)
