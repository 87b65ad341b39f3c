"""The reference of the Python interface: which names have a section, for mkdocstrings, which reads their source."""

from __future__ import annotations

import bench
import corruptions
import leaderboards

_STABLE = {
    "methods.base": "What every method of your own is built on.",
    "methods.online": "Base classes of adapters that learn along the stream.",
    "methods.table": "What a method may see, and its row in the table.",
    "methods.norms": "Normalisation layers and their parameters.",
    "methods.losses": "Losses that adapters share.",
    "methods.views": "Random views of images.",
    "methods.conformance": "The rules that every method is checked against.",
    "methods.example_models": "Small models to try a method on.",
}


def pages() -> dict[str, str]:
    """Return the pages by their names in the site."""
    return {
        "reference/bench.md": _package("bench", "Runs from Python, with the defaults of the command line.", _homes(bench)),
        "reference/methods.md": _modules(),
        "reference/corruptions.md": _package("corruptions", "Corruptions of batches of images.", _homes(corruptions)),
        "reference/leaderboards.md": _package(
            "leaderboards", "Records, boards and their checks; never imports torch.", _homes(leaderboards)
        ),
    }


def _homes(package: object) -> list[str]:
    """Return where each public name of a package lives; the packages load most of theirs on first use."""
    name = package.__name__  # type: ignore[attr-defined]
    exports = getattr(package, "_EXPORTS", None) or {
        each: f"{name}.{module}"
        for table in ("_MODULES", "_NEED_TORCH")
        for each, module in getattr(package, table, {}).items()
    }
    public = [each for each in package.__all__ if not each.startswith("__")]  # type: ignore[attr-defined]
    return [f"{exports[each]}.{each}" if each in exports else f"{getattr(package, each).__module__}.{each}" if hasattr(getattr(package, each), "__module__") else "" for each in public]


def _package(name: str, about: str, homes: list[str]) -> str:
    return "\n\n".join([f"# {name}", about, f"Import these names from `{name}`.", *(f"::: {home}" for home in homes if home)]) + "\n"


def _modules() -> str:
    parts = ["# methods", "The modules on which methods of other people may build; their names are stable."]
    for module, about in _STABLE.items():
        parts += [f"## {module}", about, f"::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 3"]
    return "\n\n".join(parts) + "\n"
