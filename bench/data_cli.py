"""The commands of `bench data`: arguments to typed objects to one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Data sets: what is here, fetch, verify, clean.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder of the data sets.")]
Offline = Annotated[bool, typer.Option("--offline", help="Touch no network.")]


@app.command()
def status(
    shift: Annotated[str | None, typer.Argument(help="Only this shift, with all that is known of it.")] = None,
    data_root: Root = None,
    json: Json = False,
) -> None:
    """Say what is found where, how large the rest is and how to get it, and what the cache holds."""
    from bench import data_commands

    data_commands.status(shift, data_root, as_json=json)


@app.command()
def fetch(
    shift: Annotated[str, typer.Argument(help="A shift, or hf:REPO[:CONFIG].")],
    data_root: Root = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="A web folder with the files and their SHA256SUMS.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Bring a shift's data from where it was published; goes on where it stopped, checks what came."""
    from bench import data_commands

    data_commands.fetch(shift, data_root, mirror, offline)


@app.command()
def verify(
    shift: Annotated[str, typer.Argument(help="A shift, folder:PATH or hf:REPO[:CONFIG].")],
    data_root: Root = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads; default: one for each core.")] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Check files against SHA256SUMS where that is there, and decode every image once. Exit 0 whole, 4 otherwise."""
    from bench import data_commands

    raise typer.Exit(data_commands.verify(shift, data_root, workers, offline, as_json=json))


@app.command()
def clean(
    shift: Annotated[str | None, typer.Argument(help="Only what was decoded of this shift.")] = None,
    data_root: Root = None,
) -> None:
    """Remove decoded pixels and tables from the cache; they are made again when next asked for."""
    from bench import data_commands

    data_commands.clean(shift, data_root)
