"""Classifiers that this project trained, as ready models: those that come with it, and files of `bench train`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core.errors import MissingDataError, UsageError
from bench.data.decode import Preprocessing
from bench.models.bundled import bundled, bundled_file
from bench.models.classifiers import ReadyClassifier, is_ready, refuse_misfits
from bench.models.tensor_files import Checkpoint
from bench.models.weights_io import load_weights
from methods.nets.weights import Classifier, Weights


class TrainedClassifier(ReadyClassifier):
    """A classifier of `bench train`: an encoder and a linear head.

    class_names: its classes in the order of its outputs, with which those of a shift must agree; None if the images
    that it learnt from have no names of classes.
    """

    def __init__(self, name: str, weights: Weights, class_names: tuple[str, ...] | None) -> None:
        shape = weights.architecture
        classifier = Classifier.of(weights)
        network = nn.Sequential(OrderedDict(encoder=classifier.encoder, head=classifier.head))
        super().__init__(name, network, shape.mean, shape.std, Preprocessing(shape.image_size, *shape.cut))
        self.class_names = class_names


def is_trained(name: str) -> bool:
    """Return whether a name is that of a bundled classifier or of a file that this project may have written."""
    return name in bundled() or (name.endswith(".safetensors") and not is_ready(name))


def load_trained(name: str) -> TrainedClassifier:
    """Return a bundled classifier by its name, or that of a file of `bench train` or of a run, in eval mode.

    What a file holds beside encoder and head, such as the second head of a recipe, is left out. Raises
    MissingDataError for a missing file, UsageError for a damaged one or one without a classifier.
    """
    if name in bundled():
        with bundled_file(name) as path:
            return _read(name, path)
    path = Path(name).expanduser()
    if not path.is_file():
        raise MissingDataError(
            f"no classifier at {name}; give its path, or train one with: bench train --data DATA -o {name} (DATA is "
            "cifar10, digits, folder:PATH, …); a stock is given with --stock"
        )
    return _read(path.name, path)


def _read(name: str, path: Path) -> TrainedClassifier:
    if "architecture" not in Checkpoint(path).metadata:
        raise UsageError(
            f"{path} does not say its network; name it, as in timm:resnet50@{path.name}, or give a file of "
            "`bench train`"
        )
    found, facts = load_weights(path)
    tensors = {key: value for key, value in found.tensors.items() if key.startswith(("encoder.", "head."))}
    bias = tensors.get("head.bias")
    if bias is None or bias.ndim != 1:
        raise UsageError(f"{path} holds no classifier; a stock is given with --stock")
    with torch.device("meta"):  # costs no memory, whatever sizes a file states
        wanted = Classifier(found.architecture, len(bias)).state_dict()
    refuse_misfits(wanted, tensors, str(path))
    return TrainedClassifier(name, Weights(found.architecture, tensors), _names(facts, len(bias))).eval()


def _names(facts: Mapping[str, Any], outputs: int) -> tuple[str, ...] | None:
    """Return the names of the classes that a file states; None unless there is one for each output."""
    names = facts.get("classes")
    if not isinstance(names, list) or len(names) != outputs or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)
