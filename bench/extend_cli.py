"""The commands `bench new` and `bench check`: arguments to typed objects to one call."""

from pathlib import Path
from typing import Annotated

import typer

new = typer.Typer(no_args_is_help=True, help="Write the file of a new method, and its test.")
check = typer.Typer(no_args_is_help=True, help="Try a method against the rules that every method keeps.")


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in my_tent: small letters, digits and _.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the files go.")] = Path(),
) -> None:
    """Write NAME.py, a method that works, and test_NAME.py, which tries it; nothing is overwritten."""
    from bench import extend

    extend.write_method(name, out)


@check.command("method")
def check_method(
    method: Annotated[str, typer.Argument(metavar="FILE[:CLASS]", help="A file, or the name of a method.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="An option to try it with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say which rules a method breaks, on small models of every kind. Exit 0 where it breaks none, 4 otherwise."""
    from bench import extend

    raise typer.Exit(extend.check_method(method, set_ or [], as_json=json))


# A group of a single command would run it without its name.
@new.callback()
def _new() -> None: ...


@check.callback()
def _check() -> None: ...
