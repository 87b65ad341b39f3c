"""The reference of the command line, from the commands as typer declares them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from markup import code, plain, table

from bench.cli.main import app

INTRODUCTION = """# Command line

Every command and option, as the program declares them; `bench COMMAND --help` says the same. The keys of a run file are
the names of the options of `bench run`, without dashes in front and with `_` for `-`.

The exit code is 0 (done), 1 (some trials failed; the others are kept), 2 (usage), 3 (data or weights missing),
4 (validation failed) or 130 (interrupted).
"""


def page() -> str:
    """Return the page: a section for each command, in alphabetical order."""
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="bench")
    sections = [_section(command, context) for _, command in sorted(root.commands.items())]
    return "\n\n".join([INTRODUCTION, *(part for parts in sections for part in parts)]) + "\n"


def _section(command: Any, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=command.name, parent=parent)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    yield f"## {context.command_path}\n\n{plain(command.help or '')}"
    if inner := getattr(command, "commands", {}):
        for _, each in sorted(inner.items()):
            yield from ("#" + part if part.startswith("##") else part for part in _section(each, context))
        return
    yield f"```text\n{usage}\n```"
    described = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(code(name), plain(text)) for name, text in filter(None, described) if name != "--help"]
    if rows:
        yield table(("argument or option", "meaning"), rows)
