"""The commands `bench new` and `bench check`, which convert arguments to typed objects and make one call."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.flags import DataRoot, Json
from bench.cli.list_show import group

new = group("Create the file of a new method, shift or corruption, with a test.")
check = group("Check a method or shift against the rules of its interface.")

Folder = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write the files into.")]


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and _, as in my_tent.")],
    out: Folder = Path(),
) -> None:
    """Write NAME.py, a working method, and test_NAME.py, its test. Never overwrites files."""
    from bench.extending import methods as extend

    extend.write_method(name, out)


@check.command("method")
def check_method(
    method: Annotated[str, typer.Argument(metavar="FILE[:CLASS]", help="A file, or the name of a method.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="Set an option for the check.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the rules that a method breaks on small models of every kind. Exit code: 0 if none, else 4."""
    from bench.planning import check_names

    if method.endswith(".py"):
        check_names.check_own(method)
    else:
        check_names.check_method(method)
    from bench.extending import methods as extend

    raise typer.Exit(extend.check_method(method, set_ or [], as_json=json))


@new.command("shift")
def new_shift(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and _, as in my_shift.")],
    out: Folder = Path(),
) -> None:
    """Write NAME.py, a working shift, and test_NAME.py, its test. Never overwrites files."""
    from bench.extending.methods import check_new_name
    from bench.shifts import SHIFTS

    check_new_name("shift", name, SHIFTS, "shift")
    from bench.extending import shifts as extend_shift

    extend_shift.write_shift(name, out)


@new.command("corruption")
def new_corruption(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and _, as in my_grain.")],
    out: Folder = Path(),
) -> None:
    """Write NAME.py, a working corruption, and test_NAME.py, its test. Never overwrites files."""
    from bench.extending import corruptions as extend_corruption

    extend_corruption.write_corruption(name, out)


@check.command("shift")
def check_shift(
    shift: Annotated[str, typer.Argument(metavar="FILE[:CLASS]", help="A file that defines a shift.")],
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Print the rules that a shift breaks on a few of its images. Exit code: 0 if none, else 4."""
    from bench.planning import check_names

    check_names.check_own(shift)
    from bench.extending import shifts as extend_shift

    raise typer.Exit(extend_shift.check_shift(shift, data_root, as_json=json))
