"""Check the name of a model or stock before torch is loaded. What the name stands for is loaded later.

The names of timm and torchvision are read from the text of their files, since importing either takes seconds.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from bench.core.errors import UsageError, closest, nearest
from bench.core.extras import OF_MODELS, need
from bench.models.bundled import bundled

KINDS = ("timm", "torchvision", "lite", "hf", "openclip", "robustbench")
"""What may stand before the colon of a model's name."""

BUNDLED = {"digits": "digits-stock.safetensors"}
"""Stocks that come with this project, with their files."""

_WEIGHT_FILES = (".safetensors", ".pth", ".pt")
_OF_TIMM_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")


def check_model(name: str) -> None:
    """Raise UsageError for a classifier of an unknown kind, and for a network that timm or torchvision lacks."""
    kind, colon, rest = name.partition(":")
    if name in bundled() or name.endswith(".safetensors"):
        return
    if colon and kind in KINDS:
        _check_network(kind, rest)
        return
    bare = _bare(name)
    if not colon and bare in _timm_text():
        return
    hint = closest(kind, KINDS) if colon else closest(bare, (*bundled(), *_names_of("timm")))
    raise UsageError(
        "--model takes timm:NAME, timm:NAME@FILE, torchvision:NAME, lite:efficientnet_lite0, hf:REPO, "
        f"openclip:NAME/TAG, robustbench:SET/THREAT/NAME, {', '.join((*bundled(), 'FILE.safetensors'))} of "
        f"`bench train` or path/to/file.py:factory, not '{name}'"
        + (f"; did you mean '{hint}'?" if hint else "; a stock is given with --stock")
    )


def check_stock(name: str) -> None:
    """Raise UsageError for a stock that is neither bundled nor a file of weights nor a network of timm."""
    kind, colon, rest = name.partition(":")
    if name in BUNDLED or Path(name.partition("#")[0]).expanduser().exists():
        return
    if colon and kind == "timm":
        _check_network(kind, rest)
    elif Path(name.partition("#")[0]).suffix not in _WEIGHT_FILES:
        hint = closest(name, BUNDLED)
        raise UsageError(
            f"no stock '{name}'; --stock takes {', '.join(BUNDLED)}, a file of `bench stock`, a file of MAE's release "
            "(.pth) or timm:NAME, and a ready classifier is given with --model"
            + (f"; did you mean '{hint}'?" if hint else "")
        )


def _check_network(kind: str, name: str) -> None:
    if kind in OF_MODELS:
        need(OF_MODELS[kind], f"{kind}:{name}")
    if kind == "lite":
        nearest(name, ["efficientnet_lite0"], "model of lite")
    elif kind == "torchvision" or (kind == "timm" and not name.startswith(_OF_TIMM_ELSEWHERE)):
        bare = _bare(name)
        if bare not in (_timm_text() if kind == "timm" else _names_of(kind)):
            close = closest(bare, _names_of(kind))
            hint = f"did you mean '{close}'?" if close else f"see the list of models of {kind}"
            raise UsageError(f"{kind} has no model '{bare}'; {hint}")


def _bare(name: str) -> str:
    return re.split("[@.:]", name, maxsplit=1)[0]


@cache
def _text_of(package: str) -> str:
    """Return the text of the files in which a package defines its classifiers; "" if it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    files = (Path(found.origin).parent / "models").glob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _names_of(package: str) -> tuple[str, ...]:
    """Return the names under which a package registers classifiers."""
    found = (re.search(r"^def (\w+)\(", part, re.MULTILINE) for part in _text_of(package).split("@register_model")[1:])
    return tuple(dict.fromkeys(match[1] for match in found if match is not None))


@cache
def _timm_text() -> frozenset[str]:
    """Return every word in timm's files: its names and its former names, which it still accepts."""
    return frozenset(re.findall(r"\w+", _text_of("timm")))
