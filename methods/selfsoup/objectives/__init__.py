"""The self-supervised objectives of ingredients, by name: one module for each loss, each with a frozen `Config`.

The plain names are the forms that Self-Souping uses; "…_official" are those of the objectives' own papers.
"""

from __future__ import annotations

from methods.selfsoup.objectives import (
    lejepa,
    lejepa_official,
    mae,
    mmcr,
    mmcr_official,
    mocov3,
    mocov3_official,
)

OBJECTIVES = {
    "mae": mae,
    "mocov3": mocov3,
    "mmcr": mmcr,
    "lejepa": lejepa,
    "mocov3_official": mocov3_official,
    "mmcr_official": mmcr_official,
    "lejepa_official": lejepa_official,
}
