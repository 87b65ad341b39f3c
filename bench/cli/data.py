"""The commands of `bench data`, which convert arguments to typed objects and make one call."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.list_show import QuickGroup

app = typer.Typer(
    cls=QuickGroup, no_args_is_help=True, rich_markup_mode=None, help="Show, fetch, verify, export and clean data sets."
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder of the data sets.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]


def _check_shift(name: str) -> None:
    from bench.planning.check_names import check_shift

    check_shift(name)


@app.command()
def status(
    shift: Annotated[str | None, typer.Argument(help="Only this shift, in detail.")] = None,
    data_root: Root = None,
    json: Json = False,
) -> None:
    """Show which data sets are found and where, how to get the others, and what the cache holds."""
    from bench.cli import data_commands

    data_commands.status(shift, data_root, as_json=json)


@app.command()
def fetch(
    shift: Annotated[str, typer.Argument(help="A shift, or hf:REPO[:CONFIG].")],
    data_root: Root = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Web folder with the files and their SHA256SUMS.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Download the published data of a shift and check it. Run it again to resume."""
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
    """Check files against SHA256SUMS, if present, and decode every image. Exit code: 0 without problems, else 4."""
    _check_shift(shift)
    from bench.cli import data_commands

    raise typer.Exit(data_commands.verify(shift, data_root, workers, offline, as_json=json))


@app.command()
def explain(
    shift: Annotated[str, typer.Argument(help="A shift, folder:PATH or hf:REPO[:CONFIG].")],
    data_root: Root = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE|natural|imagefolder", help="Class order of folder: and hf:.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds the labels.")] = None,
    part: Annotated[str | None, typer.Option(metavar="NAME", help="The split of folder: and hf: to read.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="SHEET.png", help="Write the first images there.")
    ] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Show how a shift is read: split, label column, class order, number of images, and what is skipped and why."""
    _check_shift(shift)
    from bench.cli import data_commands

    data_commands.explain(shift, data_root, classes, label, part, out, offline, as_json=json)


@app.command()
def export(
    shift: Annotated[str, typer.Argument(help="A generated shift (imagenet-c-gen, …), folder:PATH or hf:REPO.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write.")],
    corruption: Annotated[
        str | None, typer.Option(help="Only these, comma-separated; default: all scored ones.")
    ] = None,
    severity: Annotated[str, typer.Option(help="5, 3,5 or 1-5.")] = "1-5",
    layout: Annotated[
        str | None,
        typer.Option(help="imagenet-c, laion-c (JPEG trees) or cifar-c (.npy); default by shift."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the images in pixels; default: the shift's size and resize."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images, evenly spread.")] = None,
    data_root: Root = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one for each core.")] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write a corrupted copy in the published layout, with checksums. Run it again to resume."""
    from bench.planning.check_names import check_export

    check_export(shift, corruption, severity, layout, device)
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
    shift: Annotated[str | None, typer.Argument(help="Only decoded images of this shift.")] = None,
    data_root: Root = None,
) -> None:
    """Delete cached pixels, tables, pools and predictions; they are made again when needed."""
    from bench.cli import data_commands

    data_commands.clean(shift, data_root)
