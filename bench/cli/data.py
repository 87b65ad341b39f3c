"""The commands of `bench data`: arguments to typed objects to one call."""

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
    from bench.cli import data_commands

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
    from bench.cli import data_commands

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
    from bench.cli import data_commands

    raise typer.Exit(data_commands.verify(shift, data_root, workers, offline, as_json=json))


@app.command()
def explain(
    shift: Annotated[str, typer.Argument(help="A shift, folder:PATH or hf:REPO[:CONFIG].")],
    data_root: Root = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE|natural|imagefolder", help="Order of the classes of folder: and hf:.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of a table with labels.")] = None,
    part: Annotated[str | None, typer.Option(metavar="NAME", help="The part of folder: and hf: to look at.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="SHEET.png", help="Write the first pictures there.")
    ] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Say what is read: which part, column and classes in which order, how many images, and what is skipped and why."""
    from bench.cli import data_commands

    data_commands.explain(shift, data_root, classes, label, part, out, offline, as_json=json)


@app.command()
def export(
    shift: Annotated[str, typer.Argument(help="A shift made here (imagenet-c-gen, …), folder:PATH or hf:REPO.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write.")],
    corruption: Annotated[str | None, typer.Option(help="Only these, with commas; default: all that count.")] = None,
    severity: Annotated[str, typer.Option(help="5, 3,5 or 1-5.")] = "1-5",
    layout: Annotated[
        str | None, typer.Option(help="imagenet-c, laion-c (JPEG trees) or cifar-c (.npy); default: by the shift.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Square side in pixels; default: the shift's, with its usual resize.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, evenly spread.")] = None,
    data_root: Root = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one for each core.")] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write a corrupted copy in the published layout, with checksums; goes on where it stopped."""
    from bench.cli import data_commands

    data_commands.export(
        shift,
        out,
        corruption,
        severity,
        layout,
        size,
        limit,
        data_root,
        device,
        workers,
        offline,
        as_json=json,
    )


@app.command()
def clean(
    shift: Annotated[str | None, typer.Argument(help="Only what was decoded of this shift.")] = None,
    data_root: Root = None,
) -> None:
    """Remove pixels, tables, pools and answers from the cache; they are made again when next asked for."""
    from bench.cli import data_commands

    data_commands.clean(shift, data_root)
