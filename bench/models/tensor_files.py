"""Read weight files lazily and write them one tensor at a time."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.core.errors import BenchError, MissingDataError, UsageError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHECKSUM = "checksum"
"""Metadata key with the checksum of the tensors and of all other metadata, in this project's safetensors files."""

_TO_COME = "sha256:" + "-" * 64
# Keys under which training code saves a model: first in the order of timm's loader, then keys of other code.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "ema",
    "net",
    "network",
    "student",
)
_ALWAYS = ("module.", "_orig_mod.")  # prefixes of DDP and torch.compile, never part of a model
_USUAL = (
    "teacher.",
    "model.",
    "backbone.",
    "net.",
    "network.",
    "encoder.",
    "student.",
)  # prefixes of models that wrap the trained one
_INDEX = "*.safetensors.index.json"


def split_key(path: Path) -> tuple[Path, str]:
    """Split "FILE#KEY" into the file and the key of the weights; the key is empty if a file has the whole name."""
    name, mark, key = path.name.rpartition("#")
    return (path.with_name(name), key) if mark and name and not path.exists() else (path, "")


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, str]) -> str:
    """Return the SHA-256 of a file's metadata and of all its tensors, each given by its `tensor_digest`."""
    rest = sorted((name, text) for name, text in metadata.items() if name != CHECKSUM)
    return "sha256:" + hashlib.sha256(json.dumps([rest, sorted(tensors.items())]).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and numbers."""
    plain = tensor.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{plain.dtype}|{tuple(plain.shape)}|".encode())
    if plain.numel():
        sha.update(plain.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def verify(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError if tensors or metadata do not match the checksum; files without a checksum pass."""
    if CHECKSUM not in metadata:
        return
    if checksum(metadata, {name: tensor_digest(tensors[name]) for name in tensors}) != metadata[CHECKSUM]:
        raise UsageError(f"{path} is damaged, its content is not what its checksum says; make or copy it again")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a .safetensors, .pt or .pth file, read from disk at each access.

    The path may also be a folder or index (.json) of several safetensors files, as the hub stores large models.
    Pickled files are read as weights only and never run code. Of several sets of weights in a file, the one that timm's
    loader prefers is selected (averaged weights before the last ones), or the one of FILE#KEY. A "module." or
    "_orig_mod." prefix that all names share is removed. `metadata` is the metadata of a safetensors file, otherwise
    empty. `notes` describes the selection, if there was one.

    Raises MissingDataError for a missing file, UsageError for one that is damaged or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path, key = split_key(path)
        self.notes: tuple[str, ...] = ()
        self.chosen = ""
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        self._tensors: Mapping[str, Tensor] = {}
        self._shards = _shards(path)
        if self._shards:
            if key:
                raise UsageError(f"{path} holds one set of weights; leave #{key} out")
            for shard in self._shards:
                file = _open_safetensors(shard)
                self.metadata |= file.metadata() or {}
                self._files |= dict.fromkeys(file.keys(), file)
            names = list(self._files)
        else:
            self._tensors, self.chosen, others = _state_dict(path, key)
            names = list(self._tensors)
            if others:
                self.notes = (
                    f"{path.name} holds several sets of weights: {self.chosen} is used"
                    + (", as timm does" if not key and self.chosen in _WRAPPERS[:4] else "")
                    + f"; select {', '.join(others)} with the path {path.name}#{others[0]}",
                )
        self._stored = {name: name for name in names}
        while any(self._strip(prefix) for prefix in _ALWAYS):
            pass

    def _strip(self, prefix: str) -> bool:
        """Remove a prefix if all names have it, and return whether they did."""
        if not self._stored or not all(name.startswith(prefix) for name in self._stored):
            return False
        self._stored = {name.removeprefix(prefix): stored for name, stored in self._stored.items()}
        return True

    def bare(self) -> None:
        """Remove the usual prefixes that all names share, so that files of other training code can be compared."""
        while any(self._strip(prefix) for prefix in (*_ALWAYS, *_USUAL)):
            pass

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        tensor = self._files[stored].get_tensor(stored) if self._files else self._tensors[stored]
        return cast(Tensor, tensor)

    def is_half(self, name: str) -> bool:
        """Return whether a tensor is stored in 16 bits, without reading the tensors of a safetensors file."""
        stored = self._stored[name]
        if self._files:
            return str(self._files[stored].get_slice(stored).get_dtype()) in ("F16", "BF16")
        return self._tensors[stored].dtype in (torch.float16, torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def verified(self) -> Checkpoint:
        """Return this checkpoint after reading it once. Raises UsageError if its checksum does not match."""
        verify(self.path, self.metadata, self)
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the file, or of the concatenated files if there are several."""
        sha = hashlib.sha256()
        for path in self._shards or (split_key(self.path)[0],):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        return "sha256:" + sha.hexdigest()


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise MissingDataError(f"no file {path}; give the path of a .safetensors, .pt or .pth file") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error}); download or make it again") from None


def _shards(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a path: itself, those of an index or of a folder; none for a pickled file."""
    if path.name.endswith(_INDEX[1:]):
        return _of_index(path)
    if path.is_dir():
        indices = sorted(path.glob(_INDEX))
        if len(indices) == 1:
            return _of_index(indices[0])
        single = sorted(path.glob("*.safetensors"))
        if len(single) == 1 and not indices:
            return (single[0],)
        what = "no" if not single and not indices else "several"
        raise UsageError(f"{path} is a folder with {what} weights; give the path of a .safetensors, .pt or .pth file")
    if not path.is_file():
        raise MissingDataError(f"no file {path}; give the path of a .safetensors, .pt or .pth file")
    return (path,) if path.suffix == ".safetensors" else ()


def _of_index(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = tuple(index.parent / Path(str(name)).name for name in names)
    except FileNotFoundError:
        raise MissingDataError(f"no file {index}; give the path of an index that is there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} is not an index of safetensors files ({error}); download it again") from None
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise MissingDataError(f"{index} names {missing.name}, which is not beside it; download that too")
    return files


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return copies of all tensors of a file, which later writes to the file do not change.

    Raises the errors of Checkpoint, and UsageError if the checksum does not match.
    """
    checkpoint = Checkpoint(path)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.items()}
    verify(path, checkpoint.metadata, tensors)
    return tensors


def renamed_for(own: Collection[str], names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return a mapping from the names in a file to the names `own` of a model, and the names that are left out.

    It removes one or two usual prefixes if that yields all names of the model, and otherwise keeps all names.
    """
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    if wanted <= set(names):
        return {name: name for name in names}, ()
    for prefix in (*_USUAL, *(a + b for a in _USUAL for b in _USUAL if a != b)):
        inside = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if inside and wanted <= set(inside.values()):
            return inside, tuple(name for name in names if name not in inside)
    return {name: name for name in names}, ()


def _globals() -> list[Any]:
    """Return the classes of plain values that checkpoints hold beside weights: options and NumPy numbers."""
    kinds: list[Any] = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    scalar: Any = np.float64(0).__reduce__()[0]  # the function that pickles of NumPy numbers call
    return [argparse.Namespace, np.dtype, *kinds, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _state_dict(path: Path, key: str) -> tuple[Mapping[str, Tensor], str, tuple[str, ...]]:
    """Return the weights in a pickled file, the key where they were found, and the keys of other weights."""
    try:
        with torch.serialization.safe_globals(_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old pickles, which are read or refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} holds more than tensors, or is damaged; save its state_dict as safetensors and give that"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        reason = reason.split(". ")[0]
        raise UsageError(f"{path} cannot be read ({reason}); save its state_dict as safetensors instead") from None
    chosen: list[str] = []
    others: list[str] = []
    if key:
        content, chosen, others = _of_key(content, key, path), [key], []
    while isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        found = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping) and content[name]]
        if not found:
            break
        chosen.append(found[0])
        others += [".".join((*chosen[:-1], name)) for name in found[1:]]
        content = content[found[0]]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"{path} holds more than named tensors; save the model's state_dict alone and give that")
    return cast(Mapping[str, Tensor], content), ".".join(chosen) if others or key else "", tuple(others)


def _of_key(content: Any, key: str, path: Path) -> Any:
    """Return the value under a key (a.b for a nested one), or the tensors whose names begin with the key."""
    inside = content
    for part in key.split("."):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    if isinstance(inside, Mapping):
        return inside
    for names in (content, *(content[w] for w in _WRAPPERS if isinstance(content, Mapping) and w in content)):
        if isinstance(names, Mapping):
            begun = {name.removeprefix(f"{key}."): v for name, v in names.items() if str(name).startswith(f"{key}.")}
            if begun:
                return begun
    items = content.items() if isinstance(content, Mapping) else ()
    there = ", ".join(str(name) for name, value in items if isinstance(value, Mapping)) or "nothing of the kind"
    raise UsageError(
        f"{path} has no weights under {key}, but {there[:200]}; name one of these after #, or leave it out"
    )


def check_target(out: Path, files: Sequence[Path]) -> None:
    """Raise UsageError if a soup would not be a safetensors file, or would overwrite one of its ingredients."""
    if out.suffix != ".safetensors":
        raise UsageError(f"soups are written as safetensors; name the file {out.with_suffix('.safetensors')}")
    if any(out.resolve() == path.resolve() for path in files):
        raise UsageError(f"{out} is an ingredient, which would be lost; choose another file for the soup")


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file with its checksum atomically, holding one tensor in memory at a time.

    `shapes` gives the type and shape of the tensor that `make` returns for each name. Raises BenchError if the disk is
    full or the folder cannot be written, UsageError for a type that safetensors does not support.
    """
    # The checksum is known only after the last tensor, so the header reserves space for it.
    rest = {name: text for name, text in metadata.items() if name != CHECKSUM}
    header: dict[str, Any] = {"__metadata__": {CHECKSUM: _TO_COME} | rest}
    digests: dict[str, str] = {}
    start = 0
    for name, (dtype, shape) in shapes.items():
        if dtype not in _NAMES:
            raise UsageError(f"{name} is {dtype}, which safetensors cannot hold; convert it first")
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (dtype, shape) in shapes.items():
                tensor = make(name).contiguous()
                if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                    raise BenchError(f"{name} was mixed to another shape or type than declared; report this")
                if tensor.numel():
                    tensor.view(-1).view(torch.uint8).numpy().tofile(file)
                digests[name] = tensor_digest(tensor)
            file.seek(8 + text.index(_TO_COME.encode()))
            file.write(checksum(metadata, digests).encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise BenchError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another file"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
