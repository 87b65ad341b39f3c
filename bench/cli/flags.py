"""Flags of the command line, made from settings that are declared as annotated fields."""

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from bench.cli import completion
from bench.settings.run_fields import LISTS, Flag, RunFields

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]
Where = Annotated[list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Keep records with this value.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")]


FIELDS = inspect.get_annotations(RunFields)
"""The annotations of all settings of a run, by name."""
NOTHING: Mapping[str, str] = {}


def with_settings(
    first: int, names: Collection[str] = FIELDS, helps: Mapping[str, str] = NOTHING, *, lists: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace `**settings` by a flag for each of these settings of a run; None says that the flag is not given.

    In the help they follow the `first` parameters of the command; its others stand before --offline, or last. `helps`
    holds the help of flags that mean something else than in a run. `lists`: where a run has one value, the command
    takes several.
    """

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        flags = [
            flag(name, hint, told=helps.get(name, ""), text=lists and name in LISTS)
            for name, hint in FIELDS.items()
            if name in names
        ]
        own = list(inspect.signature(command).parameters.values())[:-1]
        end = next((place for place, each in enumerate(flags) if each.name == "offline"), len(flags))
        signature = inspect.Signature([*own[:first], *flags[:end], *own[first:], *flags[end:]])
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return with_flags


def flag(name: str, hint: Any, *, told: str = "", text: bool = False) -> inspect.Parameter:
    """Return the parameter of a run's setting; None says that the flag is not given.

    Type, names and help come from its annotation `hint`. `told` is a help instead of the declared one. The settings are
    checked together, so the parser only tells numbers from texts, and with `text` not even these.
    """
    declared = _declared(hint)
    kind: Any = list[str] if declared.repeated else str if text else _kind(hint.__origin__)
    return _parameter(name, kind | None, None, _option(name, hint, told))


def flag_with_default(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """Return the parameter of a setting that the parser checks by its limits and shows with its default."""
    declared = _declared(hint)
    option = _option(name, hint, "", min=declared.least, max=declared.most)
    kind: Any = _kind(hint.__origin__)
    return _parameter(name, kind | None if default is None else kind, default, option)


def _declared(hint: Any) -> Flag:
    return next(item for item in hint.__metadata__ if isinstance(item, Flag))


def _kinds(origin: Any) -> tuple[Any, ...]:
    return get_args(origin) if isinstance(origin, UnionType) else (origin,)


def _kind(origin: Any) -> type:
    kinds = _kinds(origin)
    return next((kind for kind in (bool, int, float, Path) if kind in kinds), str)


def _option(name: str, hint: Any, told: str, **limits: Any) -> Any:
    declared = _declared(hint)
    names = [declared.name or "--" + name.replace("_", "-"), *([declared.also] if declared.also else [])]
    allowed = [value for kind in _kinds(hint.__origin__) if get_origin(kind) is Literal for value in get_args(kind)]
    complete = completion.of_field(name, allowed)
    return typer.Option(*names, help=told or declared.help, metavar=declared.metavar, autocompletion=complete, **limits)


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


# Settings of a run that other commands have too.
DataRoot = Annotated[Path | None, _option("data_root", FIELDS["data_root"], "")]
Device = Annotated[str, _option("device", FIELDS["device"], "")]
Offline = Annotated[bool, _option("offline", FIELDS["offline"], "")]
