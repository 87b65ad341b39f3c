"""The commands `bench new` and `bench check`: arguments to typed objects to one call."""

from pathlib import Path
from typing import Annotated

import typer

new = typer.Typer(no_args_is_help=True, help="Write the file of a new method, shift or corruption, and its test.")
check = typer.Typer(no_args_is_help=True, help="Try a method or shift against the rules that each keeps.")


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in my_tent: small letters, digits and _.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the files go.")] = Path(),
) -> None:
    """Write NAME.py, a method that works, and test_NAME.py, which tries it; nothing is overwritten."""
    from bench.extending import methods as extend

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
    from bench.extending import methods as extend

    raise typer.Exit(extend.check_method(method, set_ or [], as_json=json))


@new.command("shift")
def new_shift(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in my_shift: small letters, digits and _.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the files go.")] = Path(),
) -> None:
    """Write NAME.py, a shift that works, and test_NAME.py, which tries it; nothing is overwritten."""
    from bench.extending import shifts as extend_shift

    extend_shift.write_shift(name, out)


@new.command("corruption")
def new_corruption(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in my_grain: small letters, digits and _.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the files go.")] = Path(),
) -> None:
    """Write NAME.py, a corruption that works, and test_NAME.py, which tries it; nothing is overwritten."""
    from bench.extending import corruptions as extend_corruption

    extend_corruption.write_corruption(name, out)


@check.command("shift")
def check_shift(
    shift: Annotated[str, typer.Argument(metavar="FILE[:CLASS]", help="A file that defines a shift.")],
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Folder of the data sets.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say which rules a shift breaks, on a few of its images. Exit 0 where it breaks none, 4 otherwise."""
    from bench.extending import shifts as extend_shift

    raise typer.Exit(extend_shift.check_shift(shift, data_root, as_json=json))
