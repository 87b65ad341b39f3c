"""The command `bench tune`."""

from typing import Annotated, Any

import typer

from bench.cli.flags import Json, with_settings

_SETTINGS = (
    "shift",
    "stock",
    "severity",
    "corruption",
    "split",
    "seeds",
    "labels",
    "data_root",
    "options",
    "out",
    "jobs",
)
_HELPS = {
    "shift": "The shift whose dev images are used.  [required]",
    "corruption": "Some of the tuning corruptions, or FILE.py:NAME; comma-separated.",
    "split": "Only dev is accepted.  [default: dev]",
    "seeds": "Seeds per trial.  [default: 2]",
    "options": "Fix an option.",
    "out": "Folder of the records.  [default: runs/tune-<shift>-<method>]",
}


@with_settings(1, _SETTINGS, _HELPS)
def tune(
    *,
    method: Annotated[str, typer.Argument(help="The method to choose options for.")],
    trials: Annotated[int, typer.Option(min=1, help="Option sets to try; use the same number for every method.")] = 8,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="key=[values]", help="Try all these values instead of the method's own table."),
    ] = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Choose a method's options on dev images and tuning corruptions only."""
    from bench.planning.check_names import check_tuning
    from bench.settings.methods import options_by_method
    from bench.settings.run_spec import make_spec
    from bench.settings.tuning import Tuning, read_grid

    options = options_by_method(settings.pop("options") or [])
    run = make_spec({"method": method, "split": "dev", "seeds": 2}, settings, {"set": options})
    asked = Tuning(run, trials, read_grid(grid or []))
    check_tuning(asked)
    from bench.runs import tuning

    tuning.tune(asked, as_json=json)
