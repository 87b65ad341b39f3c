"""What the shell may complete after an option, from names that are known without torch (`--install-completion`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Complete = Callable[[str], list[str]]


def _listed(names: Callable[[], Iterable[str]]) -> Complete:
    """Complete the last part of a list, as in "source,te" or "selfsoup+te"; what stands before it stays."""

    def complete(incomplete: str) -> list[str]:
        before, last = re.fullmatch(r"(.*[,+])?([^,+]*)", incomplete, re.DOTALL).groups("")  # type: ignore[union-attr]
        return [before + name for name in names() if name.startswith(last)]

    return complete


def _methods() -> Iterable[str]:
    from bench.settings.methods import plugins
    from methods import METHODS

    return (*METHODS, *plugins())


def _shifts() -> Iterable[str]:
    from bench.shifts import SHIFTS

    return SHIFTS


def _corruptions() -> Iterable[str]:
    from corruptions.catalog import ROWS

    return (row.name for row in ROWS)


def _models() -> Iterable[str]:
    from bench.models.bundled import bundled
    from bench.models.known_names import KINDS

    return (*bundled(), *(f"{kind}:" for kind in KINDS))


def _stocks() -> Iterable[str]:
    from bench.models.known_names import BUNDLED

    return (*BUNDLED, "timm:")


def _protocols() -> Iterable[str]:
    from bench.settings.methods import subclasses_of

    return (names["name"] for names, _ in subclasses_of("Protocol", "bench.evaluation.protocols"))


def suites(incomplete: str) -> list[str]:
    """Complete the name of a suite."""
    from bench.settings.suites import suites as known

    return [name for name in known() if name.startswith(incomplete)]


def cards(incomplete: str) -> list[str]:
    """Complete the name of a reproduction card."""
    from bench.settings.reproductions import cards as known

    return [name for name in known() if name.startswith(incomplete)]


methods, shifts, corruptions = _listed(_methods), _listed(_shifts), _listed(_corruptions)
OF_FIELD: dict[str, Complete] = {
    "method": methods,
    "shift": shifts,
    "pool": shifts,
    "corruption": corruptions,
    "model": _listed(_models),
    "stock": _listed(_stocks),
    "protocol": _listed(_protocols),
}
"""How the value of a setting of a run is completed; of all other settings by what its type allows."""


def of_field(name: str, values: Iterable[object]) -> Complete | None:
    """Return how a setting is completed: by known names, or by the values that its type allows; None by neither."""
    texts = [value for value in values if isinstance(value, str)]
    return OF_FIELD.get(name) or (_listed(lambda: texts) if texts else None)
