"""Implement `bench stock`: pre-train a stock by a seeded and documented recipe."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.conditions import CLEAN, digest_of
from bench.core.devices import pick_device, pick_jobs, pick_precision
from bench.core.environment import libraries
from bench.core.errors import BenchError, UsageError, nearest
from bench.execution.checkpointing import SECONDS, FileCheckpointer, ReportProgress
from bench.execution.distributed import Call, spread
from bench.execution.task_pool import set_threads
from bench.models.timm_encoders import timm_architecture
from bench.models.weights_io import preprocessing_of, save_weights
from bench.settings.methods import plain_values
from bench.settings.training_specs import StockSpec as StockSpec
from bench.settings.training_specs import command_of
from bench.shifts import SHIFTS, find_row, load_by, load_shift
from bench.shifts.catalog import ShiftRow
from bench.shifts.data_root import Reading
from bench.shifts.folder_or_hub import train_source
from bench.shifts.lazy_images import pooled
from bench.shifts.shift import Shift, limit_ids, to_train_on
from bench.training.job_cache import job_key
from methods.base import Images, Job, Unlabelled
from methods.nets.small_resnets import SmallResNet
from methods.nets.weights import AnyArchitecture, Architecture, Normalise, Weights
from methods.norms import batch_norm_layers
from methods.selfsoup.objectives import OBJECTIVES, mae
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.views.ssl_views import Views

DIGITS = Pretraining(
    architecture=Architecture(
        dim=64, depth=4, heads=4, decoder_dim=32, decoder_heads=4, mean=(0.3,) * 3, std=(0.36,) * 3
    ),
    steps=8000,
    batch_size=128,
    lr=2e-3,
    views=Views(scale=(0.5, 1.0), flip=False, three_augment=False, jitter=0.0),
)

CHECK_STEPS = 20
STEPS = 5000
"""Default number of steps, used if neither epochs nor steps are given."""

SOURCES = {
    "digits": "digits-c",
    "fashion": "fashion-c",
    "cifar10": "cifar10-c-gen",
    "cifar100": "cifar100-c-gen",
    "imagenet": "imagenet-c-gen",
}
"""Short names of clean data, each with the shift that supplies the train images."""

_SHAPE = ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")
SIZES = {
    "micro": (64, 4, 4, 32, 1, 4),
    "mini": (96, 4, 4, 64, 2, 4),
    "tiny": (192, 12, 3, 128, 4, 4),
    "small": (384, 12, 6, 256, 8, 8),
    "base": (768, 12, 12, 512, 8, 16),
    "large": (1024, 24, 16, 512, 8, 16),
    "huge": (1280, 32, 16, 512, 8, 16),
}
"""Width, blocks and heads of encoder and decoder. Names from tiny on follow DeiT and MAE; micro and mini are ours."""

_TWO_VIEW_LR = 1e-3
_STATISTICS = 2000  # images used to measure mean and deviation


@dataclass(frozen=True)
class StockPlan:
    """A planned training; `key` names its checkpoint and changes with everything that changes the result's bits."""

    recipe: Pretraining
    objective: str
    data: Unlabelled
    source: str
    device: str
    threads: int
    key: str


def architecture(name: str) -> AnyArchitecture:
    """Return the architecture of a name such as "vit_mini_patch4_32" (size, patch side, image side) or "timm:NAME".

    "timm:NAME:32" takes images of 32 pixels instead of the size of timm's weights. "resnet20" is a residual network for
    images of 32 pixels, "resnet20x2-gn:64" one of twice the channels, with GroupNorm, for 64 pixels (see
    methods.nets.small_resnets). Raises UsageError.
    """
    if (found := re.fullmatch(r"resnet(\d{1,4})(?:x(\d{1,2}))?(-gn)?(?::(\d{1,4}))?", name)) is not None:
        depth, factor, group_norm, side = found.groups()
        try:
            return SmallResNet(int(depth), int(factor or 1), "gn" if group_norm else "bn", int(side or 32))
        except ValueError as error:
            timm = "a network of timm is written timm:NAME:PIXELS, as in timm:resnet18:32"
            raise UsageError(f"--arch {name}: {error}; {timm}") from None
    if name.startswith("timm:"):
        network, _, side = name.removeprefix("timm:").partition(":")
        try:
            shape = timm_architecture(network, int(side) if side else None)
            _ = shape.dim  # raises where images of this size are too small
        except ValueError as error:
            raise UsageError(f"--arch {name}: {error}; write timm:NAME or timm:NAME:PIXELS") from None
        return shape
    match = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", name)
    if match is None or match[1] not in SIZES:
        raise UsageError(
            f"--arch {name}: write vit_SIZE_patchP_PIXELS, as in vit_mini_patch4_32, resnet20 or resnet20-gn, or "
            f"timm:NAME:PIXELS, as in timm:resnet18:32; SIZE is one of {', '.join(SIZES)}"
        )
    numbers: dict[str, Any] = dict(zip(_SHAPE, SIZES[match[1]], strict=True))
    try:
        return Architecture(image_size=int(match[3]), patch_size=int(match[2]), **numbers)
    except ValueError as error:
        raise UsageError(f"--arch {name}: {error}; choose other numbers") from None


def plan_stock(spec: StockSpec) -> StockPlan:
    """Load the images and choose the recipe. Only clean train images are used, without labels.

    Raises UsageError for settings that cannot be trained, MissingDataError for missing images.
    """
    if spec.epochs is not None and spec.steps is not None:
        raise UsageError("--epochs and --steps exclude each other; give one")
    device = pick_device(spec.device)
    pick_jobs(1, device, spec.devices)
    plain = spec.data in ("digits", "digits-c") and spec.arch is None
    shape = DIGITS.architecture if plain else architecture(spec.arch or _usual_arch(spec.data))
    reading = Reading(spec.data_root, preprocessing_of(Weights(shape, {})), spec.offline)
    shift = clean_source(spec.data, reading)
    ids = limit_ids(shift.ids("train"), spec.limit)
    images = pooled(shift, ids, [CLEAN])
    photographs, digest = to_train_on(shift, ids)
    data = Unlabelled(images, digest, photographs=photographs)
    check_size(spec.data, images, shape)
    if not plain:
        shape = normalised(shape, images)
    name = spec.objective or ("mae" if shape.tokens else "mmcr")
    recipe = DIGITS if plain else Pretraining(shape, lr=_usual_lr(shape, spec.batch_size))
    if nearest(name, OBJECTIVES, "objective") != "mae":
        if spec.mask_ratio != StockSpec.mask_ratio or spec.norm_pix:
            raise UsageError(f"--mask-ratio and --norm-pix belong to --objective mae, not to {name}; leave them out")
        # The two views must differ, so 3-Augment is used, as for ingredients. Flips would change digits.
        views = Views(flip=spec.data not in ("digits", "digits-c"))
        recipe = replace(recipe, objective=OBJECTIVES[name].Config(), views=views, lr=_TWO_VIEW_LR)
    recipe = replace(
        recipe,
        steps=_steps(spec, len(data), recipe),
        batch_size=spec.batch_size,
        lr=recipe.lr if spec.lr is None else spec.lr,
        mask_ratio=spec.mask_ratio,
        norm_pix=spec.norm_pix,
        bf16=pick_precision(spec.precision, device) == "bf16",
    )
    _check_objective(recipe)
    if spec.devices > 1 and batch_norm_layers(shape.build()):
        raise UsageError(
            f"{shape.description}: BatchNorm measures whole batches, so it is not shared; leave --devices out"
        )
    threads = spec.threads or (1 if plain else torch.get_num_threads())
    job = Job(pretrain, recipe, (), data, "stock")
    key = digest_of([job_key(job, spec.seed), torch.device(device).type, threads])
    source = f"{len(ids)} clean train images of {spec.data}, without labels"
    return StockPlan(recipe, name, data, source, device, spec.threads or max(1, threads // spec.devices), key)


def check_size(data: str, images: Images, shape: AnyArchitecture) -> None:
    """Raise UsageError if an architecture does not take the size of the images."""
    if tuple(images.shape[2:]) != (shape.image_size, shape.image_size):
        raise UsageError(
            f"{data} has images of {images.shape[3]} px, but the architecture takes {shape.image_size} px; "
            f"choose one that ends in {'_' if isinstance(shape, Architecture) else ':'}{images.shape[3]}"
        )


def _usual_arch(data: str) -> str:
    row = row_of(data)
    return "vit_mini_patch4_32" if row.family in ("cifar", "digits") else "vit_tiny_patch16_224"


def row_of(data: str) -> ShiftRow:
    """Return the row of the shift that supplies clean images by a name of SOURCES or its own. Raises UsageError."""
    nearest(data.partition(":")[0], [*SOURCES, *SHIFTS], "data")
    return find_row(SOURCES.get(data, data))


def _usual_lr(shape: AnyArchitecture, batch_size: int) -> float:
    """Return 2e-3 for small models (tuned on digits and CIFAR-10), and the MAE release's rate for others."""
    return 2e-3 if shape.dim < SIZES["tiny"][0] else 1.5e-4 * batch_size / 256


def clean_source(data: str, reading: Reading) -> Shift:
    """Load the shift whose train images are the clean images of a name. Raises UsageError or MissingDataError."""
    row = row_of(data)
    own = row.name.startswith(("folder:", "hf:"))
    return load_by(train_source, row, reading) if own else load_shift(row.name, reading=reading)


def normalised(shape: AnyArchitecture, images: Any) -> AnyArchitecture:
    """Return the architecture with the channel means and deviations of the images, measured on 2,000 at most."""
    rows = torch.from_numpy(limit_ids(np.arange(len(images)), _STATISTICS))
    total = torch.zeros(2, 3, dtype=torch.float64)
    count = 0
    for part in torch.split(rows, 100):
        pixels: Tensor = images[part].double() / 255
        total += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += pixels.numel() // 3
    mean = total[0] / count
    deviation = (total[1] / count - mean.square()).clamp_min(0).sqrt()
    if float(deviation.min()) < 1e-3:
        raise UsageError("the images have a channel that does not vary; there is nothing to learn from them")
    mean_of, std_of = ([round(float(value), 3) for value in numbers] for numbers in (mean, deviation))
    return replace(shape, mean=(mean_of[0], mean_of[1], mean_of[2]), std=(std_of[0], std_of[1], std_of[2]))


def _steps(spec: StockSpec, count: int, recipe: Pretraining) -> int:
    if spec.epochs is not None:
        return spec.epochs * max(1, count // spec.batch_size)
    return spec.steps or (recipe.steps if recipe.architecture == DIGITS.architecture else STEPS)


def _check_objective(recipe: Pretraining) -> None:
    try:
        (recipe.objective or mae.Config(recipe.mask_ratio)).flops(recipe.architecture)
    except ValueError as error:
        raise UsageError(str(error).replace("mask_ratio", "--mask-ratio")) from None


class ShownCheckpointer(FileCheckpointer):
    """A checkpointer that reports the completed steps and a recent loss (None at first) after every step."""

    def __init__(self, path: Path, show: ReportProgress, seconds: float = SECONDS) -> None:
        super().__init__(path, seconds, report=self._report_step)
        self._show = show
        self._done = 0
        self._loss: float | None = None
        self.curve: list[float] = []

    def _report_step(self, done: int, loss: float | None) -> None:
        self._done, self._loss = done, loss
        self._show(done, loss)

    def due(self) -> bool:
        self._done += 1
        self._show(self._done, self._loss)
        return super().due()

    def finished(self, losses: Tensor) -> None:
        super().finished(losses)
        self.curve = losses.tolist()
        self._show(len(losses), float(losses[-1]))


def train_stock(
    plan: StockPlan, spec: StockSpec, keep: FileCheckpointer | None = None
) -> tuple[Weights, dict[str, object]]:
    """Train a stock, and return its weights and facts about their origin. Raises BenchError if training diverges."""
    set_threads(plan.threads)

    def train(stop: int | None, keep: FileCheckpointer | None) -> Weights:
        call = Call(pretrain, (), plan.data, replace(plan.recipe, stop=stop), spec.seed, plan.device)
        try:
            return spread(call, keep, spec.devices) if spec.devices > 1 else call.here(keep)
        except FloatingPointError as error:
            raise BenchError(f"{error} (--lr is {plan.recipe.lr:g})") from None

    start = time.perf_counter()
    weights = train(None, keep)
    seconds = time.perf_counter() - start + (keep.seconds_before if keep is not None else 0.0)
    tested = check(train(CHECK_STEPS, None), plan.data, plan.recipe)
    facts = origin("stock", spec, plan, weights, seconds) | {"objective": plan.objective, "check": tested}
    return weights, facts


def origin(verb: str, spec: Any, plan: Any, weights: Weights, seconds: float) -> dict[str, object]:
    """Return what every trained file says of its origin: command, recipe, data, digests, time and versions."""
    return {
        "command": command_of(verb, spec),
        "recipe": plain_values(plan.recipe),
        "images": plan.source,
        "data": plan.data.digest,
        "digest": weights.digest,
        "threads": plan.threads,
        "seconds": round(seconds, 1),
        "environment": libraries(),
    }


def check(weights: Weights, data: Unlabelled, recipe: Pretraining = DIGITS) -> dict[str, object]:
    """Return the digest and loss by which short trainings are compared, on the first 64 images with a fixed mask.

    Objectives other than masked autoencoding use fixed views of the images and an untrained head.
    """
    generator = torch.Generator().manual_seed(0)
    objective = (recipe.objective or mae.Config()).build(weights, torch.Generator().manual_seed(0))
    encoder = weights.architecture.build()
    encoder.load_state_dict(weights.part("encoder"))
    objective.prepare(encoder, CHECK_STEPS)
    normalise = Normalise(weights.architecture.mean, weights.architecture.std)
    pixels = data.images[:64]
    with torch.no_grad():
        if recipe.objective is None:
            views = [normalise(pixels.float() / 255)]
        else:
            views = [normalise(make(pixels, generator)) for make in objective.pipelines(recipe.views)]
        loss = objective.loss(encoder, views, generator)
    return {"digest": weights.digest, "loss": float(loss)}


def where_to(spec: StockSpec, out: Path | None) -> Path:
    """Return the file to write, by default the path where runs on that data look for their stock.

    Creates its folder. Raises UsageError if there is no default, for another ending and if the folder is not writable.
    """
    row = row_of(spec.data)
    if out is None:
        if row.name not in SOURCES.values() or not row.default_stock.endswith(".safetensors"):
            raise UsageError("say where to write the stock: -o FILE.safetensors")
        out = Reading(spec.data_root).root / "stocks" / row.default_stock
    return prepared(out, "a stock")


def prepared(out: Path, what: str) -> Path:
    """Return a file of weights to write, and make its folder. Raises UsageError for another ending or no permission."""
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: {what} is a .safetensors file; give it that ending")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write in {out.parent}: {error.strerror}; choose another folder with -o") from None
    return out


def make_stock(
    spec: StockSpec,
    out: Path,
    report: ReportProgress,
    plan: StockPlan | None = None,
    seconds: float = SECONDS,
) -> Weights:
    """Pre-train a stock, or resume an interrupted training, and write the stock and its loss curve (.png) beside it.

    `report` receives the completed steps; `seconds` is the time between two checkpoints.
    """
    plan = plan or plan_stock(spec)
    checkpointer = ShownCheckpointer(cache_dir() / "training" / f"stock-{plan.key}.pt", report, seconds)
    weights, facts = train_stock(plan, spec, checkpointer)
    save_weights(out, weights, {**facts, "losses": checkpointer.losses})
    write_bytes(out.with_suffix(".png"), curves(checkpointer.curve, f"{out.stem} by {plan.objective}"))
    checkpointer.forget()
    return weights


def curves(losses: Sequence[float], title: str, errors: Mapping[str, Sequence[float]] | None = None) -> bytes:
    """Return a PNG of the loss of each step and its running mean over 1/50 of the steps, on a log scale if positive.

    errors: curves of the error in each epoch, as fractions, to draw beside it, by name.
    """
    from matplotlib.figure import Figure

    steps = np.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(8 if errors else 6, 3.5), layout="constrained")
    axes, *beside = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
    axes.plot(steps, losses, color="0.75", linewidth=0.6, label="each step")
    axes.plot(steps[window - 1 :], mean, linewidth=1.6, label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="loss", yscale="log" if min(losses) > 0 else "linear")
    for right in beside:
        for name, values in (errors or {}).items():
            right.plot(np.arange(1, len(values) + 1), 100 * np.array(values), marker=".", label=name)
        right.set(xlabel="epoch", ylabel="error in %")
    for each in (axes, *beside):
        each.legend(frameon=False)
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
