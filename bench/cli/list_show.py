"""The commands `bench list`, `bench show` and `bench cite`; the first two start as fast as typer allows.

Typer imports pydantic to parse any value except a flag's True or False, which takes longer than the commands. So `list`
and `show` read their words unparsed, and the default of --help is False instead of None.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bench.cli import completion
from bench.cli.flags import Json


class _Quick:
    """Options of typer whose value is never parsed: their default is False instead of None."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for each in params:
            if each.name in ("install_completion", "show_completion"):
                each.default = False
        return params

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class QuickCommand(_Quick, TyperCommand):
    """A command without parsed values, whose words the shell completes from `names`."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what may follow the words of `list` and `show`, without parsing them."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            return found
        from bench.cli import catalogue

        item = _completion_item()
        return [*found, *(item(name) for name in catalogue.names(self.name, ctx.args) if name.startswith(incomplete))]


def _completion_item() -> Any:
    """Return the class of completions, which typer took from click before it had its own."""
    from importlib import import_module

    try:
        return import_module("typer._click.shell_completion").CompletionItem
    except ImportError:
        return import_module("click.shell_completion").CompletionItem


class QuickGroup(_Quick, TyperGroup):
    """A group without parsed values, whose help gives the first sentence of each command in full."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # a reader that left, as `| head` does; the option parser would exit with 1
            raise typer.Exit(0) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(10_000)) for name, each in found if each is not None and not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(text: str) -> typer.Typer:
    """Return an empty group of commands with this help."""
    return typer.Typer(cls=QuickGroup, no_args_is_help=True, rich_markup_mode=None, help=text)


_LISTS = "methods|shifts|corruptions|models|protocols|suites|reproductions|boards"
_THINGS = "method|shift|corruption|model|protocol|suite|reproduction|board"


def _words(context: typer.Context, *names: str, more: int = 0) -> list[str]:
    """Return one word of the command line per name and at most `more`, or fail with the parser's usual error."""
    if missing := names[len(context.args) :]:
        context.fail(f"Missing argument '{missing[0]}'.")
    if extra := context.args[len(names) + more :]:
        context.fail(f"Got unexpected extra argument(s) ({' '.join(extra)})")
    return context.args


def list_(context: typer.Context, json: Json = False) -> None:
    """List methods, shifts, corruptions, models, protocols, suites, reproductions or boards."""
    (what,) = _words(context, _LISTS)
    from bench.cli import catalogue

    catalogue.print_list(what, as_json=json)


def show(context: typer.Context, json: Json = False) -> None:
    """Show all about one method (a SHIFT after its name: its options there), shift, corruption, model and so on."""
    what, name, *shift = _words(context, _THINGS, "name", more=1)
    from bench.cli import catalogue

    catalogue.print_one(what, name, shift[0] if shift else "", as_json=json)


def cite(
    names: Annotated[
        list[str],
        typer.Argument(metavar="METHOD...", help="Methods, as for --method.", autocompletion=completion.methods),
    ],
    json: Json = False,
) -> None:
    """Print the papers to cite for methods, and this software."""
    from bench.cli import catalogue

    catalogue.print_citations(names, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add these three commands to `app`."""
    extra = {"allow_extra_args": True}
    app.command("list", cls=QuickCommand, options_metavar=f"[OPTIONS] {{{_LISTS}}}", context_settings=extra)(list_)
    app.command(cls=QuickCommand, options_metavar=f"[OPTIONS] {{{_THINGS}}} {{name}}", context_settings=extra)(show)
    app.command()(cite)
