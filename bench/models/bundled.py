"""The classifiers that come with this project: one file of `bench train` each. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

_SUFFIX = ".safetensors"
FOLDER: Traversable = resources.files("bench") / "assets" / "classifiers"


def bundled() -> tuple[str, ...]:
    """Return the names of the bundled classifiers, as `--model` takes them, sorted."""
    files = FOLDER.iterdir() if FOLDER.is_dir() else ()
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX)))


@contextmanager
def bundled_file(name: str) -> Iterator[Path]:
    """Give the file of a bundled classifier, as long as the context lasts."""
    with resources.as_file(FOLDER / f"{name}{_SUFFIX}") as path:
        yield path


def summary(name: str) -> str:
    """Return what a bundled classifier is, in a line: network, images and accuracy, as its file says."""
    with bundled_file(name) as path:
        metadata = _metadata(path)
    shape, facts = (json.loads(metadata[key]) for key in ("architecture", "facts"))
    norm = {"bn": "BatchNorm", "gn": "GroupNorm"}[shape["norm"]]
    dev = facts["accuracy"]
    return (
        f"ResNet-{shape['depth']} with {norm}, trained on {facts['images']}: {dev['dev']:.1%} of {dev['dev_images']} "
        "dev images right; bundled"
    )


def _metadata(path: Path) -> Mapping[str, str]:
    """Return what a safetensors file says of itself: its header is JSON after its length in 8 bytes."""
    with path.open("rb") as file:
        header: dict[str, dict[str, str]] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__", {})
