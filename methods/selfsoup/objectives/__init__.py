"""The self-supervised objectives that make ingredients, by name: one module a loss, each with a frozen `Config`."""

from __future__ import annotations

from methods.selfsoup.objectives import lejepa, mae, mmcr, mocov3

OBJECTIVES = {"mae": mae, "mocov3": mocov3, "mmcr": mmcr, "lejepa": lejepa}
