"""Forward passes with fake CUDA tensors, whose places torch itself checks; a backward pass needs a real GPU."""

from __future__ import annotations

import pytest
import torch
from host_waits import DeviceGenerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from bench.core.import_object import load_object
from methods import METHODS, PLAIN
from methods.conformance import source_for
from methods.data_parallel import Share
from methods.example_models import example_images, example_model, fitting_example
from methods.nets.weights import Architecture, AutoencoderClassifier, Weights, build_encoder
from methods.selfsoup.ingredients import tensors_of
from methods.selfsoup.objectives import OBJECTIVES
from methods.soups.season import neighbour_entropy
from methods.table import MethodRow
from methods.views.ssl_views import Views

SMALL = Architecture(image_size=32, patch_size=8, dim=16, depth=1, heads=2, decoder_dim=16, decoder_heads=2)
ROWS = [PLAIN, *(row for row in METHODS.values() if row.kind == "adapter")]
WIDTHS = {"mocov3_official": {"hidden": 16}, "mmcr_official": {"hidden": 16}, "lejepa_official": {"hidden": 16}}


@pytest.fixture(autouse=True)
def device_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)


def fake() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def moved(module: nn.Module) -> nn.Module:
    """Replace all tensors of a module by fake ones on the GPU, within the mode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(gpu(value), requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = gpu(value)
    if isinstance(module, AutoencoderClassifier):
        module.decoder = {name: gpu(value).cpu() for name, value in module.decoder.items()}
    return module


def gpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def generator() -> torch.Generator:
    return DeviceGenerator("cuda").manual_seed(0)


@pytest.mark.parametrize("views", [Views(), Views(size=16), Views(three_augment=False, jitter=0.0, flip=False)])
def test_views(views: Views) -> None:
    with fake():
        images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8, device="cuda")
        assert views(images, generator()).device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            views._together(images.cpu(), views._draw(6, 32, 32, generator(), Share()), 32, 32)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    encoder = build_encoder(SMALL)
    stock = Weights(SMALL, tensors_of(encoder, "encoder"))
    objective = OBJECTIVES[name].Config(**WIDTHS.get(name, {})).build(stock, torch.Generator().manual_seed(0))
    objective.prepare(encoder, 10)
    sides = [view.size or 32 for view in objective.pipelines(Views())]
    with fake():
        moved(encoder), moved(objective)
        loss = objective.loss(encoder, [torch.rand(6, 3, side, side, device="cuda") for side in sides], generator())
    assert loss.device.type == "cuda"
    assert loss.shape == ()


def test_seasoning() -> None:
    with fake():
        assert neighbour_entropy(torch.rand(20, 8, device="cuda")).device.type == "cuda"


# How far fake tensors go: to a look at a value or a size that depends on values, or to a backward pass.
END = (DataDependentOutputException, DynamicOutputShapeException)
NO_GPU = ("hasPrimaryContext", "CUDA driver", "swap")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_adapters_as_far_as_fake_tensors_go(row: MethodRow) -> None:
    adapter = load_object(row.path)
    config = adapter.Config(**adapter.checked_with)
    name = "layer_norm" if row.name == "foa" else fitting_example(row.needs)
    model, images = example_model(name), example_images(3, 4)
    source_for(adapter, torch.empty(0))  # real pictures, made once
    try:
        with fake():
            made = adapter(moved(model), config, generator())
            made.prepare(source_for(adapter, next(model.parameters())))
            answer = made.predict(gpu(images[0]))
    except END:
        return
    except RuntimeError as error:
        if not any(text in str(error) for text in NO_GPU):
            raise
        return
    assert answer.device.type == "cuda"
