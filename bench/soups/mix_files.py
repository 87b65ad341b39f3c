"""Implement `bench soup mix` and `inspect`, which read weight files of any origin tensor by tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.core.console import print_json, print_text, table
from bench.core.errors import UsageError, nearest
from bench.models.tensor_files import Checkpoint, check_target, write_tensors
from methods.base import Unsupported
from methods.selfsoup.mixing_options import read_options
from methods.soups.mixing import MIXERS, Mixer, Uniform, Weighted
from methods.soups.soup import combine_tensor, refuse_tensor

_STATISTICS = ("running_mean", "running_var")


def mix(
    files: Sequence[Path],
    out: Path,
    how: str,
    stock: Path | None,
    weights: Sequence[float],
    average_statistics: bool,
) -> None:
    """Mix weight files into a new file tensor by tensor, so that memory does not grow with their number."""
    check_target(out, files)
    rule = _rule(how, weights)
    if rule.needs_stock and stock is None:
        raise UsageError(f"'{how}' needs the weights that all ingredients started from; give them with --stock")
    start = Checkpoint(stock).verified() if stock is not None and rule.needs_stock else None
    ingredients = [Checkpoint(path).verified() for path in files]
    _same_names([*ingredients, *([start] if start is not None else [])])
    _refuse_strangers(ingredients, average_statistics)
    first = ingredients[0]

    def make(name: str) -> Tensor:
        every = [_whole(ingredient[name]) for ingredient in ingredients]
        for path, tensor in zip(files, every, strict=True):
            refuse_tensor(f"{name} of {path}", tensor, every[0], str(files[0]))
        origin = _whole(start[name]) if start is not None and name in start else None
        if origin is not None:
            refuse_tensor(f"{name} of {stock}", origin, every[0], str(files[0]))
        chosen: Mixer = Uniform() if rule.needs_stock and origin is None else rule
        return combine_tensor(name, every, lambda _, tensors: chosen.mix(tensors, origin))

    shapes = {}
    for name in first:
        tensor = first[name]
        shapes[name] = (_whole(tensor[:0] if tensor.ndim else tensor).dtype, tuple(tensor.shape))
    if not any(dtype.is_floating_point for dtype, _ in shapes.values()):
        raise UsageError(
            f"{first.path} holds no floating-point tensor, so there is nothing to mix; give trained weights"
        )
    with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
        digests = list(pool.map(Checkpoint.digest, ingredients))
    facts: dict[str, Any] = {
        "soup": how,
        "options": dict(vars(rule)),
        "ingredients": [{"file": path.name, "digest": d} for path, d in zip(files, digests, strict=True)],
        "stock": start.digest() if start is not None else None,
    }
    metadata = {"facts": json.dumps(facts)}
    if len({ingredient.metadata.get("architecture") for ingredient in ingredients}) == 1:
        metadata |= {k: v for k, v in first.metadata.items() if k == "architecture"}
    try:
        write_tensors(out, shapes, make, metadata)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print_text(f"{out}: {how} soup of {len(files)}, {sum(math.prod(s) for _, s in shapes.values()):,} numbers")
    for note in _notes(ingredients, start, digests):
        print_text(note)


def _notes(ingredients: Sequence[Checkpoint], start: Checkpoint | None, digests: Sequence[str]) -> Iterator[str]:
    """Yield what a user should know of a mixture beside its size, in sentences."""
    for checkpoint in (*ingredients, *([start] if start is not None else [])):
        yield from checkpoint.notes
    halves = {name for ingredient in ingredients for name in ingredient if ingredient.is_half(name)}
    if halves:
        yield f"{len(halves)} tensors were stored in half precision; they were mixed and written in float32"
    for number, ingredient in enumerate(ingredients):
        if (first_of := digests.index(digests[number])) != number:
            yield f"{ingredient.path} and {ingredients[first_of].path} hold the same weights, which were counted twice"
    averaged = [name for name in ingredients[0] if start is not None and name not in start]
    if averaged:
        yield f"averaged, as the stock lacks them: {', '.join(averaged[:4])}" + (" …" if averaged[4:] else "")


_HALF = (torch.float16, torch.bfloat16)
_LORA = re.compile(r"lora_(?:A|B|up|down|embedding_A|embedding_B)\b")


def _whole(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other tensor unchanged."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def _same_names(checkpoints: Sequence[Checkpoint]) -> None:
    """Remove the prefixes of training code from names if the files' names differ.

    Raises UsageError for LoRA factors: the mean of products is not the product of means.
    """
    for checkpoint in checkpoints:
        factor = next((name for name in checkpoint if _LORA.search(name)), None)
        if factor is not None:
            raise UsageError(
                f"{checkpoint.path} holds LoRA factors ({factor}), and the product of their means is not the mean of "
                "their products; merge them into the weights first (in peft: model.merge_and_unload()) and mix those"
            )
    if any(checkpoint.keys() != checkpoints[0].keys() for checkpoint in checkpoints):
        for checkpoint in checkpoints:
            checkpoint.bare()


def _rule(how: str, weights: Sequence[float]) -> Mixer:
    name, *pairs = how.split(":")
    kind = MIXERS[nearest(name, MIXERS, "way of mixing")]
    try:
        if kind is Weighted:
            if not weights or pairs:
                raise UsageError("weighted needs --weights, as in --weights 0.5,0.3,0.2")
            return Weighted(tuple(weights))
        if weights:
            raise UsageError(f"--weights belongs to --how weighted, not to {name}")
        return cast(Mixer, read_options(kind, pairs, how) or kind())
    except (Unsupported, ValueError) as error:
        raise UsageError(str(error)) from None


def _refuse_strangers(ingredients: Sequence[Checkpoint], average_statistics: bool) -> None:
    first = ingredients[0]
    stocks: dict[str, Path] = {}
    for other in ingredients:
        missing, extra = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
        if missing or extra:
            raise UsageError(
                f"{other.path} lacks {missing[:3]} and has {extra[:3]} beside the tensors of {first.path}; "
                "mix models of one task and one architecture"
            )
        for stock in _stocks(other):
            stocks.setdefault(stock, other.path)
    if len(stocks) > 1:
        strangers = " and ".join(str(path) for path in list(stocks.values())[:2])
        raise UsageError(f"{strangers} come from different stocks; mix ingredients of one stock")
    if not average_statistics and any(name.endswith(_STATISTICS) for name in first):
        raise UsageError(
            "these models hold BatchNorm statistics, whose average fits no model; add "
            "--average-statistics and measure them again on clean train images (methods.soups.bn_recalibration)"
        )


def _stocks(checkpoint: Checkpoint) -> list[str]:
    """Return the digests of the stocks in a file's facts; empty if they are missing or unreadable."""
    try:
        facts = json.loads(checkpoint.metadata.get("facts", "{}"))
    except ValueError:
        return []
    stocks = facts.get("stocks") if isinstance(facts, dict) else None
    return [str(stock) for stock in stocks] if isinstance(stocks, list) else []


@dataclass(frozen=True)
class Displacement:
    """The content of a file, and its norm and distance from the stock over all floating-point tensors."""

    file: str
    tensors: int
    numbers: int
    types: str
    finite: bool
    norm: float | None
    distance: float | None


def inspect(files: Sequence[Path], stock: Path | None, as_json: bool) -> None:
    """Print the content of files, their distances from the stock, and the cosines between their displacements."""
    start = Checkpoint(stock).verified() if stock is not None else None
    found = [Checkpoint(path).verified() for path in files]
    every = [*found, *([start] if start is not None else [])]
    if any(checkpoint.keys() != every[0].keys() for checkpoint in every):
        for checkpoint in every:
            checkpoint.bare()
    rows = [_displacement(checkpoint, start) for checkpoint in found]
    cosines = _cosines(found, start) if start is not None and len(found) > 1 else None
    shared = [_shared(checkpoint, start) for checkpoint in found] if start is not None else None
    if as_json:
        print_json({"files": [asdict(row) for row in rows], "cosines": cosines, "shared": shared})
        return
    columns = ["file", "tensors", "numbers", "types", "finite", "norm", "distance from stock"]
    print_text(
        table(
            columns,
            [
                [
                    row.file,
                    str(row.tensors),
                    f"{row.numbers:,}",
                    row.types,
                    "yes" if row.finite else "NO",
                    "" if row.norm is None else f"{row.norm:.4g}",
                    "" if row.distance is None else f"{row.distance:.4g}",
                ]
                for row in rows
            ],
        )
    )
    for path, count in zip(files, shared or [], strict=False):
        if count == 0:
            print_text(f"{path} and {stock} share no tensor of the same name and shape, so they have no distance")
    if cosines is not None:
        print_text("\ncosine between displacements from the stock:")
        print_text(
            table(
                ["", *(path.name for path in files)],
                [
                    [path.name, *("" if c is None else f"{c:.3f}" for c in row)]
                    for path, row in zip(files, cosines, strict=True)
                ],
            )
        )


def _shared(checkpoint: Checkpoint, start: Checkpoint) -> int:
    """Return the number of floating-point tensors that have the same name and shape in two files."""
    both = (name for name in checkpoint if name in start)
    return sum(checkpoint[n].is_floating_point() and checkpoint[n].shape == start[n].shape for n in both)


def _displacement(checkpoint: Checkpoint, start: Mapping[str, Tensor] | None) -> Displacement:
    norm = distance = 0.0
    shared = 0
    finite = True
    types: dict[str, None] = {}
    numbers = 0
    for name in checkpoint:
        tensor = checkpoint[name]
        types[str(tensor.dtype).removeprefix("torch.")] = None
        numbers += tensor.numel()
        if not tensor.is_floating_point():
            continue
        finite = finite and bool(torch.isfinite(tensor).all())
        norm += float(tensor.double().square().sum())
        if start is not None and name in start and start[name].shape == tensor.shape:
            shared += 1
            distance += float((tensor.double() - start[name].double()).square().sum())
    return Displacement(
        checkpoint.path.name,
        len(checkpoint),
        numbers,
        ", ".join(types),
        finite,
        math.sqrt(norm) if math.isfinite(norm) else None,
        math.sqrt(distance) if shared and math.isfinite(distance) else None,
    )


def _cosines(found: Sequence[Checkpoint], start: Checkpoint) -> list[list[float | None]]:
    """Return the cosines between displacements over the tensors that all files have in the same shape.

    An entry is None if one of its displacements is zero or not finite, or if there is no such tensor.
    """
    products = torch.zeros(len(found), len(found), dtype=torch.float64)
    for name in start:
        origin = start[name]
        if not origin.is_floating_point() or any(name not in c or c[name].shape != origin.shape for c in found):
            continue
        moves = torch.stack([(checkpoint[name].double() - origin.double()).flatten() for checkpoint in found])
        products += moves @ moves.T
    lengths = products.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    cosines = (products / scale.clamp(min=1e-300)).tolist()
    return [
        [value if 0 < float(scale[i, j]) < math.inf else None for j, value in enumerate(row)]
        for i, row in enumerate(cosines)
    ]
