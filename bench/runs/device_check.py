"""Compare a device with the CPU: every corruption, adapter and objective, a linear probe and one small soup.

Both sides run the same code on the same small inputs. Corruptions draw the same numbers on every device. A method that
draws on the device runs twice: once as it is, which shows errors and waits, and once with the numbers that a CPU draws
(`SameDraws`), whose results are compared.
"""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import corruptions
from bench.core.devices import has_bf16, synchronise
from bench.core.environment import device_name, environment
from bench.core.import_object import load_object
from bench.models.weights_io import load_stock
from bench.shifts import load_shift
from bench.shifts.shift import labelled_source
from corruptions.weather import frost_folder
from methods import METHODS, PLAIN
from methods.base import Adapter, Labelled
from methods.conformance import Case, source_for
from methods.example_models import example_images, example_model, fitting_example
from methods.nets.weights import Architecture, Classifier, Normalise, Weights, build_encoder, reset
from methods.selfsoup.ingredients import Ingredient, inter_train
from methods.selfsoup.objectives import OBJECTIVES
from methods.selfsoup.objectives.mae import MaskedAutoencoding
from methods.soups.soup import uniform_soup
from methods.training.finetune import FineTune, Probe, fine_tune, probe
from methods.training.linear_probe import streamed_probe
from methods.training.loop import compile_blocks
from methods.views.ssl_views import Views

CPU = torch.device("cpu")
_EXACT = ("impulse_noise", "shot_noise", "jpeg_compression", "pixelate", "glitched", "stickers", "vertical_lines")
_SIDE = 48
_BATCHES = 3
_SOUP_STEPS = 10


@dataclass(frozen=True)
class DeviceComparison:
    """One comparison of the device with the CPU. `measure` says what `difference` is and `tolerance` bounds.

    verdict: "agrees", "differs", "failed" (an error, told in `note`) or "left out" (why, in `note`). `waits`: how often
    the host waited for the device in one batch, None where that cannot be counted.
    """

    name: str
    measure: str
    difference: float | None
    tolerance: float | None
    verdict: str
    note: str = ""
    waits: int | None = None


@dataclass(frozen=True)
class Rate:
    """How many images a second some work takes in, and the ratio to the first row of the same work."""

    name: str
    images_per_second: float
    ratio: float


@dataclass(frozen=True)
class DeviceReport:
    """All comparisons and rates of a device, without paths and names of people."""

    device: str
    versions: dict[str, Any]
    comparisons: tuple[DeviceComparison, ...]
    rates: tuple[Rate, ...]
    advice: str
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether no comparison is outside its tolerance and none ended in an error."""
        return not any(each.verdict in ("differs", "failed") for each in self.comparisons)


Found = tuple[str, float, float, int | None]
"""Measure, difference, tolerance and waits of a comparison."""


def check_device(
    device: str, only: Sequence[str] = (), report: Callable[[DeviceComparison], None] = lambda _: None
) -> DeviceReport:
    """Run the comparisons whose names contain one of `only` (all if it is empty) and measure rates.

    `report` gets each comparison as it ends. An error ends one comparison and not the others.
    """
    start = time.perf_counter()
    place = torch.device(device)
    done = []
    for name, compare in _comparisons():
        if only and not any(text in name for text in only):
            continue
        done.append(_run(name, compare, place))
        report(done[-1])
    rates = tuple(_rates(place)) if not only or any(text in "throughput" for text in only) else ()
    versions = {name: value for name, value in environment().items() if name not in ("git", "dirty")}
    versions |= {"cuda": torch.version.cuda if place.type == "cuda" else None, "bf16": has_bf16(device)}
    advice = _advice(rates)
    return DeviceReport(
        device_name(device), versions, tuple(done), rates, advice, round(time.perf_counter() - start, 1)
    )


def _run(name: str, compare: Callable[[torch.device], Found | str], device: torch.device) -> DeviceComparison:
    try:
        found = compare(device)
    except Exception as error:  # noqa: BLE001 - the report names every fault
        return DeviceComparison(name, "", None, None, "failed", _without_paths(f"{type(error).__name__}: {error}"))
    if isinstance(found, str):
        return DeviceComparison(name, "", None, None, "left out", found)
    measure, difference, tolerance, waits = found
    # Written so that a difference that is no number is outside.
    verdict = "agrees" if difference <= tolerance else "differs"
    finite = difference if difference < float("inf") else None
    return DeviceComparison(
        name, measure, finite, tolerance, verdict, "" if finite is not None else "not finite", waits
    )


def _without_paths(text: str) -> str:
    """Return the first line of a message without anything that looks like a path."""
    return re.sub(r"\S*[/\\]\S*", "…", text.strip().splitlines()[0])[:200]


def _comparisons() -> Iterator[tuple[str, Callable[[torch.device], Found | str]]]:
    for name in corruptions.names():
        yield f"corruption {name}", partial(_corruption, name)
    for row in (PLAIN, *(row for row in METHODS.values() if row.kind == "adapter")):
        yield f"adapter {row.name}", partial(_adapter, load_object(row.path))
    for name in OBJECTIVES:
        yield f"objective {name}", partial(_objective, name)
    yield "linear probe", partial(_probe, streamed=False)
    yield "linear probe, streamed", partial(_probe, streamed=True)
    yield "soup", _soup


def _pictures(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=side, mode="bicubic") + 0.03 * torch.randn(
        count, 3, side, side, generator=generator
    )
    return fine.clamp(0, 1).mul(255).round().to(torch.uint8)


def _corruption(name: str, device: torch.device) -> Found | str:
    if name == "frost" and frost_folder() is None:
        return "its photographs are not installed"
    images = _pictures(4, _SIDE)
    apart = []
    for severity in (1, 3, 5):
        expected = corruptions.corrupt(images, name, severity, ids=range(4))
        found = corruptions.corrupt(images.to(device), name, severity, ids=range(4))
        if found.device.type != device.type:
            raise AssertionError("the result is on another device")
        apart.append(float(((found.cpu().int() - expected.int()).abs() > (name not in _EXACT)).float().mean()))
    if name in _EXACT:
        return "share of values that differ", max(apart), 0.0, None
    return "share of values more than a level apart", max(apart), 0.01, None


def _adapter(adapter: type[Adapter], device: torch.device) -> Found:
    config = adapter.Config(**adapter.checked_with)
    source = source_for(adapter, torch.empty(0))
    models = (fitting_example(adapter.needs), "batch_norm", "layer_norm")
    name = next((each for each in models if adapter.supports(example_model(each), config, source)[0]), models[0])
    case = Case(adapter, config, name)
    stream = example_images(_BATCHES, 16)
    _, waits = _answers(case, stream, device, drawn_here=True)
    # In float64, since a method that learns amplifies the rounding of float32, some without bound.
    expected, found = (_answers(case, stream.double(), place)[0] for place in (CPU, device))
    return "largest difference of probabilities", float((found - expected).abs().max()), 1e-5, waits


class SameDraws(TorchFunctionMode):
    """Within this context every random number comes from one generator of the CPU, whatever generator is asked for.

    A method on a GPU then draws what it draws on a CPU, where all its generators are one.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draws = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        kwargs["generator"] = self._draws
        first = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("tensor")
        device = kwargs.pop("device", None)
        if not isinstance(first, Tensor):
            return func(*args, **kwargs).to(device or CPU)
        if not getattr(func, "__name__", "").endswith("_"):
            return func(*(each.cpu() if isinstance(each, Tensor) else each for each in args), **kwargs).to(first.device)
        drawn = torch.empty_like(first, device=CPU)
        rest = {name: value for name, value in kwargs.items() if name != "tensor"}
        func(drawn, *args[1:], **rest)
        with torch.no_grad():
            return first.copy_(drawn)


def _answers(
    case: Case, stream: Tensor, device: torch.device, *, drawn_here: bool = False
) -> tuple[Tensor, int | None]:
    """Return probabilities along a stream, on the CPU, and how often the host waited in the last batch."""
    model = example_model(case.model).to(device, stream.dtype)
    source = source_for(case.adapter, next(model.parameters()))
    with contextlib.nullcontext() if drawn_here else SameDraws(0):
        adapter = case.adapter(model, case.config, torch.Generator(device).manual_seed(0))
        adapter.prepare(source)
        rows, waits = [], None
        for batch in stream.to(device):
            answer, waits = _counted(lambda batch=batch: adapter.predict(batch), device)  # type: ignore[misc]
            rows.append(answer.softmax(1).cpu())
    return torch.cat(rows), waits


def _counted(work: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """Do some work and count how often the host waits for the device meanwhile, None where that cannot be counted."""
    if device.type != "cuda":
        return work(), None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return result, sum("synchroniz" in str(warning.message) for warning in caught)


_SHAPE = Architecture(image_size=32, patch_size=8, dim=32, depth=2, heads=2, decoder_dim=32, decoder_heads=2)
_WIDTHS: dict[str, dict[str, Any]] = {
    "mocov3_official": {"hidden": 64, "out": 32},
    "mmcr_official": {"hidden": 64, "out": 32, "momentum": 0.9},
    "lejepa_official": {"hidden": 64, "out": 32, "slices": 64},
}


def _fresh_stock(shape: Architecture = _SHAPE) -> Weights:
    encoder = build_encoder(shape)
    reset(encoder, torch.Generator().manual_seed(0))
    return Weights(shape, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()})


def _objective(name: str, device: torch.device) -> Found:
    _, waits = _loss_and_slope(name, device, drawn_here=True)
    expected, _ = _loss_and_slope(name, CPU)
    found, _ = _loss_and_slope(name, device)
    difference = float((found - expected).norm() / expected.norm())
    return "relative difference of loss and gradient", difference, 1e-3, waits


def _loss_and_slope(name: str, device: torch.device, *, drawn_here: bool = False) -> tuple[Tensor, int | None]:
    """Return the loss and its gradient at the encoder as one vector on the CPU, and the waits of both passes."""
    stock = _fresh_stock()
    encoder = build_encoder(_SHAPE)
    encoder.load_state_dict(stock.part("encoder"))
    # Heads are drawn on the CPU, so that both sides have the same ones.
    objective = OBJECTIVES[name].Config(**_WIDTHS.get(name, {})).build(stock, torch.Generator().manual_seed(0))
    objective.prepare(encoder, 10)
    encoder, objective = encoder.to(device), objective.to(device)
    normalise = Normalise(_SHAPE.mean, _SHAPE.std)
    draws = torch.Generator().manual_seed(0)
    pipelines = objective.pipelines(Views())
    views = [normalise(pipeline(_pictures(16, 32), draws)).to(device) for pipeline in pipelines]
    generator = torch.Generator(device).manual_seed(0)

    def both() -> Tensor:
        loss: Tensor = objective.loss(encoder, views, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with contextlib.nullcontext() if drawn_here else SameDraws(0):
        loss, waits = _counted(both, device)
    gradients = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None], *gradients]).cpu(), waits


def _digits(per_class: int = 10) -> tuple[Weights, Labelled]:
    return load_stock("digits"), labelled_source(load_shift("digits-c"), per_class, 0)


def _probe(device: torch.device, *, streamed: bool) -> Found:
    stock, data = _digits()

    def probabilities(place: torch.device) -> Tensor:
        model = Classifier.of(probe([stock], data, Probe(), torch.Generator(place).manual_seed(0))).to(place).eval()
        pixels = data.images[torch.arange(len(data))].to(place).float() / 255
        with torch.no_grad():
            features = model.features(pixels)
            if streamed:
                weight, bias = streamed_probe(torch.split(features, 32), data.labels, data.classes, place)
                return nn.functional.linear(features, weight, bias).softmax(1).cpu()
            logits: Tensor = model(pixels)
            return logits.softmax(1).cpu()

    difference = float((probabilities(device) - probabilities(CPU)).abs().max())
    return "largest difference of probabilities", difference, 1e-3, None


def _soup(device: torch.device) -> Found:
    """Two ingredients of a few steps, fine-tuned, and their soup, on digits."""
    stock, data = _digits()
    rest, held_out = data.split(0.3)

    def probabilities(place: torch.device) -> Tensor:
        generator = torch.Generator(place).manual_seed(0)
        head = probe([stock], rest, Probe(), generator)
        tuned = []
        for name in ("mae", "mmcr"):
            config = Ingredient(OBJECTIVES[name].Config(), steps=_SOUP_STEPS, batch_size=32, lr=1e-4)
            encoder = inter_train([stock], rest.without_labels(), config, generator)
            tuned.append(fine_tune([encoder, head], rest, FineTune(epochs=2, batch_size=32, lr=1e-4), generator))
        model = Classifier.of(uniform_soup(tuned)).to(place).eval()
        with torch.no_grad():
            logits: Tensor = model(held_out.images[torch.arange(len(held_out))].to(place).float() / 255)
        return logits.softmax(1).cpu()

    probabilities(device)
    with SameDraws(0):
        found = probabilities(device)
    with SameDraws(0):
        expected = probabilities(CPU)
    return "mean difference of probabilities", float((found - expected).abs().mean()), 2e-2, None


def _rates(device: torch.device) -> Iterator[Rate]:
    """Measure steps of masked autoencoding in several manners, and a corruption."""
    gpu = device.type == "cuda"
    shape = Architecture(image_size=224, patch_size=16, dim=384, depth=12, heads=6) if gpu else _SHAPE
    size = 128 if gpu else 16
    manners = [("fp32", False, False, False), ("channels_last", False, True, False)]
    if has_bf16(str(device)) and gpu:
        manners += [("bf16", True, False, False), ("bf16, compiled", True, False, True)]
    first = 0.0
    for name, bf16, last, compiled in manners:
        try:
            rate = _steps_per_second(shape, size, device, bf16, last, compiled) * size
        except Exception:  # noqa: BLE001 - a manner that does not work here has no rate
            rate = 0.0
        first = first or rate
        yield Rate(f"training step (mae), {name}", round(rate, 1), round(rate / first, 2) if first else 0.0)
    images = _pictures(size, shape.image_size).to(device)
    for name in ("gaussian_noise", "fog", "jpeg_compression"):
        seconds = _seconds(lambda name=name: corruptions.corrupt(images, name, 3, ids=range(size)), device, 3)  # type: ignore[misc]
        yield Rate(f"corruption {name}", round(size / seconds, 1), 1.0)


def _steps_per_second(
    shape: Architecture, size: int, device: torch.device, bf16: bool, last: bool, compiled: bool
) -> float:
    generator = torch.Generator(device).manual_seed(0)
    stock = _fresh_stock(shape)
    encoder = build_encoder(shape)
    encoder.load_state_dict(stock.part("encoder"))
    objective: MaskedAutoencoding = OBJECTIVES["mae"].Config().build(stock, generator)
    encoder = encoder.to(device)
    if compiled:
        compile_blocks(encoder, objective)
    images = _pictures(size, shape.image_size).to(device).float() / 255
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
        encoder = encoder.to(memory_format=torch.channels_last)
    parameters = [p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = objective.loss(encoder, [images], generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return 1 / _seconds(step, device, 10 if device.type == "cuda" else 3)


def _seconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Return the seconds of one repetition, after two that do not count."""
    for _ in range(2):
        work()
    synchronise(str(device))
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(str(device))
    return (time.perf_counter() - start) / times


def _advice(rates: Sequence[Rate]) -> str:
    """Say which manner of training is the fastest here and how to ask for it; nothing is switched on by itself."""
    steps = [rate for rate in rates if rate.name.startswith("training step")]
    if not steps:
        return ""
    best = max(steps, key=lambda rate: rate.ratio)
    manner = best.name.partition(", ")[2]
    if best.ratio < 1.1 or manner == "channels_last":
        return "No manner is a tenth faster than fp32 here; leave the options as they are."
    options = "--set selfsoup.bf16=true" + (" --set selfsoup.compile=true" if "compiled" in manner else "")
    return f"Fastest here: {manner}, {best.ratio:.2f} times fp32. Ask for it with {options}; it changes the numbers."


def to_markdown(report: DeviceReport) -> str:
    """Return the report as plain Markdown, with nothing in it that names a folder or a person."""
    counts = {verdict: sum(each.verdict == verdict for each in report.comparisons) for verdict in _VERDICTS}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing compared"
    lines = [f"## Device check: {_cell(report.device)} against the CPU", "", f"{summary}; {report.seconds:g} s.", ""]
    lines += [f"- {name}: {_cell(str(value))}" for name, value in report.versions.items()]
    lines += [
        "",
        "| comparison | measure | difference | tolerance | verdict | waits | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in report.comparisons:
        numbers = ["" if value is None else f"{value:.3g}" for value in (each.difference, each.tolerance)]
        waits = "" if each.waits is None else str(each.waits)
        cells = [each.name, each.measure, *numbers, each.verdict, waits, each.note]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    if report.rates:
        lines += ["", "| work | images / s | ratio |", "|---|---|---|"]
        lines += [f"| {_cell(rate.name)} | {rate.images_per_second:g} | {rate.ratio:g} |" for rate in report.rates]
        lines += ["", report.advice]
    return "\n".join(lines) + "\n"


_VERDICTS = ("agrees", "differs", "failed", "left out")


def _cell(text: str) -> str:
    """Return text that cannot end a cell of a table or begin HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ").replace("`", "'")
