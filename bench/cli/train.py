"""The command `bench train`, which trains a classifier and shows a progress bar."""

from pathlib import Path
from typing import Annotated

import typer

from bench.core.errors import UsageError


def train(
    name: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The same as --data.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Clean images: digits, fashion, cifar10, cifar100, imagenet, a shift, folder:PATH, hf:REPO."),
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            help="resnet20, resnet20-gn (GroupNorm), resnet8x2:64 (twice the channels, 64 px), timm:NAME:PIXELS."
        ),
    ] = "resnet20",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.  [default: 50]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.  [default: 128]")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-8, help="Peak learning rate.  [default: 0.1]")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Of all parameters.  [default: 0.0005]")] = None,
    label_smoothing: Annotated[float | None, typer.Option(min=0, help="In [0, 1).  [default: 0]")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write.  [default: DATA-ARCH.safetensors]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, crops and order.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many train images.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (fp32), fp32, or bf16 where the hardware has it.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, which affect the last bits.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Train a classifier on clean train images, for --model; dev images tell how good it is.

    After an interruption, the same command continues from the last checkpoint.
    """
    if (name is None) == (data is None):
        raise UsageError("no data given; use --data NAME, as in bench train --data cifar10")
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision} is unknown; choose auto, fp32 or bf16")
    from bench.planning.check_names import check_stock_data

    check_stock_data(name or data or "", None, device, arch)
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: a classifier is a .safetensors file; give it that ending")
    from bench.cli import stock_progress
    from bench.core.offline import go_offline
    from bench.training.train_classifier import TrainSpec

    if offline:
        go_offline()
    spec = TrainSpec(
        name or data or "",
        arch,
        epochs,
        batch_size,
        lr,
        weight_decay,
        label_smoothing,
        seed,
        limit,
        device,
        precision,
        threads,
        data_root,
        offline,
    )
    stock_progress.train(spec, out)
