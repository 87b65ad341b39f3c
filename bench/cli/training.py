"""The commands `bench stock` and `bench train`, which have a flag for each of their settings."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.flags import flag, flag_with_default
from bench.core.errors import UsageError
from bench.settings.training_specs import StockSpec, TrainSpec


def _training(settings: type, out: str) -> Callable[[Callable[[Any, Path | None], None]], Callable[..., None]]:
    """Make a command of a function of settings and the file to write; `out` is the default of that file in words."""

    def command_of(function: Callable[[Any, Path | None], None]) -> Callable[..., None]:
        def command(name: str | None, out: Path | None, **given: Any) -> None:
            if (name is None) == (given["data"] is None):
                asked = f"bench {function.__name__} --data cifar10"
                raise UsageError(f"no data given; use --data NAME, as in {asked}")
            from bench.core.offline import go_offline
            from bench.planning.check_names import check_training

            spec = settings(**given | {"data": name or given["data"]})
            check_training(spec.data, spec.device, spec.precision, spec.arch, getattr(spec, "objective", None))
            if spec.offline:
                go_offline()
            function(spec, out)

        hints = inspect.get_annotations(settings)
        _, *others = fields(settings)
        flags = [flag_with_default(field.name, hints[field.name], field.default) for field in others]
        name = Annotated[str | None, typer.Argument(metavar="[DATA]", help="The same as --data.")]
        file = Annotated[Path | None, typer.Option("-o", "--out", help=f"The file to write; default: {out}.")]
        words = inspect.Parameter.KEYWORD_ONLY
        first = inspect.Parameter("name", words, default=None, annotation=name)
        last = inspect.Parameter("out", words, default=None, annotation=file)
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature([first, flag("data", hints["data"]), *flags, last])  # type: ignore[attr-defined]
        return command

    return command_of


@_training(StockSpec, "where runs search for it")
def stock(spec: StockSpec, out: Path | None) -> None:
    """Pretrain a stock on clean train images, as a masked autoencoder or with another objective.

    After an interruption, the same command continues from the last checkpoint.
    """
    from bench.cli import stock_progress

    stock_progress.make(spec, out)


@_training(TrainSpec, "DATA-ARCH.safetensors")
def train(spec: TrainSpec, out: Path | None) -> None:
    """Train a classifier on clean train images, for --model; dev images tell how good it is.

    After an interruption, the same command continues from the last checkpoint.
    """
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: a classifier is a .safetensors file; give it that ending")
    from bench.cli import stock_progress

    stock_progress.train(spec, out)
