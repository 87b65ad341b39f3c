"""Weights in files, one tensor at a time: what people bring is read lazily, what is mixed is written as it is made."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.errors import BenchError, MissingDataError, UsageError

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
"""Where the metadata of a safetensors file of this project says what its tensors and the rest of its metadata are."""

_TO_COME = "sha256:" + "-" * 64
# Where training code keeps the model inside what it saves.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, str]) -> str:
    """The SHA-256 of what a file says of itself and of all its tensors, each by its `tensor_digest`."""
    said = sorted((name, text) for name, text in metadata.items() if name != CHECKSUM)
    return "sha256:" + hashlib.sha256(json.dumps([said, sorted(tensors.items())]).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's type, shape and numbers."""
    plain = tensor.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{plain.dtype}|{tuple(plain.shape)}|".encode())
    if plain.numel():
        sha.update(plain.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def verify(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError where tensors or metadata are not those that were written. Files of others carry no checksum."""
    if CHECKSUM not in metadata:
        return
    if checksum(metadata, {name: tensor_digest(tensors[name]) for name in tensors}) != metadata[CHECKSUM]:
        raise UsageError(f"{path} is damaged, its content is not what its checksum says; make or copy it again")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a .safetensors, .pt or .pth file, read from disk each time they are asked for.

    Pickled files are read as weights only and never run code. A "module." that all names begin with is taken off.
    `metadata` is that of a safetensors file, empty otherwise.

    Raises MissingDataError for a missing file, UsageError for one that is damaged or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the path of a .safetensors, .pt or .pth file")
        if not path.is_file():
            raise MissingDataError(f"no file {path}; give the path of a .safetensors, .pt or .pth file")
        self.metadata: dict[str, str] = {}
        self._file: Any = None
        self._tensors: Mapping[str, Tensor] = {}
        if path.suffix == ".safetensors":
            try:
                self._file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UsageError(
                    f"{path} is not a whole safetensors file ({error}); download or make it again"
                ) from None
            self.metadata = self._file.metadata() or {}
            names = list(self._file.keys())
        else:
            self._tensors = _state_dict(path)
            names = list(self._tensors)
        prefixed = bool(names) and all(name.startswith("module.") for name in names)
        self._stored = {name.removeprefix("module.") if prefixed else name: name for name in names}

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        tensor = self._file.get_tensor(stored) if self._file is not None else self._tensors[stored]
        return cast(Tensor, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def verified(self) -> Checkpoint:
        """The same, read once. Raises UsageError where it carries a checksum and is not what that says."""
        verify(self.path, self.metadata, self)
        return self

    def digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, as copies that do not change when somebody writes over it. Raises as Checkpoint does."""
    checkpoint = Checkpoint(path)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.items()}
    verify(path, checkpoint.metadata, tensors)
    return tensors


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        # The options of a training script, which many checkpoints carry, are a Namespace: plain values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles, which are read or refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} holds more than tensors, or is damaged; save its state_dict as safetensors and give that"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        reason = reason.split(". ")[0]
        raise UsageError(f"{path} cannot be read ({reason}); save its state_dict as safetensors instead") from None
    while isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{path} holds more than named tensors; save the model's state_dict alone and give that")
    return cast(Mapping[str, Tensor], content)


def check_target(out: Path, files: Sequence[Path]) -> None:
    """Raise UsageError where a soup would not be a safetensors file, or would lie over one of its ingredients."""
    if out.suffix != ".safetensors":
        raise UsageError(f"soups are written as safetensors; name the file {out.with_suffix('.safetensors')}")
    if any(out.resolve() == path.resolve() for path in files):
        raise UsageError(f"{out} is one of the ingredients and would be lost; choose another file for the soup")


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file tensor by tensor, whole or not at all, with its checksum; only one tensor is held.

    `shapes` gives the type and shape of what `make` returns for each name. Raises BenchError where the disk is full or
    the folder cannot be written, UsageError for a type that safetensors does not have.
    """
    # The checksum is known when the last tensor is made, so its place is kept free until then.
    said = {name: text for name, text in metadata.items() if name != CHECKSUM}
    header: dict[str, Any] = {"__metadata__": {CHECKSUM: _TO_COME} | said}
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
                    raise BenchError(f"{name} was mixed to another shape or type than was announced; report this")
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
