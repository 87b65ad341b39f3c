"""The methods of mariodoebler/test-time-adaptation, built on the golden models and fed with our random views."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from golden_streams import Golden
from official_streams import OfficialRun, checkouts, release
from torch import Tensor, nn

from methods.adapters.common.prototypes import build_projector
from methods.base import Source, SourceBatch
from methods.views.cotta_views import Padding, draw_view, make_view

FOLDER = "test-time-adaptation/classification"
SEED = 7
"""Of the generator that every adapter gets (see `OfficialRun.play_ours`)."""

# The values that the release uses where a file of options says nothing (`conf.py`).
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "MODEL": {"EPISODIC": False, "RESET_AFTER_NUM_UPDATES": 0, "ARCH": "resnet50", "ADAPTATION": "", "CKPT_PATH": ""},
    "CORRUPTION": {"DATASET": "imagenet_c"},
    "OPTIM": {
        "STEPS": 1,
        "LR": 1e-3,
        "METHOD": "SGD",
        "BETA": 0.9,
        "MOMENTUM": 0.9,
        "DAMPENING": 0.0,
        "NESTEROV": True,
        "WD": 0.0,
    },
    "TEST": {"BATCH_SIZE": 16, "WINDOW_LENGTH": 1, "N_AUGMENTATIONS": 32, "DEBUG": False},
    "M_TEACHER": {"MOMENTUM": 0.999},
    "CONTRAST": {"TEMPERATURE": 0.1, "PROJECTION_DIM": 128, "MODE": "all"},
    "COTTA": {"RST": 0.01, "AP": 0.92},
    "RMT": {"LAMBDA_CE_SRC": 1.0, "LAMBDA_CE_TRG": 1.0, "LAMBDA_CONT": 1.0, "NUM_SAMPLES_WARM_UP": 50000},
    "SANTA": {"LAMBDA_CE_TRG": 1.0, "LAMBDA_CONT": 1.0},
    "ADACONTRAST": {
        "QUEUE_SIZE": 16384,
        "CONTRAST_TYPE": "class_aware",
        "CE_TYPE": "standard",
        "ALPHA": 1.0,
        "BETA": 1.0,
        "ETA": 1.0,
        "DIST_TYPE": "cosine",
        "CE_SUP_TYPE": "weak_strong",
        "REFINE_METHOD": "nearest_neighbors",
        "NUM_NEIGHBORS": 10,
    },
    "ROTTA": {"MEMORY_SIZE": 64, "UPDATE_FREQUENCY": 64, "NU": 0.001, "ALPHA": 0.05, "LAMBDA_T": 1.0, "LAMBDA_U": 1.0},
    "ROID": {
        "USE_WEIGHTING": True,
        "USE_PRIOR_CORRECTION": True,
        "USE_CONSISTENCY": True,
        "MOMENTUM_SRC": 0.99,
        "MOMENTUM_PROBS": 0.9,
        "TEMPERATURE": 1 / 3,
    },
    "CMF": {"ALPHA": 0.99, "GAMMA": 0.99, "Q": 0.005, "TYPE": "lp"},
    "SOURCE": {"NUM_WORKERS": 0, "PERCENTAGE": 1.0, "NUM_SAMPLES": -1},
}
CLASSES = 10


class Wrapped(nn.Module):
    """A golden model as the release holds a classifier: `normalize`, then `model`."""

    def __init__(self, golden: Golden, architecture: str) -> None:
        super().__init__()
        self.normalize, self.model = nn.Identity(), golden.model(architecture)
        self.model_preprocess = None

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(images))
        return logits


def options(**sections: Mapping[str, Any]) -> types.SimpleNamespace:
    """The release's options: its defaults with the given ones, by section in lower case."""
    given = {name.upper(): values for name, values in sections.items()}
    trees = {name: types.SimpleNamespace(**{**values, **given.get(name, {})}) for name, values in DEFAULTS.items()}
    return types.SimpleNamespace(**trees, MIXED_PRECISION=False, DATA_DIR="", CKPT_DIR="")


def zoo(method: str) -> types.ModuleType:
    """Load one method; Absent without the checkout. Models are split as the release does."""
    place = checkouts() / FOLDER
    nothing = mock.MagicMock()
    return release(
        FOLDER,
        f"methods.{method}",
        {
            "methods": {"__path__": [str(place / "methods")]},  # without its other methods and what they import
            "open_clip": nothing,
            "robustbench": nothing,
            "robustbench.model_zoo": nothing,
            "robustbench.model_zoo.architectures": nothing,
            "robustbench.model_zoo.architectures.utils_architectures": nothing,
            "robustbench.model_zoo.enums": nothing,
            "robustbench.utils": nothing,
            "models.custom_clip": nothing,
            "datasets": {"__path__": []},
            "datasets.cls_names": nothing,
            "datasets.imagenet_subsets": nothing,
            "datasets.prompts": {},
            "datasets.data_loading": nothing,
        },
    )


@contextmanager
def without_gpu() -> Iterator[None]:
    """The release picks its device itself; runs are made on the CPU."""
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        yield


def build(method: str, name: str, cfg: types.SimpleNamespace, model: nn.Module, **patched: Any) -> Any:
    """Make one method of the release, with functions of its module replaced by those given."""
    module = zoo(method)
    vars(module).update(patched)
    with without_gpu():
        return getattr(module, name)(cfg, model, CLASSES)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def views(generator: torch.Generator, *, smooth: bool = True, padding: Padding = "edge") -> Callable[[Tensor], Tensor]:
    """What replaces the release's random transforms: our views, drawn as our adapters draw them."""
    return lambda images: make_view(images, draw_view(generator, smooth=smooth), generator, padding=padding)


def along(adapted: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    return torch.stack([adapted(batch).detach().clone() for batch in stream])


def split_by_children(model: nn.Module) -> nn.Module:
    """A copy that the release splits as its ResNets of torchvision, which share the head with the model."""
    model = copy.deepcopy(model)
    inner: Any = model.model
    del inner.pretrained_cfg
    return model


def labelled(source: Tensor) -> Source:
    """The golden source images in their batches, with the classes 0 to 9 in turn as labels."""
    return Source(lambda number: SourceBatch(source[number], labels_of(source[number])), len(source))


def labels_of(batch: Tensor) -> Tensor:
    return torch.arange(len(batch)) % CLASSES


def double(architecture: str) -> Callable[[Golden], nn.Module]:
    """Build a golden model in float64, where a stream amplifies no rounding that float32 could show."""
    return partial(_double, architecture)


def _double(architecture: str, golden: Golden) -> nn.Module:
    return golden.model(architecture).double()


def double_stream(golden: Golden) -> Tensor:
    return golden.stream.double()


def with_a_short_batch(predict: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    """The logits along a stream whose last batch but one has two thirds of the images, for the others zeros."""
    sizes = [stream.shape[1]] * len(stream)
    sizes[-2] = sizes[-2] * 2 // 3
    logits = [predict(batch[:size]).detach() for batch, size in zip(stream, sizes, strict=True)]
    return torch.stack([nn.functional.pad(row, (0, 0, 0, sizes[0] - len(row))) for row in logits])


def play_labelled(run: OfficialRun, model: nn.Module, stream: Tensor, source: Tensor) -> Tensor:
    """Our adapter along a stream, after the golden source images with labels."""
    adapter = run.adapter(model, run.adapter.Config(**run.options), seeded())
    adapter.prepare(labelled(source.to(stream)))
    return along(adapter.predict, stream)


class Loader:
    """The golden source images with labels as the release's loader, which counts how often it was started."""

    batch_size = 16

    def __init__(self, batches: Tensor) -> None:
        self.batches, self.started = batches, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.started += 1
        for batch in self.batches:
            yield batch, labels_of(batch)


def build_with_source(method: str, name: str, cfg: types.SimpleNamespace, model: nn.Module, loader: Loader) -> Any:
    """Make a method that reads the source, with our projector and our views."""
    with TemporaryDirectory() as folder:
        cfg.CKPT_DIR = folder  # where the release keeps prototypes and warmed-up models
        adapted = build(method, name, cfg, model, get_source_loader=lambda **_: (None, loader))
    draws = seeded()
    projector = build_projector(adapted.prototypes_src[:, 0], cfg.CONTRAST.PROJECTION_DIM, draws)
    adapted.projector.to(adapted.prototypes_src)
    adapted.projector.load_state_dict(projector.state_dict())
    adapted.tta_transform = views(draws)
    return adapted


def wrapped(architecture: str, golden: Golden) -> nn.Module:
    return Wrapped(golden, architecture).double()
