"""Load classifiers of robustbench, transformers and OpenCLIP by their published names; each needs its package.

Weights come from the package's own location or from a file. Pickled files are read as tensors only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.errors import MissingDataError, UsageError, nearest
from bench.core.extras import OF_MODELS, missing
from bench.core.offline import is_offline, stay_off_unreachable
from bench.data.classes import read_classes
from bench.data.decode import Preprocessing
from bench.models.classifiers import ReadyClassifier, load_strictly
from bench.models.tensor_files import Checkpoint, renamed_for

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}  # as Pillow numbers them
_TEXTS = 256  # texts encoded in one batch


def _need(module: str, name: str) -> Any:
    """Import a module of the optional package that a model needs."""
    extra = OF_MODELS[name.partition(":")[0]]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(extra, name, error.name or module) from None


def hugging_face(name: str) -> ReadyClassifier:
    """Load hf:REPO or hf:FOLDER, an image classifier of transformers. No code of a repository runs.

    Raises MissingDataError for an unavailable model, UsageError for a model without a trained classifier or an image
    processor with unsupported steps.
    """
    library = _need("transformers", f"hf:{name}")
    place = Path(name).expanduser()
    where = str(place) if place.is_dir() else name
    if not place.is_dir():
        stay_off_unreachable()
    options = {"local_files_only": is_offline() or place.is_dir(), "trust_remote_code": False}
    try:
        network, info = library.AutoModelForImageClassification.from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **options
        )
        processor = library.AutoImageProcessor.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rpartition(" ")[0]
        raise MissingDataError(
            f"hf:{name} is not available as an image classifier ({reason} …); check the name and connect once "
            "without --offline, or give a folder that save_pretrained wrote with model and image processor"
        ) from None
    lost = [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]
    lost += [key for key, tensor in network.named_parameters() if not torch.isfinite(tensor).all()]
    if lost:
        raise UsageError(
            f"hf:{name} has no trained {lost[0]} ({len(lost)} such weights); take a model that was trained to classify"
        )
    mean, std, preprocessing = processing_of(processor, f"hf:{name}")
    shown = place.resolve().name if place.is_dir() else name
    return ReadyClassifier(f"hf:{shown}", network, mean, std, preprocessing)


def processing_of(processor: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...], Preprocessing]:
    """Return the mean, standard deviation and preprocessing of an image processor of transformers.

    If the crop removes an odd number of pixels, transformers rounds its position down; this crop, like torchvision's,
    may then be one pixel away. Raises UsageError for a processor that does more than resize, crop at the centre and
    normalise.
    """
    size, kind = _sides(getattr(processor, "size", None)), type(processor).__name__
    crop = _sides(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else {}
    filter_ = _FILTERS.get(int(getattr(processor, "resample", 3) or 0), "")
    resized = bool(getattr(processor, "do_resize", True))
    factor = float(getattr(processor, "rescale_factor", 1 / 255))
    odd = getattr(processor, "do_pad", False) or getattr(processor, "rescale_offset", False)
    if not resized or not filter_ or odd or abs(factor * 255 - 1) > 1e-3:
        raise UsageError(f"{name}: its {kind} has unsupported steps; use file.py:factory instead")
    plain = not getattr(processor, "do_normalize", True)
    mean = (0.0,) * 3 if plain else tuple(map(float, processor.image_mean))
    std = (1.0,) * 3 if plain else tuple(map(float, processor.image_std))
    if getattr(processor, "include_top", False):  # EfficientNet's processor divides by the deviation twice
        std = tuple(each * each for each in std)
    short = size.get("shortest_edge")
    if short is not None and kind.startswith("Levit"):
        short = int(256 / 224 * short)
    if short is not None and kind.startswith("ConvNext"):
        if short >= 384:
            return mean, std, Preprocessing(short, short, filter_, squash=True)
        return mean, std, Preprocessing(short, int(short / processor.crop_pct), filter_)
    if short is not None:
        side = crop.get("height", 0)
        if side == 0 or side != crop.get("width"):
            raise UsageError(f"{name}: its {kind} leaves images in their shape; give a model of square images")
        return mean, std, Preprocessing(side, short, filter_)
    if "height" not in size or size["height"] != size.get("width"):
        raise UsageError(f"{name}: its {kind} makes images of {size}; give a model of square images")
    side = crop.get("height", size["height"])
    return mean, std, Preprocessing(side, size["height"], filter_, squash=True)


def _sides(size: Any) -> dict[str, int]:
    """Return sides by name from a number, a mapping or a processor's own size object."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    values = (
        dict(size)
        if isinstance(size, Mapping)
        else {k: getattr(size, k, None) for k in ("height", "width", "shortest_edge")}
    )
    return {str(key): int(value) for key, value in values.items() if value is not None}


class ZeroShot(nn.Module):
    """A zero-shot classifier: scale x cosine of image and class embeddings, [n, classes].

    Radford et al. 2021, arXiv:2103.00020.
    """

    embeddings: Tensor
    scale: Tensor

    def __init__(self, visual: nn.Module, embeddings: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("scale", scale)

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        features = features[0] if isinstance(features, tuple) else features
        return self.scale * nn.functional.normalize(features, dim=-1) @ self.embeddings.T


def open_clip(name: str) -> ReadyClassifier:
    """Load openclip:NAME/TAG or openclip:NAME@FILE, zero-shot on ImageNet's classes with OpenAI's 80 templates.

    openclip:…:CLASSES.txt takes the classes of a file instead: one class a line, its names separated by tabs.
    Class embeddings are cached, because they take 80,000 texts to compute. Raises MissingDataError or UsageError.
    """
    library = _need("open_clip", f"openclip:{name}")
    rest, colon, listed = name.rpartition(":")
    rest, listed = (rest, listed) if colon and listed.endswith(".txt") else (name, "")
    head, _, file = rest.partition("@")
    architecture, _, tag = head.partition("/")
    nearest(architecture, library.list_models(), "model of OpenCLIP")
    if bool(tag) == bool(file):
        raise UsageError(
            f"openclip:{rest} needs weights; write openclip:{architecture}/TAG or openclip:{architecture}@FILE"
        )
    notes: tuple[str, ...] = ()
    if file:
        model = library.create_model(architecture, pretrained=None, precision="fp32")
        checkpoint = Checkpoint(Path(file).expanduser())
        names, _ = renamed_for(model.state_dict(), list(checkpoint))
        load_strictly(model, {here: checkpoint[there].clone() for there, here in names.items()}, file)
        notes = checkpoint.notes
    else:
        tags = library.list_pretrained_tags_by_model(architecture)
        nearest(tag, tags, f"weights of {architecture}")
        stay_off_unreachable()
        try:
            model = library.create_model(architecture, pretrained=tag, precision="fp32", weights_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise MissingDataError(
                f"no weights of openclip:{head} here ({str(error).splitlines()[0][:100]}); connect to the network once "
                f"without --offline, or give a file as openclip:{architecture}@FILE"
            ) from None
    classes: Sequence[str] = library.IMAGENET_CLASSNAMES
    if listed:
        classes = read_classes(Path(listed))
    model.eval()
    embeddings = _embeddings(model, library, architecture, classes)
    cut = library.get_model_preprocess_cfg(model)
    side = cut["size"] if isinstance(cut["size"], int) else cut["size"][0]
    squash = cut.get("resize_mode", "shortest") == "squash"
    preprocessing = Preprocessing(side, side, str(cut.get("interpolation", "bicubic")), squash=squash)
    network = ZeroShot(model.visual, embeddings, model.logit_scale.detach().exp())
    shown = f"openclip:{head}" + (f"@{Path(file).name}" if file else "") + (f":{Path(listed).name}" if listed else "")
    ready = ReadyClassifier(shown, network, tuple(cut["mean"]), tuple(cut["std"]), preprocessing)
    ready.notes = notes
    return ready


@torch.no_grad()
def _embeddings(model: Any, library: Any, architecture: str, classes: Sequence[str]) -> Tensor:
    """Return the normalised mean of each class's normalised text features, [classes, width]."""
    templates = library.OPENAI_IMAGENET_TEMPLATES
    sha = hashlib.sha256("\n".join([architecture, library.__version__, *classes]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            sha.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    kept = cache_dir() / "zero_shot" / f"{sha.hexdigest()[:32]}.safetensors"
    if kept.is_file():
        return load_file(kept)["embeddings"].clone()
    tokenizer = library.get_tokenizer(architecture)
    rows = []
    for line in classes:
        texts = [template(word) for word in line.split("\t") for template in templates]
        parts = [texts[low : low + _TEXTS] for low in range(0, len(texts), _TEXTS)]
        features = torch.cat([nn.functional.normalize(model.encode_text(tokenizer(part)), dim=-1) for part in parts])
        rows.append(nn.functional.normalize(features.mean(0), dim=-1))
    embeddings = torch.stack(rows)
    write_bytes(kept, save({"embeddings": embeddings}))
    return embeddings


_CUTS = {
    "Res256Crop224": Preprocessing(224, 256, "bilinear"),
    "Res224": Preprocessing(224, 224, "bilinear", squash=True),
    "BicubicRes256Crop224": Preprocessing(224, 256, "bicubic"),
}
_SETS = {"cifar10": 32, "cifar100": 32, "imagenet": 224}
_TAKEN_OFF = ("module.", "model.")


def robust_bench(name: str) -> ReadyClassifier:
    """Load robustbench:SET/THREAT/NAME[@FILE], as in robustbench:cifar10/corruptions/Hendrycks2020AugMix_ResNeXt.

    SET is cifar10, cifar100 or imagenet; THREAT is corruptions, Linf or L2. Without FILE, weights are read from the
    package's location models/SET/THREAT/NAME.pt. Its networks normalise images. Raises MissingDataError or UsageError.
    """
    _open_robustbench()
    zoo = _need("robustbench.model_zoo.models", f"robustbench:{name}")
    head, _, file = name.partition("@")
    parts = head.split("/")
    if len(parts) != 3:
        raise UsageError(
            f"write robustbench:SET/THREAT/NAME, as in robustbench:cifar10/corruptions/Standard, not {head}"
        )
    data, threat, model_name = parts
    enums = importlib.import_module("robustbench.model_zoo.enums")
    nearest(data, _SETS, "set of robustbench")
    nearest(threat, [kind.value for kind in enums.ThreatModel], "threat of robustbench")
    rows = zoo.model_dicts.get(enums.BenchmarkDataset(data), {}).get(enums.ThreatModel(threat), {})
    row = rows[nearest(model_name, rows, f"model of robustbench for {data} and {threat}")]
    path = Path(file).expanduser() if file else Path("models") / data / threat / f"{model_name}.pt"
    if isinstance(row.get("gdrive_id"), list):
        raise UsageError(
            f"robustbench:{head} is several networks in several files; choose one that is a single network"
        )
    if not path.is_file() and not file:
        raise MissingDataError(
            f"no weights of robustbench:{head} at {path}; let the package's load_model put them there, or give a file "
            f"as robustbench:{head}@FILE"
        )
    side = _SETS[data]
    cut = Preprocessing(side, side) if data != "imagenet" else _CUTS.get(row.get("preprocessing"))
    if cut is None:
        raise UsageError(
            f"robustbench:{head} needs the unknown preprocessing {row.get('preprocessing')}; choose another model"
        )
    checkpoint = Checkpoint(path)
    try:
        network = row["model"]()
    except (OSError, RuntimeError, ImportError) as error:
        raise MissingDataError(
            f"robustbench:{head} cannot be built here ({str(error).splitlines()[0][:120]}); choose another, or install "
            "what is missing"
        ) from None
    own = network.state_dict()
    load_strictly(network, _named_for(own, checkpoint), str(path))
    shown = f"robustbench:{head}" + (f"@{path.name}" if file else "")
    ready = ReadyClassifier(shown, network, (0.0,) * 3, (1.0,) * 3, cut)
    ready.notes = checkpoint.notes
    return ready


def _open_robustbench() -> None:
    """Make robustbench's architectures importable without its `__init__`, which needs a package that no index has."""
    spec = importlib.util.find_spec("robustbench")
    if "robustbench" not in sys.modules and spec is not None and spec.submodule_search_locations:
        package = ModuleType("robustbench")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["robustbench"] = package


def _named_for(own: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors under the network's names, mapped as the package maps them.

    "module." and "model." are removed. "model." is added if the network wraps the model behind a normalising layer,
    whose constants may be missing from the file.
    """
    plain = {}
    for name in checkpoint:
        bare = name
        for prefix in _TAKEN_OFF:
            bare = bare.removeprefix(prefix)
        plain[bare] = name
    prefix = "" if set(plain) <= set(own) else "model."
    found = {prefix + bare: checkpoint[name].clone() for bare, name in plain.items()}
    constants = {
        name: tensor for name, tensor in own.items() if name not in found and name.split(".")[-1] in _CONSTANTS
    }
    return {**constants, **found}


_CONSTANTS = ("mean", "std", "mu", "sigma")
