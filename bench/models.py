"""Weights on disk and the models made of them. Only safetensors is read; pickles are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bench.cache import write_bytes
from bench.data.decode import Preprocessing
from bench.errors import MissingDataError, UsageError
from bench.registry import load_object
from methods.stock import Architecture, Classifier, Weights

BUNDLED = {"digits": "digits-stock.safetensors"}


def save_weights(path: Path, weights: Weights, facts: Mapping[str, Any]) -> None:
    """Write weights and their architecture, with `facts` (where they come from) as JSON in the file's metadata."""
    metadata = {"architecture": json.dumps(asdict(weights.architecture)), "facts": json.dumps(dict(facts))}
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    write_bytes(path, save(tensors, metadata=metadata))


def load_weights(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Weights and the facts stored beside them. Raises UsageError where the file is not one of ours or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Clones: what is mapped from a file changes under us when somebody copies another file over it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise MissingDataError(f"no weights at {path}; make a stock with `bench stock digits -o {path}`") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error}); make it again or give another") from None
    if "architecture" not in metadata:
        raise UsageError(f"{path} has no architecture in its metadata; give a file made by `bench stock`")
    architecture = TypeAdapter(Architecture).validate_json(metadata["architecture"])
    return Weights(architecture, tensors), json.loads(metadata.get("facts", "{}"))


def load_stock(name: str) -> Weights:
    """A stock: a bundled name, a file of `bench stock`, an official MAE file, or "timm:NAME" (without a decoder)."""
    if name in BUNDLED:
        with resources.as_file(resources.files("bench") / "assets" / BUNDLED[name]) as path:
            return load_weights(path)[0]
    from bench import mae_files

    if name.startswith("timm:"):
        return mae_files.timm_mae(name.removeprefix("timm:"))
    if name.endswith((".pth", ".pt")):
        return mae_files.read_mae(Path(name))
    if not name.endswith(".safetensors"):
        raise MissingDataError(
            f"no stock '{name}'; bundled: {', '.join(BUNDLED)}; or give --stock FILE: one made by `bench stock`, "
            "or an MAE file in the official layout (.pth)"
        )
    return load_weights(Path(name))[0]


def load_model(name: str) -> nn.Module:
    """A ready classifier of images in [0, 1], in eval mode: one that `load_ready` knows, or "file.py:factory".

    factory() gives a module from images in [0, 1] to logits.
    """
    from bench.classifiers import is_ready, load_ready

    if ".py:" not in name:
        if not is_ready(name):
            raise UsageError(
                f"--model takes timm:NAME, timm:NAME@FILE, torchvision:NAME, lite:efficientnet_lite0 or "
                f"path/to/file.py:factory, not '{name}'; a stock is given with --stock"
            )
        return load_ready(name)
    model = load_object(name)()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} gave a {type(model).__name__}, not a torch module; return the classifier from it")
    return model.eval()


def preprocessing_of(base: Weights | nn.Module) -> Preprocessing | None:
    """How a stock or classifier wants its images cut; None where only the shift can say."""
    if isinstance(base, Weights):
        size = base.architecture.image_size
        # The paper's evaluation resizes to 8/7 of the side before the crop; small images are taken whole.
        return Preprocessing(size, round(size * 8 / 7) if size >= 128 else size, "bicubic")
    found = getattr(base, "preprocessing", None)
    return found if isinstance(found, Preprocessing) else None


def classifier(weights: Weights) -> Classifier:
    """The classifier of cooked weights, in eval mode."""
    return Classifier.of(weights).eval()
