"""The commands `bench soup …`, which mix and inspect files of weights."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.flags import DataRoot, Json
from bench.cli.list_show import group
from bench.core.errors import UsageError

app = group("Mix and inspect files of weights.")

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="Weights: .safetensors, .pt, .pth, folder or index of shards."),
]
SoupFile = Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")]
StockFile = Annotated[Path | None, typer.Option(help="The weights that all ingredients started from.")]
SoupModel = Annotated[
    str | None,
    typer.Option(help="The architecture of other weights: timm:NAME, torchvision:NAME or file.py:factory."),
]
SoupShift = Annotated[str, typer.Option(help="The shift whose clean images are used.")]


@app.command("mix")
def mix(
    files: Files,
    out: SoupFile,
    how: Annotated[
        str,
        typer.Option(
            help="uniform, weighted, wise, model_stock, task_arithmetic, ties, dare or slerp; "
            "for learned coefficients, use bench soup season."
        ),
    ] = "uniform",
    stock: StockFile = None,
    weights: Annotated[str, typer.Option(help="For weighted: one number per file, comma-separated.")] = "",
    average_statistics: Annotated[
        bool, typer.Option("--average-statistics", help="Average BatchNorm statistics too.")
    ] = False,
) -> None:
    """Mix weights tensor by tensor. Options of --how follow a colon, as in ties:keep=0.3."""
    from bench.planning.check_names import check_soup

    try:
        numbers = [float(part) for part in weights.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--weights takes comma-separated numbers, not '{weights}'") from None
    check_soup(files, how)
    from bench.soups import mix_files as soups

    soups.mix(files, out, how, stock, numbers, average_statistics)


@app.command("season")
def season(
    files: Files,
    out: SoupFile,
    shift: SoupShift,
    how: Annotated[
        str, typer.Option(help="self (no labels), labels (cross-entropy), search (neighbours) or greedy (dev images).")
    ] = "self",
    labels: Annotated[int | None, typer.Option(help="Clean train images per class; default: all.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 100,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.")] = 256,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Learn separate coefficients for each block.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the labels and the order.")] = 0,
    data_root: DataRoot = None,
    model: SoupModel = None,
) -> None:
    """Learn the coefficients of a soup on clean train images."""
    from bench.planning.check_names import WAYS_TO_SEASON, check_shift, check_soup

    check_shift(shift)
    check_soup(files, how, WAYS_TO_SEASON)
    from bench.soups import learn_coefficients as soup_data

    soup_data.season(
        files, out, soup_data.Season(how, shift, data_root, labels, epochs, batch_size, layerwise, seed, model)
    )


@app.command("inspect")
def inspect(files: Files, stock: StockFile = None, json: Json = False) -> None:
    """Show the tensors of files and their distances from the stock and from each other."""
    from bench.planning.check_names import check_soup

    check_soup(files)
    from bench.soups import mix_files as soups

    soups.inspect(files, stock, as_json=json)


@app.command("lmc")
def lmc(
    first: Annotated[Path, typer.Argument(help="A classifier.")],
    second: Annotated[Path, typer.Argument(help="Another classifier.")],
    shift: SoupShift,
    steps: Annotated[int, typer.Option(min=3, help="Points along the line.")] = 11,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images.")] = None,
    data_root: DataRoot = None,
    model: SoupModel = None,
    json: Json = False,
) -> None:
    """Measure accuracy on the line between two classifiers (linear mode connectivity)."""
    from bench.planning.check_names import check_shift, check_soup

    check_shift(shift)
    check_soup([first, second])
    from bench.soups import learn_coefficients as soup_data

    soup_data.connect((first, second), shift, data_root, steps, limit, model, as_json=json)
