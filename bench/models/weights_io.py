"""Read and write weights, and build models from them. Pickles are read as tensors only."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bench.core.cache_dir import write_bytes
from bench.core.errors import MissingDataError, UsageError
from bench.data.content_hash import Stamp, is_settled, stamp_of
from bench.data.decode import Preprocessing
from bench.models.known_names import BUNDLED as BUNDLED
from bench.models.known_names import check_stock
from bench.models.tensor_files import (
    CHECKSUM,
    Checkpoint,
    checksum,
    need_small_header,
    split_key,
    tensor_digest,
    verify,
)
from bench.shifts.catalog import ShiftRow
from methods.nets.small_resnets import SmallResNet
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import AnyArchitecture, Architecture, Weights, ready
from methods.state import constants

MAE_BASE = "mae-vit-base-patch16"
MAE_BASE_URL = "https://dl.fbaipublicfiles.com/mae/visualize/mae_visualize_vit_base.pth"
"""Encoder and decoder of raw pixels in one file (He et al. 2022); mae_pretrain_*_full is for normalised pixels."""


def save_weights(path: Path, weights: Weights, facts: Mapping[str, Any]) -> None:
    """Write weights with their architecture, `facts` (their origin) and a checksum in the file's metadata as JSON."""
    metadata = {"architecture": json.dumps(asdict(weights.architecture)), "facts": json.dumps(dict(facts))}
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    metadata[CHECKSUM] = checksum(metadata, {name: tensor_digest(tensor) for name, tensor in tensors.items()})
    write_bytes(path, save(tensors, metadata=metadata))


def load_weights(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Return the weights and facts of a file, after verifying its checksum if it has one.

    Raises UsageError for a file of another kind or a damaged one, MissingDataError for a missing one.
    """
    weights, facts, _ = _read(path)
    return weights, facts


def _read(path: Path) -> tuple[Weights, dict[str, Any], Mapping[str, str]]:
    try:
        need_small_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Clones: memory-mapped tensors would change if another file were copied over this one.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise MissingDataError(f"no weights at {path}; make a stock with `bench stock digits -o {path}`") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error}); make it again or give another") from None
    verify(path, metadata, tensors)
    architecture = _architecture(metadata, path)
    _need_numbers(architecture, tensors, path)
    try:
        return Weights(architecture, tensors), json.loads(metadata.get("facts", "{}")), metadata
    except (ValueError, RecursionError):
        raise UsageError(f"{path} has damaged metadata; make it again with `bench stock`") from None


def facts_of(path: Path) -> dict[str, Any]:
    """Return the facts stored beside weights without reading the weights; empty if the file is not whole."""
    try:
        need_small_header(path)
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("facts", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}


def whole_facts(path: Path) -> dict[str, Any]:
    """Return the facts beside weights whose checksum holds. A process reads an unchanged file once.

    Raises MissingDataError for a missing file, UsageError for one that is damaged or has no checksum.
    """
    try:
        now, stamp = time.time_ns(), stamp_of(path.stat())
    except OSError:
        raise MissingDataError(f"no weights at {path}; start the run again to make them") from None
    key = str(path.absolute())
    if _whole.get(key, (None, {}))[0] != stamp:
        _whole.pop(key, None)
        _, facts, metadata = _read(path)
        if CHECKSUM not in metadata:
            raise UsageError(f"{path} has no checksum; start the run again to make it anew")
        if not is_settled(stamp, now):
            return facts
        _whole[key] = stamp, facts
    return copy.deepcopy(_whole[key][1])


_whole: dict[str, tuple[Stamp, dict[str, Any]]] = {}


def open_weights(path: Path) -> Weights:
    """Return weights whose tensors are read from the file at each access. Raises the errors of `load_weights`."""
    checkpoint = Checkpoint(path).verified()
    architecture = _architecture(checkpoint.metadata, path)
    _need_numbers(architecture, checkpoint, path)
    return Weights(architecture, checkpoint)


def _need_numbers(architecture: AnyArchitecture, names: Iterable[str], path: Path) -> None:
    """Raise UsageError if a file of a network states sizes far beyond its own, before the network is built."""
    if not any(name.startswith(("encoder.", "head.", "decoder.")) for name in names):
        return  # a report, such as that of linear mode connectivity
    size = path.stat().st_size  # at least one byte for each number
    if (stated := _numbers(cast(Hashable, architecture))) > 2 * size + _SPARE_NUMBERS:
        raise UsageError(
            f"{path} has {size / 1e6:,.1f} MB but states a network of {stated / 1e6:,.0f} million numbers; make it "
            "again or give another"
        )


@cache
def _numbers(architecture: Any) -> int:
    """Return how many numbers an encoder of an architecture (AnyArchitecture, which hashes) has."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in architecture.build().state_dict().values())


_SPARE_NUMBERS = 10_000_000
"""So many numbers may be missing from any file; the message on what is missing is clearer then."""


def _architecture(metadata: Mapping[str, str], path: Path) -> AnyArchitecture:
    if "architecture" not in metadata:
        raise UsageError(
            f"{path} does not say its architecture; give a file of `bench stock` or of a run; `bench soup season` and "
            "`lmc` also take others, with --model NAME, as in --model timm:resnet50"
        )
    try:
        return _read_architecture(metadata["architecture"])
    except (ValueError, RecursionError):
        raise UsageError(f"{path} has damaged metadata; make it again with `bench stock`") from None


def _read_architecture(text: str) -> AnyArchitecture:
    """Parse an architecture from JSON. Those of timm have a name, small residual networks a norm.

    Raises ValueError for anything else.
    """
    values = json.loads(text)
    known: dict[str, Any] = {"name": TimmArchitecture, "norm": SmallResNet}
    kind = next((kind for key, kind in known.items() if isinstance(values, dict) and key in values), Architecture)
    return _validator(kind).validate_python(values)


@cache
def _validator(kind: type[AnyArchitecture]) -> TypeAdapter[AnyArchitecture]:
    return TypeAdapter[AnyArchitecture](kind)


def load_stock(name: str | Path) -> Weights:
    """Load a stock: a bundled name, a file, or "timm:NAME" (an encoder without a decoder, see `timm_stock`).

    A file is an output of `bench stock` or a masked autoencoder in the official layout (.pth or .safetensors).
    Raises MissingDataError for a missing file, UsageError for a damaged file or one of another kind.
    """
    name = str(name)
    if name in BUNDLED:
        with resources.as_file(resources.files("bench") / "assets" / BUNDLED[name]) as path:
            return load_weights(path)[0]
    from bench.models import mae_files, timm_encoders

    if name.startswith("timm:"):
        return timm_encoders.timm_stock(name.removeprefix("timm:"))
    path = Path(name).expanduser()
    file = split_key(path)[0]
    if not file.is_file():
        check_stock(name)
        raise MissingDataError(
            f"no stock at {name}; give its path, or make one with: bench stock --data DATA -o {name} (DATA is digits, "
            "fashion, cifar10, imagenet, …)"
        )
    if "architecture" in Checkpoint(path).metadata:
        return mae_files.whole(load_weights(path)[0], name)
    return mae_files.read_mae(path)


@dataclass(frozen=True)
class Origin:
    """The candidate paths of a shift's default stock (the first that exists is used) and the command to make it."""

    places: tuple[Path, ...]
    command: str


def origin(row: ShiftRow, root: Path) -> Origin:
    """Return the files below a data root that may be the default stock of a shift."""
    folder = root / "stocks"
    if row.default_stock == MAE_BASE:
        places = tuple(folder / f"{MAE_BASE}{suffix}" for suffix in (".pth", ".safetensors"))
        return Origin(places, f"curl --create-dirs -C - -Lo {places[0]} {MAE_BASE_URL} (0.4 GB, CC BY-NC 4.0)")
    path = folder / row.default_stock
    return Origin((path,), f"bench stock --data {path.stem} -o {path}")


def find_stock(row: ShiftRow, root: Path) -> str:
    """What `load_stock` takes for the default stock of a shift. Raises MissingDataError with the command that helps."""
    if row.default_stock in BUNDLED:
        return row.default_stock
    if not row.default_stock:
        raise MissingDataError(f"{row.name} has no stock; give one with --stock, or a classifier with --model")
    wanted = origin(row, root)
    found = next((path for path in wanted.places if path.is_file()), None)
    if found is None:
        raise MissingDataError(
            f"no stock for {row.name} at {wanted.places[0]}; give one with --stock FILE, or put it there with: "
            f"{wanted.command}"
        )
    return str(found)


def shown_name(name: str, base: Weights | nn.Module) -> str:
    """Return the name of a model or stock in records, which includes the tag of its weights and no folders."""
    kind, colon, rest = name.partition(":")
    if isinstance(base, Weights) and kind == "timm" and colon:
        architecture, at, file = rest.partition("@")
        return f"timm:{architecture}{at}{Path(file).name}"
    return str(getattr(base, "name", Path(name).name))


def model_digest(model: nn.Module) -> str:
    """Return a digest of a classifier's parameters, buffers and numbers that its modules store as attributes."""
    beside = {f"attribute {name}": value for name, value in constants(model).items()}
    numbers = {**dict(model.named_parameters()), **dict(model.named_buffers()), **beside}
    return Weights(Architecture(), numbers).digest


def preprocessing_of(base: object) -> Preprocessing | None:
    """Return the preprocessing that a stock or classifier expects; None if the shift decides."""
    architecture = getattr(base, "architecture", None)
    if isinstance(architecture, Architecture | TimmArchitecture | SmallResNet):
        return Preprocessing(architecture.image_size, *architecture.cut)
    found = getattr(base, "preprocessing", None)
    return found if isinstance(found, Preprocessing) else None


def classifier(weights: Weights) -> nn.Module:
    """Return the classifier of trained weights in eval mode, or an ensemble for the weights of several."""
    return ready(weights)
