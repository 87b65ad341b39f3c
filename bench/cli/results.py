"""The commands that read records: `bench results`, `leaderboard`, `compare`, `published` and `verify`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.flags import Folder, Json, Out, Where
from bench.core.errors import UsageError

Source = Annotated[str, typer.Option("--from", metavar="DIR[,DIR]", help="Folders of records.")]


def results(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing is missing.")] = False,
    json: Json = False,
) -> None:
    """Show the records of a run's folder: done, running, failed and missing."""
    from bench.runs import open_results as reading

    reading.print_results(folder, as_json=json, watch=watch)


def leaderboard(
    shift: Annotated[str | None, typer.Argument(help="Only this shift.")] = None,
    source: Source = "",
    format_: Annotated[
        str, typer.Option("--format", help="terminal, md (markdown), csv, json, latex or html.")
    ] = "terminal",
    per_corruption: Annotated[bool, typer.Option("--per-corruption", help="Add a column for each corruption.")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Methods against shifts, protocols and models, with mean ranks.")
    ] = False,
    by: Annotated[
        str,
        typer.Option(
            metavar="AXIS",
            help="With --matrix: columns are shift, protocol, model, split, labels or severity, and rows repeat for "
            "all else.  [default: a column for each board]",
        ),
    ] = "",
    across_tracks: Annotated[
        bool, typer.Option("--across-tracks", help="With --matrix: mean ranks and their test over all tracks together.")
    ] = False,
    blocks: Annotated[
        str,
        typer.Option(
            metavar="columns|conditions",
            help="With --matrix: what Friedman's test ranks methods in.  [default: columns]",
        ),
    ] = "",
    posthoc: Annotated[
        str,
        typer.Option(
            metavar="nemenyi|holm",
            help="With --matrix: the test of pairs after Friedman's.  [default: nemenyi]",
        ),
    ] = "",
    columns: Annotated[
        str, typer.Option(metavar="A,B,...", help="Only these columns, by their titles; or paper, full.")
    ] = "",
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="Sort by this column within each track.")] = "",
    where: Where = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the figures there, as svg, png and pdf.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write to a file; without --from, the folder of the site.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="SOUPBENCH_PROJECT", help="Source code, for the links of the site."),
    ] = None,
) -> None:
    """Rank the methods of one or more runs, with intervals; without --from, write the site of published results."""
    of_board: dict[str, object] = {"per-corruption": per_corruption, "columns": columns, "sort": sort}
    of_matrix: dict[str, object] = {"by": by, "across-tracks": across_tracks, "blocks": blocks, "posthoc": posthoc}
    of_records: dict[str, object] = {"a shift": shift, "--format": format_ != "terminal"}
    of_records |= {f"--{name}": value for name, value in of_board.items()} | {"--where": where, "--figures": figures}
    if not matrix and (wrong := _first_given(of_matrix)):
        raise UsageError(f"--{wrong} is about methods against boards; add --matrix, or leave it out")
    if matrix and not source:
        raise UsageError("--matrix needs records; add --from DIR, or leave --matrix out for the site, which has it")
    if not source and out is not None and (wrong := _first_given(of_records)):
        raise UsageError(f"without --from, --out writes the whole site; add --from DIR, or leave {wrong} out")
    if matrix and (wrong := _first_given(of_board)):
        raise UsageError(f"--{wrong} is about one board; leave it or --matrix out")
    from bench.runs import open_results as reading
    from bench.runs import publishing

    asked = reading.Shown(shift, source, format_, where or [], out)
    if not source and out is not None:
        publishing.build_site(publishing.RESULTS, out, project)
    elif matrix:
        reading.print_matrix(
            asked, figures, by=by, across=across_tracks, blocks=blocks or "columns", posthoc=posthoc or "nemenyi"
        )
    else:
        reading.print_leaderboard(asked, per_corruption, figures, columns, sort)


def _first_given(options: dict[str, object]) -> str | None:
    return next((name for name, value in options.items() if value), None)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A row: tent, or 'selfsoup (mean)'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The row to compare with.")],
    shift: Annotated[str | None, typer.Option(help="Only this shift.")] = None,
    source: Source = "",
    format_: Annotated[str, typer.Option("--format", help="terminal, md, csv, json or latex.")] = "terminal",
    where: Where = None,
    out: Out = None,
    design: Annotated[
        bool, typer.Option("--design", help="Take these results as a pilot: intervals that other sizes would give.")
    ] = False,
    n: Annotated[str, typer.Option("--n", metavar="N[,N]", help="Images, with --design.")] = "",
    conditions: Annotated[str, typer.Option(metavar="N[,N]", help="Conditions, with --design.")] = "",
    seeds: Annotated[
        str, typer.Option("--seeds", "--label-draws", metavar="N[,N]", help="Seeds of each stock, with --design.")
    ] = "",
    ingredient_draws: Annotated[
        str,
        typer.Option(metavar="N[,N]", help="Sets of ingredients that these seeds share, with --design."),
    ] = "",
    stocks: Annotated[str, typer.Option(metavar="N[,N]", help="Stocks, with --design.")] = "",
    spread: Annotated[
        str,
        typer.Option(
            metavar="images=X[,label_draws=X,...]",
            help="With --design and instead of --from: standard deviations of the difference, in points.",
        ),
    ] = "",
    across_stocks: Annotated[
        bool, typer.Option("--across-stocks", help="Compare means over all stocks, each of which is one observation.")
    ] = False,
) -> None:
    """Compare two methods image by image: difference, interval and p-value for each corruption."""
    from bench.runs import open_results as reading

    asked = reading.Shown(shift, source, format_, where or [], out)
    sizes = {"n": n, "conditions": conditions, "seeds": seeds, "ingredient-draws": ingredient_draws, "stocks": stocks}
    if not design:
        reading.print_comparison(asked, a, b, sizes | {"spread": spread}, across_stocks=across_stocks)
    elif across_stocks:
        raise UsageError("--design takes the stocks of all records; leave --across-stocks out and give --stocks N")
    elif spread:
        reading.print_planned_design(asked, a, b, spread, sizes)
    else:
        reading.print_design(asked, a, b, sizes)


def published(
    shift: Annotated[str | None, typer.Argument(help="Only this shift.")] = None,
    source: Source = "",
    format_: Annotated[str, typer.Option("--format", help="terminal, md, csv, json or latex.")] = "terminal",
    where: Where = None,
    out: Out = None,
) -> None:
    """List the numbers of papers and repositories; with --from, beside yours, with the rank correlation of methods."""
    from bench.runs import open_results as reading

    reading.print_published(reading.Shown(shift, source, format_, where or [], out))


def verify(folder: Folder, json: Json = False) -> None:
    """Recompute every metric of a folder from its stored predictions."""
    from bench.runs import open_results as reading

    raise typer.Exit(reading.print_verification(folder, as_json=json))
