"""Data sets of grey pictures, whose classes a model that reads the mean grey knows: a wrong label or order shows.

Class k of n is a picture of level linspace(20, 235, n)[k] with noise of one level.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.core.conditions import CLEAN
from bench.data.decode import Preprocessing
from bench.runs.callbacks import RunCallback

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Grey(nn.Module):
    """The classifier that knows: scores by the distance of the mean grey to the level of each class."""

    def __init__(self, classes: int, side: int = 32) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(20, 235, classes) / 255)
        self.preprocessing = Preprocessing(side, side)

    def forward(self, images: Tensor) -> Tensor:
        return -3000 * (images.mean((1, 2, 3))[:, None] - self.levels).square()


FACTORIES = """
from {module} import Grey

""" + "".join(
    f"def of{n}s{side}():\n    return Grey({n}, {side})\n\n" for n in (2, 3, 4, 10, 12, 1000) for side in (32, 64, 224)
)


def level(k: int, n: int) -> int:
    return int(np.linspace(20, 235, n)[k].round())


def grey(k: int, n: int, image: int = 0, side: int = 32) -> np.ndarray:
    """Picture `image` of class k of n, uint8 [side, side, 3]."""
    noise = np.random.default_rng(1000 * k + image).integers(-1, 2, (side, side, 3))
    return (level(k, n) + noise).astype(np.uint8)


def png(pixels: np.ndarray, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **how)
    return buffer.getvalue()


def tree(
    root: Path,
    folders: Sequence[str],
    each: int = 4,
    side: int = 32,
    n: int | None = None,
    classes: Sequence[int] | None = None,
    name: str = "{k}_{i}.png",
) -> None:
    """Class folders with `each` pictures; folder j is of class j, or of `classes[j]`."""
    for place, folder in enumerate(folders):
        k = classes[place] if classes is not None else place
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(grey(k, n or len(folders), i, side)).save(root / folder / name.format(k=k, i=i))


def table(
    path: Path,
    truth: Sequence[int | None],
    n: int,
    labels: Sequence[Any],
    kind: Any,
    more: dict[str, tuple[Any, Sequence[Any]]] | None = None,
    column: str = "label",
    side: int = 32,
) -> None:
    """A parquet file with a picture of each true class and what is written for its label."""
    rows: dict[str, Any] = {
        "image": [
            None if k is None else {"bytes": png(grey(k, n, i, side)), "path": None} for i, k in enumerate(truth)
        ],
        column: list(labels),
    }
    features = {"image": datasets.Image(), column: kind}
    for name, (feature, values) in (more or {}).items():
        features[name], rows[name] = feature, list(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


def arrays(root: Path, names: Sequence[str] = ("fog",), severities: int = 5, images: int = 40) -> Path:
    """The published arrays of CIFAR-10-C, all severities alike."""
    truth = np.arange(images) % 10
    one = np.stack([grey(int(k), 10, i) for i, k in enumerate(truth)])
    place = root / "cifar10-c"
    place.mkdir(parents=True)
    for name in names:
        np.save(place / f"{name}.npy", np.concatenate([one] * severities))
    np.save(place / "labels.npy", np.tile(truth, severities))
    return place


class Listener(RunCallback):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str) -> None:
        self.notes.append(text)


def knows(shift: Any, ids: np.ndarray, n: int) -> float:
    """How many of some clean images the model that knows gets right."""
    scores = Grey(n)(shift.images(ids, CLEAN).float() / 255)
    return float((scores.argmax(1).numpy() == shift.labels(ids)).mean())
