"""The reference of shifts and corruptions, from their tables."""

from __future__ import annotations

from collections.abc import Iterator

from markup import code, plain, table

import corruptions
from bench.shifts.catalog import SHIFTS, ShiftRow
from corruptions.tables import PROFILES


def pages() -> dict[str, str]:
    """Return the pages by their names in the site."""
    return {"reference/shifts.md": _shifts(), "reference/corruptions-table.md": _corruptions()}


def _shifts() -> str:
    parts = [
        "# Shifts",
        "Every shift by name: what it is, where it is looked for below the data root, and what brings it. `bench data "
        "status` says which are found here. [Folder layouts](../data.md#folder-layouts) shows the trees.",
    ]
    for row in SHIFTS.values():
        parts += [f"## {row.name}", f"{plain(row.summary)}.", table(("", ""), _facts(row))]
    return "\n\n".join(parts) + "\n"


def _facts(row: ShiftRow) -> Iterator[tuple[str, str]]:
    yield "size", plain(row.size)
    yield "licence", plain(row.licence)
    for title, places in (("scored images", row.places), ("clean images", row.clean), ("train images", row.train)):
        if places:
            yield title, ", ".join(map(code, places))
    how = row.how_to_get
    yield "how to get it", code(how) if how.startswith("bench ") else plain(how)
    yield "default model, stock", ", ".join(code(name) for name in (row.default_model, row.default_stock) if name)
    if row.citation != "none":
        yield "source", plain(row.citation)


def _corruptions() -> str:
    rows = [corruptions.describe(name) for name in corruptions.names()]
    profiles = {row.name: ", ".join(name for name, held in PROFILES.items() if row.name in held) for row in rows}
    facts = ((row.name, row.suite, row.group, row.summary, profiles[row.name], row.held_against) for row in rows)
    lines = [(code(name), *map(plain, others)) for name, *others in facts]
    return "\n\n".join(
        [
            "# Table of corruptions",
            "A profile holds the parameters of five severities for a size of images. How they are called: "
            "[Corruptions](../corruptions.md).",
            table(("corruption", "suite", "group", "what it draws", "profiles", "held against"), lines),
        ]
    ) + "\n"
