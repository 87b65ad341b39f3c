"""The commands of `bench publish`, which convert arguments to typed objects and make one call."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.flags import DataRoot, Folder, Json, Out, Where
from bench.cli.list_show import group

app = group("Bundle results, check them like a pull request, and share them.")


@app.command()
def bundle(
    folder: Folder,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help="The bundle to write.")],
    card: Annotated[
        Path | None, typer.Option(help="Your model card, plain text; default: generated from the run.")
    ] = None,
    where: Where = None,
    submitter: Annotated[str | None, typer.Option(metavar="USER", help="Your user name on GitHub or the hub.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Where your own model is: hf:REPO@REVISION or a link of https."),
    ] = None,
    lean: Annotated[
        bool, typer.Option("--lean", help="Leave probabilities out; ECE, NLL and Brier then stand as submitted.")
    ] = False,
) -> None:
    """Write records, per-image outcomes, digests, model card and settings into one text file."""
    from bench.runs import publishing

    publishing.bundle(folder, out, card, where or [], submitter=submitter, weights=weights, lean=lean)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bundle, a folder of them, or a run's folder.")],
    predictions: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Compare with the full predictions of this run.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Build the site of these results without and with PATH; a folder PATH takes their place.  "
            "[default: leaderboards/results, if PATH is no folder of bundles]",
        ),
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="For maintainers: let published results change or vanish.")
    ] = False,
    known: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another table of `bench publish known`, for your own boards.")
    ] = None,
    json: Json = False,
) -> None:
    """Print all problems that prevent publishing results. Exit code: 0 if none, else 4."""
    from bench.runs import publishing

    against = published or publishing.published_beside(path)
    raise typer.Exit(publishing.check(path, predictions, json, against, allow_changes, known))


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
    shift: Annotated[str | None, typer.Argument(help="A shift whose data is on this machine; without: none.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The table to extend.")] = Path(
        "leaderboards/reference/known.json"
    ),
    data_root: DataRoot = None,
) -> None:
    """For maintainers: store how shifts are defined, and the image ids, digests and weights of one of them."""
    if shift is not None:
        from bench.planning.check_names import check_shift

        check_shift(shift)
    from bench.runs import publishing

    publishing.write_known(shift, out, data_root)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bundle or a folder of them.")],
    repo: Annotated[str, typer.Option(help="The hub data set, as in name/results.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")] = Path("hub"),
    upload: Annotated[bool, typer.Option("--upload", help="Send the folder; without this, only write it.")] = False,
) -> None:
    """Check results and write them as a hub data set: bundles, a parquet table and a card; --upload sends it."""
    from bench.runs import hub

    hub.push(path, repo, out, upload)


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="A hub data set that `bench publish push` filled, as in name/results.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for its bundles.")] = Path("pulled"),
) -> None:
    """Fetch the bundles of a hub data set and check them. Exit code: 0 without problems, else 4."""
    from bench.runs import hub

    raise typer.Exit(hub.pull(repo, out))


@app.command()
def card(file: Annotated[Path, typer.Argument(metavar="FILE.jsonl")], out: Out = None) -> None:
    """Write a model card of the hub, with the results of a bundle as model-index."""
    from bench.runs import hub

    hub.write_model_card(file, out)
