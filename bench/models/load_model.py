"""Load a ready classifier by its name, whatever holds its weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bench.core.errors import UsageError
from bench.core.import_object import load_object
from bench.models import classifiers, zoos
from bench.models.bundled import bundled
from bench.models.classifiers import ReadyClassifier, gives_scores, is_ready
from bench.models.trained import is_trained, load_trained


def load_model(name: str) -> nn.Module:
    """Load a ready classifier of images in [0, 1], in eval mode.

    `name` is one of `load_trained` (a bundled classifier, a file of `bench train`), one of `load_ready`, or
    "file.py:factory", whose factory() returns a module that maps images in [0, 1] to logits. Raises UsageError or
    MissingDataError.
    """
    if is_trained(name):
        return load_trained(name)
    if ".py:" not in name:
        if not is_ready(name):
            raise UsageError(
                "--model takes timm:NAME, timm:NAME@FILE, torchvision:NAME, lite:efficientnet_lite0, hf:REPO, "
                f"openclip:NAME/TAG, robustbench:SET/THREAT/NAME, {', '.join((*bundled(), 'FILE.safetensors'))} of "
                f"`bench train` or path/to/file.py:factory, not '{name}'; a stock is given with --stock"
            )
        return load_ready(name)
    factory = load_object(name)
    if not callable(factory):
        raise UsageError(f"{name} is a {type(factory).__name__}; name a function that makes the classifier")
    model = factory()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} gave a {type(model).__name__}, not a torch module; return the classifier from it")
    return gives_scores(model.eval())


def load_ready(name: str) -> ReadyClassifier:
    """Return a classifier with trained weights, in eval mode.

    Names are "timm:NAME" (or any timm name) from the hub, "timm:hf-hub:REPO", "timm:local-dir:FOLDER",
    "timm:NAME@FILE" with a local .safetensors, .pth or .pt file, "torchvision:NAME", "torchvision:NAME.WEIGHTS",
    "lite:efficientnet_lite0" from the extra `lite`, and "hf:REPO", "openclip:NAME/TAG" and
    "robustbench:SET/THREAT/NAME" (see bench.models.zoos).
    Raises UsageError for an unknown name or weights that do not fit, MissingDataError for unavailable weights.
    """
    kind, _, rest = name.partition(":")
    load = _LOADERS.get(kind)
    return (classifiers.timm_classifier(name) if load is None else load(rest)).eval()


_LOADERS: dict[str, Callable[[str], ReadyClassifier]] = {
    "timm": classifiers.timm_classifier,
    "torchvision": classifiers.torchvision_classifier,
    "lite": classifiers.lite_classifier,
    "hf": zoos.hugging_face,
    "openclip": zoos.open_clip,
    "robustbench": zoos.robust_bench,
}
