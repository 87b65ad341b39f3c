"""The command line: convert arguments to typed objects and make one call. Torch is imported only when needed.

The files of bench.cli that declare commands do not postpone annotations: typer would evaluate each four times.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import completion
from bench.cli import data as data_cli
from bench.cli import gallery as gallery_cli
from bench.cli import list_show as catalogue_cli
from bench.cli import new as extend_cli
from bench.cli import publish as publish_cli
from bench.cli import results as results_cli
from bench.cli import soup as soup_cli
from bench.cli import training as training_cli
from bench.cli import tune as tune_cli
from bench.cli.flags import Json, with_settings
from bench.core.console import accept_any_text
from bench.core.errors import BenchError, UsageError
from bench.settings.run_fields import REPEATED

app = typer.Typer(
    cls=catalogue_cli.QuickGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Benchmark test-time adaptation under distribution shift. Start with: bench run --demo",
)


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


@app.command()
@with_settings(first=2, lists=True)
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
@with_settings(1, REPEATED, {"out": "Folder of the records.  [default: runs/reproduce-<card>]"})
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
app.command()(results_cli.results)
app.command()(results_cli.leaderboard)
app.command()(results_cli.compare)
app.command()(results_cli.published)
app.command()(results_cli.verify)


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
app.command()(tune_cli.tune)
app.add_typer(data_cli.app, name="data")
app.add_typer(publish_cli.app, name="publish")
app.add_typer(extend_cli.new, name="new")
app.add_typer(extend_cli.check, name="check")
app.add_typer(soup_cli.app, name="soup")
