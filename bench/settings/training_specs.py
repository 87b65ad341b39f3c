"""The settings of `bench stock` and `bench train`, each declared once: a field, which is also a flag of the command.

Every start of the command line reads this file, so it imports neither pydantic nor torch; annotations are values.
"""

import shlex
from dataclasses import dataclass, fields
from typing import Annotated, Any

from bench.settings.run_fields import DataRoot, Device, Flag, Offline

Data = Annotated[
    str, Flag("Clean images: digits, fashion, cifar10, cifar100, imagenet, a shift, folder:PATH, hf:REPO.")
]
Rate = Annotated[float | None, Flag("Peak learning rate.", least=1e-8)]
Seed = Annotated[int, Flag("Seed of the weights, views and order.", least=0)]
Limit = Annotated[int | None, Flag("At most this many train images.", least=1)]
Precision = Annotated[str, Flag("auto (fp32), fp32, or bf16 where the hardware has it.")]
Threads = Annotated[int | None, Flag("CPU threads, which affect the last bits.", least=1)]


@dataclass(frozen=True)
class StockSpec:
    """The settings of `bench stock`; None selects a default that suits the data."""

    data: Data
    arch: Annotated[str | None, Flag("vit_SIZE_patchP_PIXELS (micro to huge), timm:NAME or timm:NAME:PIXELS.")] = None
    epochs: Annotated[int | None, Flag("Passes over the images; default: 5,000 steps.", least=1)] = None
    steps: Annotated[int | None, Flag("Training steps, instead of epochs.", least=1)] = None
    batch_size: Annotated[int, Flag("Images per step.", least=1)] = 128
    lr: Rate = None
    mask_ratio: Annotated[float, Flag("Fraction of the patches that is hidden.", least=0, most=1)] = 0.75
    norm_pix: Annotated[bool, Flag("Predict pixels normalised per patch.")] = False
    objective: Annotated[
        str | None, Flag("mae, mocov3, mmcr, lejepa or …_official; default: mae, or mmcr for CNNs.")
    ] = None
    seed: Seed = 0
    limit: Limit = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    data_root: DataRoot = None
    offline: Offline = False
    devices: Annotated[int, Flag("GPUs, or processes on a CPU, that share the training.", least=1)] = 1


@dataclass(frozen=True)
class TrainSpec:
    """The settings of `bench train`; None selects the default of methods.training.supervised.Supervised."""

    data: Data
    arch: Annotated[
        str,
        Flag("resnet20, resnet20-gn (GroupNorm), resnet8x2:64 (twice the channels, 64 px), timm:NAME:PIXELS."),
    ] = "resnet20"
    epochs: Annotated[int | None, Flag("Passes over the images.  [default: 50]", least=1)] = None
    batch_size: Annotated[int | None, Flag("Images per step.  [default: 128]", least=1)] = None
    lr: Annotated[float | None, Flag("Peak learning rate.  [default: 0.1]", least=1e-8)] = None
    weight_decay: Annotated[float | None, Flag("Of all parameters.  [default: 0.0005]", least=0)] = None
    label_smoothing: Annotated[float | None, Flag("In [0, 1).  [default: 0]", least=0)] = None
    seed: Seed = 0
    limit: Limit = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    data_root: DataRoot = None
    offline: Offline = False


def command_of(name: str, spec: StockSpec | TrainSpec) -> str:
    """Return the command `bench NAME DATA …` that repeats a training: what its settings have changed.

    Left out are the settings that change no number.
    """
    words = ["bench", name, spec.data]
    for field in fields(spec)[1:]:
        value: Any = getattr(spec, field.name)
        if field.name in ("data_root", "device", "offline") or (value == field.default and field.name != "seed"):
            continue
        words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
