"""The command `bench tune`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.flags import Json


def tune(
    method: Annotated[str, typer.Argument(help="The method to choose options for.")],
    shift: Annotated[str, typer.Option(help="The shift whose dev images are used.")],
    trials: Annotated[int, typer.Option(min=1, help="Option sets to try; use the same number for every method.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder of the records.  [default: runs/<shift>-<methods>]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per trial.")] = 2,
    severity: Annotated[str, typer.Option(help="Severities of the tuning corruptions.")] = "5",
    labels: Annotated[int | None, typer.Option(help="Labelled clean images per class; 0 for all.")] = None,
    stock: Annotated[str | None, typer.Option(help="A bundled stock or a file made by `bench stock`.")] = None,
    split: Annotated[str, typer.Option(help="Only dev is accepted.")] = "dev",
    corruption: Annotated[str | None, typer.Option(help="Some of the tuning corruptions.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME.key=value", help="Fix an option.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="key=[values]", help="Try all these values instead of the method's own table."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes.")] = None,
    json: Json = False,
) -> None:
    """Choose a method's options on dev images and tuning corruptions only."""
    from bench.planning.check_names import check_grid, check_tuning

    check_tuning(method, shift, split, corruption, set_ or [])
    check_grid(method, grid or [])
    from bench.runs import tuning

    tuning.tune(
        method,
        shift,
        trials,
        split,
        corruption,
        set_ or [],
        grid or [],
        {
            "out": out,
            "seeds": seeds,
            "severity": severity,
            "labels": labels,
            "stock": stock,
            "data_root": data_root,
            "jobs": jobs,
        },
        as_json=json,
    )
