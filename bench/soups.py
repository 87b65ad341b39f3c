"""`bench soup`: mix, season, inspect and connect weights in files, those of this project and those of others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.checkpoints import Checkpoint, write_tensors
from bench.devices import pick_device
from bench.errors import UsageError, nearest
from bench.models import load_weights, save_weights
from bench.output import print_json, print_text, table
from bench.shifts import load_shift
from bench.shifts.base import labelled_source, limit_ids
from bench.trial import CLEAN
from methods.base import Labelled, Unsupported
from methods.mixing import MIXERS, Mixer, Uniform, Weighted
from methods.remeasure import Remeasure, remeasured
from methods.season import Schedule, SelfSeasoning, Supervised, learned_soup, self_seasoned, supervised_seasoned
from methods.selfsoup.mixes import read_options
from methods.soup import Interpolation, accuracy, combine_tensor, interpolate, measured, refuse_tensor
from methods.stock import Weights

_STATISTICS = ("running_mean", "running_var")


def mix(
    files: Sequence[Path],
    out: Path,
    how: str,
    stock: Path | None,
    weights: Sequence[float],
    average_statistics: bool,
) -> None:
    """Mix weights file by file into a new one, tensor by tensor, so that memory does not grow with their number."""
    rule = _rule(how, weights)
    if rule.needs_stock and stock is None:
        raise UsageError(f"'{how}' measures from the weights that all ingredients came from; give them with --stock")
    ingredients = [Checkpoint(path) for path in files]
    start = Checkpoint(stock) if stock is not None and rule.needs_stock else None
    _refuse_strangers(ingredients, average_statistics)
    first = ingredients[0]

    def make(name: str) -> Tensor:
        every = [ingredient[name] for ingredient in ingredients]
        for path, tensor in zip(files, every, strict=True):
            refuse_tensor(f"{name} of {path}", tensor, every[0])
        origin = start[name] if start is not None and name in start else None
        if origin is not None:
            refuse_tensor(f"{name} of {stock}", origin, every[0])
        chosen: Mixer = Uniform() if rule.needs_stock and origin is None else rule
        return combine_tensor(name, every, lambda _, tensors: chosen.mix(tensors, origin))

    shapes = {}
    for name in first:
        tensor = first[name]
        shapes[name] = (tensor.dtype, tuple(tensor.shape))
    facts: dict[str, Any] = {
        "soup": how,
        "options": dict(vars(rule)),
        "ingredients": [{"file": path.name, "digest": i.digest()} for path, i in zip(files, ingredients, strict=True)],
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
    untouched = [name for name in shapes if start is not None and name not in start]
    if untouched:
        print_text(f"not in the stock and so averaged: {', '.join(untouched[:4])}" + (" …" if untouched[4:] else ""))


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
        for stock in json.loads(other.metadata.get("facts", "{}")).get("stocks") or []:
            stocks.setdefault(stock, other.path)
    if len(stocks) > 1:
        strangers = " and ".join(str(path) for path in list(stocks.values())[:2])
        raise UsageError(f"{strangers} come from different stocks; mix ingredients of one stock")
    if not average_statistics and any(name.endswith(_STATISTICS) for name in first):
        raise UsageError(
            "these models hold BatchNorm statistics, and the average of those belongs to no model; add "
            "--average-statistics and measure them again on clean train images (methods.remeasure)"
        )


@dataclass(frozen=True)
class Displacement:
    """How far an ingredient is from where all started: norms over all floating tensors."""

    file: str
    tensors: int
    numbers: int
    types: str
    finite: bool
    norm: float
    distance: float | None


def inspect(files: Sequence[Path], stock: Path | None, as_json: bool) -> None:
    """Show what files hold, how far each is from the stock, and the cosines between their displacements."""
    start = Checkpoint(stock) if stock is not None else None
    found = [Checkpoint(path) for path in files]
    rows = [_displacement(checkpoint, start) for checkpoint in found]
    cosines = _cosines(found, start) if start is not None and len(found) > 1 else None
    if as_json:
        print_json({"files": [asdict(row) for row in rows], "cosines": cosines})
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
                    f"{row.norm:.4g}",
                    "" if row.distance is None else f"{row.distance:.4g}",
                ]
                for row in rows
            ],
        )
    )
    if cosines is not None:
        print_text("\ncosine between displacements from the stock:")
        print_text(
            table(
                ["", *(path.name for path in files)],
                [[path.name, *(f"{c:.3f}" for c in row)] for path, row in zip(files, cosines, strict=True)],
            )
        )


def _displacement(checkpoint: Checkpoint, start: Mapping[str, Tensor] | None) -> Displacement:
    norm = distance = 0.0
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
        if start is not None and name in start:
            distance += float((tensor.double() - start[name].double()).square().sum())
    return Displacement(
        checkpoint.path.name,
        len(checkpoint),
        numbers,
        ", ".join(types),
        finite,
        math.sqrt(norm) if math.isfinite(norm) else 0.0,
        None if start is None else math.sqrt(distance) if math.isfinite(distance) else 0.0,
    )


def _cosines(found: Sequence[Checkpoint], start: Checkpoint) -> list[list[float]]:
    products = torch.zeros(len(found), len(found), dtype=torch.float64)
    for name in start:
        origin = start[name]
        if not origin.is_floating_point() or any(name not in checkpoint for checkpoint in found):
            continue
        moves = torch.stack([(checkpoint[name].double() - origin.double()).flatten() for checkpoint in found])
        products += moves @ moves.T
    lengths = products.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    return cast(list[list[float]], torch.where(scale > 0, products / scale.clamp(min=1e-300), 0.0).tolist())


def connect(
    first: Path, second: Path, shift_name: str, data_root: Path | None, steps: int, limit: int | None, as_json: bool
) -> None:
    """Accuracy along the straight line between two classifiers, on clean dev images: is there a barrier between them?

    The barrier is the largest gap by which the line of the two end accuracies lies above the accuracy on the way.
    """
    ends = [load_weights(path)[0] for path in (first, second)]
    data = _dev_images(shift_name, data_root, limit)
    _need_classifiers([first, second], ends, data)
    positions = [step / (steps - 1) for step in range(steps)]
    device = torch.device(pick_device("auto"))
    between = (interpolate(ends, None, Interpolation(at)) for at in positions)
    scores = [accuracy(measured(weights, data, device), data, device) for weights in between]
    gaps = [(1 - at) * scores[0] + at * scores[-1] - score for at, score in zip(positions, scores, strict=True)]
    barrier = max(0.0, *gaps)
    if as_json:
        print_json({"positions": positions, "accuracy": scores, "barrier": barrier, "n": len(data)})
        return
    rows = [[f"{at:.2f}", f"{100 * score:.1f}"] for at, score in zip(positions, scores, strict=True)]
    print_text(table(["position", "accuracy"], rows))
    print_text(f"barrier {100 * barrier:.1f} points on {len(data)} clean dev images of {shift_name}")


def season(
    files: Sequence[Path],
    out: Path,
    how: str,
    shift_name: str,
    data_root: Path | None,
    labels: int | None,
    epochs: int,
    batch_size: int,
    layerwise: bool,
    seed: int,
) -> None:
    """Learn the coefficients of a soup on clean train images and write the soup."""
    ways: dict[str, Callable[[], Weights]] = {
        "self": lambda: self_seasoned(
            inputs,
            data.without_labels(),
            SelfSeasoning(epochs=epochs, batch_size=batch_size, layerwise=layerwise),
            generator,
        ),
        "labels": lambda: learned_soup(
            inputs, data, Schedule(epochs=epochs, batch_size=batch_size, layerwise=layerwise), generator
        ),
        "search": lambda: supervised_seasoned(inputs, data, Supervised(), generator),
    }
    chosen = ways[nearest(how, ways, "way of seasoning")]
    inputs = [load_weights(path)[0] for path in files]
    shift = load_shift(shift_name, data_root)
    data = labelled_source(shift, labels, seed)
    if how == "labels":
        _need_classifiers(files, inputs, data)
    generator = torch.Generator(device=pick_device("auto")).manual_seed(seed)
    try:
        soup = remeasured([chosen()], data, Remeasure(), generator)
    except ValueError as error:
        raise UsageError(str(error)) from None
    facts = {
        "soup": f"seasoned by {how}",
        "images": f"{len(data)} clean train images of {shift_name}",
        "ingredients": [{"file": p.name, "digest": w.digest} for p, w in zip(files, inputs, strict=True)],
    }
    save_weights(out, soup, facts)
    print_text(f"{out}: soup of {len(files)} seasoned by {how} on {facts['images']}")


def _dev_images(shift_name: str, data_root: Path | None, limit: int | None) -> Labelled:
    shift = load_shift(shift_name, data_root)
    ids = limit_ids(shift.ids("dev"), limit)
    labels = torch.from_numpy(shift.labels(ids))
    return Labelled(shift.images(ids, CLEAN), shift.digest(ids, CLEAN), labels, shift.classes)


def _need_classifiers(files: Sequence[Path], weights: Sequence[Weights], data: Labelled) -> None:
    for path, own in zip(files, weights, strict=True):
        if len(own.tensors.get("head.bias", ())) != data.classes:
            raise UsageError(
                f"{path} has no head for {data.classes} classes; give a classifier fine-tuned on this shift"
            )
