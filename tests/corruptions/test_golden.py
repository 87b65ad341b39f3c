"""The public reference implementation, through what it makes of three photographs.

`golden.csv` was measured with the original ImageNet-C scripts (truncated to 8 bits, not stored as JPEG): PSNR to the
input in dB with its deviation over seeds, mean and deviation of the levels, each averaged over three pictures.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import corruptions
from corruptions.weather import frost_folder

with Path(__file__).with_name("golden.csv").open() as file:
    ROWS = list(csv.DictReader(file))
SIDES = {"imagenet224": 224, "tiny64": 64, "cifar32": 32}
SEEDS = {"imagenet224": 4, "tiny64": 16, "cifar32": 32}


def is_quick(row: dict[str, str]) -> bool:
    return row["profile"] == "cifar32" or (row["severity"] == "4" and not float(row["psnr_sd"]))


def cases() -> list[object]:
    rows = [row for row in ROWS if row["corruption"] != "frost" or frost_folder()]
    return [
        pytest.param(
            row,
            id=f"{row['profile']}-{row['corruption']}-{row['severity']}",
            marks=[] if is_quick(row) else [pytest.mark.slow],
        )
        for row in rows
    ]


@pytest.mark.parametrize("row", cases())
def test_the_reference_makes_the_same_of_photographs(row: dict[str, str], photographs: Callable[[int], Tensor]) -> None:
    name, profile = row["corruption"], row["profile"]
    deviation = float(row["psnr_sd"])
    seeds = SEEDS[profile] if deviation else 1
    images = photographs(SIDES[profile]).repeat(seeds, 1, 1, 1)
    ids = [f"{seed}-{picture}" for seed in range(seeds) for picture in range(3)]
    out = corruptions.corrupt(images, name, int(row["severity"]), ids=ids, profile=profile).double()
    error = (out - images).square().mean((1, 2, 3))
    psnr = (10 * torch.log10(255**2 / error)).view(seeds, 3).mean(1)
    mean = out.mean((1, 2, 3)).view(seeds, 3).mean(1)
    std = out.flatten(1).std(1, unbiased=False).view(seeds, 3).mean(1)

    spread = math.sqrt(1 / seeds + 1 / int(row["seeds"])) if deviation else 0.0
    assert abs(float(psnr.mean()) - float(row["psnr"])) <= 4 * deviation * spread + 0.05
    for value, column in ((mean, "mean"), (std, "std")):
        noise = float(value.std()) if seeds > 1 else 0.0
        assert abs(float(value.mean()) - float(row[column])) <= 4 * noise * spread + (0.5 if deviation else 0.1)
