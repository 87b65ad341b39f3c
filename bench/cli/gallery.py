"""The command `bench gallery`."""

from pathlib import Path
from typing import Annotated

import typer


def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The figure to write: .png, .pdf or .svg.")],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A photograph; default: scikit-learn's.")] = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            help="Names, suites (imagenet_c), groups (noise) or FILE.py:NAME, comma-separated.  [default: ImageNet-C]"
        ),
    ] = None,
    severity: Annotated[str, typer.Option(help="The columns: 1-5, or comma-separated numbers, as in 0.5,1,3.")] = "1-5",
    profile: Annotated[str, typer.Option(help="The table of severities; default: depends on the size.")] = "auto",
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the image in pixels; default: 224, or less for a small image."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random corruptions.")] = 0,
) -> None:
    """Draw one image under corruptions (rows) at severities (columns), with labels, for a paper's appendix."""
    from bench.planning.check_names import check_gallery

    check_gallery(corruption, severity, profile)
    from bench.cli import gallery_image as drawing

    drawing.gallery(out, image, corruption, severity, profile, size, seed)
