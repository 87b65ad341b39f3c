"""The command line: convert arguments to typed objects and make one call. Torch is imported only when needed.

The files of bench.cli that declare commands do not postpone annotations: typer would evaluate each four times.
"""

import contextlib
import errno
import inspect
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import completion
from bench.cli import data as data_cli
from bench.cli import gallery as gallery_cli
from bench.cli import list_show as catalogue_cli
from bench.cli import new as extend_cli
from bench.cli import publish as publish_cli
from bench.cli import training as training_cli
from bench.cli.flags import flag
from bench.core.console import accept_any_text
from bench.core.errors import BenchError, UsageError
from bench.settings.run_fields import LISTS, REPEATED, RunFields

app = typer.Typer(
    cls=catalogue_cli.QuickGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Benchmark test-time adaptation under distribution shift. Start with: bench run --demo",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]


def start() -> None:
    """Run the command line. Exit codes: 0 done, 1 some failed, 2 usage, 3 missing data, 4 invalid, 130 interrupted."""
    accept_any_text()
    try:
        code = app(standalone_mode=False)
    except typer.Exit as leave:
        code = leave.exit_code
    except BenchError as error:
        typer.echo(f"bench: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("bench: interrupted; finished work is kept, run the same command again to continue", err=True)
        code = 130
    except OSError as error:
        code = _of_system(error)
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the option parser
        if show is None:
            raise
        _say_in_words(error)
        show()
        code = getattr(error, "exit_code", 2)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _of_system(error)
    sys.exit(code if isinstance(code, int) else 0)


def _of_system(error: OSError) -> int:
    """Say what the system refused and return the exit code; a reader that left, as `| head` does, is no error.

    Raises the error again if nothing is known that the user could do.
    """
    if isinstance(error, BrokenPipeError):
        code, said = 0, ""
    elif error.errno in _WHAT_TO_DO:
        place = f" {error.filename}" if error.filename else ""
        code, said = 1, f"bench: cannot write{place}: {error.strerror}; {_WHAT_TO_DO[error.errno]}\n"
    else:
        raise error
    with contextlib.suppress(OSError):
        sys.stderr.write(said)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at exit
    return code


_WHAT_TO_DO = {
    errno.ENOSPC: "free some space or write elsewhere, then run the same command again",
    errno.EDQUOT: "free some of your quota or write elsewhere, then run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a file or folder that you may use",
    errno.EPERM: "choose a file or folder that you may use",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "choose another folder, since a part of this path is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _say_in_words(error: Any) -> None:
    """Replace what pydantic says about the value of an option, which the option parser would repeat."""
    if hasattr(error.__cause__, "errors"):
        from bench.core.invalid_input import in_words

        error.message = in_words(error.__cause__.errors()[0])


def _print_version(wanted: bool) -> None:
    if wanted:
        from bench.core.version import version

        typer.echo(version())
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Benchmark test-time adaptation under distribution shift. Start with: bench run --demo"""


def _with_settings(
    first: int, names: Collection[str] = tuple(inspect.get_annotations(RunFields)), out: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace `**settings` by a flag for each of these settings of a run; None says that the flag is not given.

    In the help they follow the `first` parameters of the command; its others stand before --offline. `out` is the help
    of --out where it differs from that of a run.
    """

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        fields = inspect.get_annotations(RunFields).items()
        flags = [
            flag(name, hint, told=out if name == "out" else "", text=name in LISTS)
            for name, hint in fields
            if name in names
        ]
        own = list(inspect.signature(command).parameters.values())[:-1]
        end = [flag.name for flag in flags].index("offline")
        signature = inspect.Signature([*own[:first], *flags[:end], *own[first:], *flags[end:]])
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return with_flags


@app.command()
@_with_settings(first=2)
def run(
    *,
    file: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="A run file; its keys are the names of these options.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run the built-in demonstration; needs no download.")] = False,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="The runs of a suite; see `bench list suites`.",
            autocompletion=completion.suites,
        ),
    ] = None,
    record: Annotated[
        str | None, typer.Option(metavar="KEY", help="Repeat one published record; needs --from.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Folder of the record.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and exit.")] = False,
    json: Json = False,
    **settings: Any,
) -> None:
    """Run methods on a shift and print the board. Finished work is reused."""
    from bench.cli import run as commands

    options = settings.pop("options") or []
    settings["slurm"] = _pairs(settings["slurm"], "--slurm")
    if record is not None or source is not None:
        if record is None or source is None:
            raise UsageError("--record KEY and --from DIR go together; give both")
        others: dict[str, object] = {
            "a run file": file,
            "--demo": demo,
            "--suite": suite,
            "--dry-run": dry_run,
            "--set": options,
        }
        if wrong := next((name for name, value in others.items() if value), None):
            raise UsageError(f"--record repeats a run as it was; leave {wrong} out")
        raise typer.Exit(commands.repeat_record(record, source, settings, as_json=json))
    raise typer.Exit(commands.run_spec(file, demo, suite, settings, options, dry_run=dry_run, as_json=json))


def _pairs(texts: list[str] | None, option: str) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in texts or ()]
    for key, equals, _ in pairs:
        if not equals:
            raise UsageError(f"{option} takes KEY=VALUE, not '{key}'")
    return {key: value for key, _, value in pairs} or None


@app.command()
@_with_settings(first=1, names=REPEATED, out="Folder of the records.  [default: runs/reproduce-<card>]")
def reproduce(
    *,
    card: Annotated[
        str | None,
        typer.Argument(
            metavar="CARD",
            help="A name, or the file of a card; without it, all are listed.",
            autocompletion=completion.cards,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and exit.")] = False,
    json: Json = False,
    **settings: Any,
) -> None:
    """Repeat published numbers: run a card's settings and say ours, theirs, tolerance and verdict."""
    from bench.cli import reproduce as cards

    settings["slurm"] = _pairs(settings["slurm"], "--slurm")
    raise typer.Exit(cards.reproduce(card, settings, dry_run=dry_run, as_json=json))


catalogue_cli.add_to(app)


@app.command()
def results(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing is missing.")] = False,
    json: Json = False,
) -> None:
    """Show the records of a run's folder: done, running, failed and missing."""
    from bench.runs import open_results as reading

    reading.print_results(folder, as_json=json, watch=watch)


@app.command()
def leaderboard(
    shift: Annotated[str | None, typer.Argument(help="Only this shift.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="DIR[,DIR]", help="Folders of records.")] = "",
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
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Keep records with this value.")
    ] = None,
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
    from bench.runs import open_results as reading
    from bench.runs import publishing

    asked = reading.Shown(shift, source, format_, where or [], out)
    about_matrix = {"by": by, "across-tracks": across_tracks, "blocks": blocks, "posthoc": posthoc}
    wrong = next((name for name, value in about_matrix.items() if value), None)
    if wrong and not matrix:
        raise UsageError(f"--{wrong} is about methods against boards; add --matrix, or leave it out")
    if matrix and not source:
        raise UsageError("--matrix needs records; add --from DIR, or leave --matrix out for the site, which has it")
    if not source and out is not None:
        given: dict[str, object] = {
            "a shift": shift,
            "--format": format_ != "terminal",
            "--per-corruption": per_corruption,
        }
        given |= {"--matrix": matrix, "--columns": columns, "--sort": sort, "--where": where, "--figures": figures}
        if wrong := next((name for name, value in given.items() if value), None):
            raise UsageError(f"without --from, --out writes the whole site; add --from DIR, or leave {wrong} out")
        publishing.build_site(publishing.RESULTS, out, project)
    elif matrix:
        given = {"per-corruption": per_corruption, "columns": columns, "sort": sort}
        if wrong := next((name for name, value in given.items() if value), None):
            raise UsageError(f"--{wrong} is about one board; leave it or --matrix out")
        reading.print_matrix(
            asked,
            figures,
            by=by,
            across=across_tracks,
            blocks=blocks or "columns",
            posthoc=posthoc or "nemenyi",
        )
    else:
        reading.print_leaderboard(asked, per_corruption, figures, columns, sort)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A row: tent, or 'selfsoup (mean)'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The row to compare with.")],
    shift: Annotated[str | None, typer.Option(help="Only this shift.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="DIR[,DIR]", help="Folders of records.")] = "",
    format_: Annotated[str, typer.Option("--format", help="terminal, md, csv, json or latex.")] = "terminal",
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Keep records with this value.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")] = None,
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


@app.command()
def verify(folder: Folder, json: Json = False) -> None:
    """Recompute every metric of a folder from its stored predictions."""
    from bench.runs import open_results as reading

    raise typer.Exit(reading.print_verification(folder, as_json=json))


@app.command()
def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Compare the GPU with the CPU, and measure speed: two minutes.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="With --gpu: the device to compare with the CPU.  [default: cuda]")
    ] = None,
    only: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="With --gpu: the comparisons that contain one of these, as in fog,tent."),
    ] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="With --gpu: also write the report there.")] = None,
    json: Json = False,
) -> None:
    """Describe this installation for a bug report: versions, device, folders; or compare a GPU with the CPU."""
    if not gpu and (device is not None or only or out is not None):
        raise UsageError("--device, --only and --out belong to --gpu; add it, or leave them out")
    from bench.planning.check_names import check_device

    check_device(device or "cuda")
    from bench.cli import doctor as checkup

    if gpu:
        raise typer.Exit(checkup.print_device_check(device or "cuda", only, out, as_json=json))
    checkup.print_report(as_json=json)


app.command()(training_cli.stock)
app.command()(training_cli.train)
app.command()(gallery_cli.gallery)
app.add_typer(data_cli.app, name="data")
app.add_typer(publish_cli.app, name="publish")
app.add_typer(extend_cli.new, name="new")
app.add_typer(extend_cli.check, name="check")


@app.command()
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


soup = typer.Typer(
    cls=catalogue_cli.QuickGroup, no_args_is_help=True, rich_markup_mode=None, help="Mix and inspect files of weights."
)
app.add_typer(soup, name="soup")

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


@soup.command("mix")
def soup_mix(
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


@soup.command("season")
def soup_season(
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
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
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


@soup.command("inspect")
def soup_inspect(files: Files, stock: StockFile = None, json: Json = False) -> None:
    """Show the tensors of files and their distances from the stock and from each other."""
    from bench.planning.check_names import check_soup

    check_soup(files)
    from bench.soups import mix_files as soups

    soups.inspect(files, stock, as_json=json)


@soup.command("lmc")
def soup_lmc(
    first: Annotated[Path, typer.Argument(help="A classifier.")],
    second: Annotated[Path, typer.Argument(help="Another classifier.")],
    shift: SoupShift,
    steps: Annotated[int, typer.Option(min=3, help="Points along the line.")] = 11,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    model: SoupModel = None,
    json: Json = False,
) -> None:
    """Measure accuracy on the line between two classifiers (linear mode connectivity)."""
    from bench.planning.check_names import check_shift, check_soup

    check_shift(shift)
    check_soup([first, second])
    from bench.soups import learn_coefficients as soup_data

    soup_data.connect((first, second), shift, data_root, steps, limit, model, as_json=json)
