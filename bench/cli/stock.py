"""The command `bench stock`, which pretrains a stock and shows a progress bar."""

from pathlib import Path
from typing import Annotated

import typer

from bench.core.errors import UsageError


def stock(
    name: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The same as --data.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Clean images: digits, fashion, cifar10, cifar100, imagenet, a shift, folder:PATH, hf:REPO."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="vit_SIZE_patchP_PIXELS (micro to huge), timm:NAME or timm:NAME:PIXELS.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images; default: 5,000 steps.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    lr: Annotated[float | None, typer.Option(min=1e-8, help="Peak learning rate.")] = None,
    mask_ratio: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the patches that is hidden.")] = 0.75,
    norm_pix: Annotated[bool, typer.Option("--norm-pix", help="Predict pixels normalised per patch.")] = False,
    objective: Annotated[
        str | None, typer.Option(help="mae, mocov3, mmcr, lejepa or …_official; default: mae, or mmcr for CNNs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write; default: where runs search for it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, views and order.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, which affect the last bits.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on a CPU, that share the training.")] = 1,
) -> None:
    """Pretrain a stock on clean train images, as a masked autoencoder or with another objective.

    After an interruption, the same command continues from the last checkpoint.
    """
    if (name is None) == (data is None):
        raise UsageError("no data given; use --data NAME, as in bench stock --data cifar10")
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision} is unknown; choose auto, fp32 or bf16")
    from bench.planning.check_names import check_stock_data

    check_stock_data(name or data or "", objective, device, arch)
    from bench.cli import stock_progress
    from bench.core.offline import go_offline
    from bench.training import pretrain_stock as stocks

    if offline:
        go_offline()
    spec = stocks.StockSpec(
        name or data or "",
        arch,
        epochs,
        steps,
        batch_size,
        lr,
        mask_ratio,
        norm_pix,
        objective,
        seed,
        limit,
        device,
        precision,
        threads,
        data_root,
        offline,
        devices,
    )
    stock_progress.make(spec, out)
