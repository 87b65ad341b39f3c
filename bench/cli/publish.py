"""The commands of `bench publish`: arguments to typed objects to one call."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Bundle results, check them as a pull request is checked, share them.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")]


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help="The bundle to write.")],
    card: Annotated[
        Path | None, typer.Option(help="Your own model card, plain text; default: made of the run.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Keep records with this value.")
    ] = None,
) -> None:
    """Put records, per-image outcomes, digests, model card and settings into one text file."""
    from bench.runs import publishing

    publishing.bundle(folder, out, card, where or [])


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bundle, a folder of them, or a run's folder.")],
    predictions: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Compare with the full predictions of this run.")
    ] = None,
    json: Json = False,
) -> None:
    """Say everything that keeps results from being published. Exit 0 where nothing does, 4 otherwise."""
    from bench.runs import publishing

    raise typer.Exit(publishing.check(path, predictions, as_json=json))


@app.command()
def settings(file: Annotated[Path, typer.Argument(metavar="FILE.jsonl")], out: Out = None) -> None:
    """Write the run file that repeats a bundle."""
    from bench.runs import publishing

    publishing.write_settings(file, out)


@app.command()
def schema(out: Out = None) -> None:
    """Write the JSON Schema of a record."""
    from bench.runs import publishing

    publishing.write_schema(out)


@app.command()
def known(
    shift: Annotated[str, typer.Argument(help="A shift whose data is here.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The table to extend.")] = Path(
        "leaderboards/reference/known.json"
    ),
) -> None:
    """For maintainers: record which images, data and weights results on a shift must have."""
    from bench.runs import publishing

    publishing.write_known(shift, out)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bundle or a folder of them.")],
    repo: Annotated[str, typer.Option(help="The hub data set, as in name/results.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The parquet file to write.")] = Path("results.parquet"),
    upload: Annotated[bool, typer.Option("--upload", help="Send it; without this, only the file is written.")] = False,
) -> None:
    """Write checked results as parquet and, only with --upload, send them to a hub data set."""
    from bench.runs import publishing

    publishing.push(path, repo, out, upload)
