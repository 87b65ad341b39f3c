"""The command `bench gallery`."""

from pathlib import Path
from typing import Annotated

import typer


def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The picture: .png, .pdf or .svg.")],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A photograph; default: scikit-learn's.")] = None,
    corruption: Annotated[
        str | None,
        typer.Option(help="Names, whole suites (imagenet_c, …) or FILE.py:NAME, with commas; default: ImageNet-C."),
    ] = None,
    severity: Annotated[str, typer.Option(help="The columns: 1-5, or numbers with commas, as in 0.5,1,3.")] = "1-5",
    profile: Annotated[str, typer.Option(help="The table of severities; default: by the size.")] = "auto",
    size: Annotated[
        int | None, typer.Option(min=8, help="Side of the square in pixels; default: 224, less if the image is small.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random corruptions.")] = 0,
) -> None:
    """Draw one picture under corruptions (rows) at severities (columns), labelled, for a paper's appendix."""
    from bench.cli import gallery_image as drawing

    drawing.gallery(out, image, corruption, severity, profile, size, seed)
