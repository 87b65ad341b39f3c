"""The head is found by what a model does: our own, timm's, torchvision's and wrapped ones, and refusals in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from bench.data.decode import Preprocessing
from bench.models.classifiers import OfClasses, ReadyClassifier
from methods.base import Unsupported
from methods.nets.feature_head_split import split
from methods.nets.weights import Architecture, Classifier


def our_classifier() -> tuple[nn.Module, nn.Module, int]:
    model = Classifier(Architecture(), 10)
    return model, model.head, 32


def timm_vit() -> tuple[nn.Module, nn.Module, int]:
    model = timm.create_model("test_vit", num_classes=10)
    return model, model.head, 160


def timm_convnext() -> tuple[nn.Module, nn.Module, int]:
    model = timm.create_model("test_convnext", num_classes=10)
    return model, model.head.fc, 64


def timm_efficientnet() -> tuple[nn.Module, nn.Module, int]:
    model = timm.create_model("test_efficientnet", num_classes=10)
    return model, model.classifier, 64


def torchvision_resnet() -> tuple[nn.Module, nn.Module, int]:
    model = torchvision.models.resnet18(num_classes=10)
    return model, model.fc, 64


def torchvision_vit() -> tuple[nn.Module, nn.Module, int]:
    model = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=10)
    return model, model.heads.head, 64


def ready() -> tuple[nn.Module, nn.Module, int]:
    network = timm.create_model("test_resnet", num_classes=10)
    model = ReadyClassifier("ready", network, (0.5,) * 3, (0.5,) * 3, Preprocessing(64, 64, "bilinear"))
    return model, network.fc, 64


def head_written_first() -> tuple[nn.Module, nn.Module, int]:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 10)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 5), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.body(images))
            return logits

    model = HeadFirst()
    return model, model.head, 28


def in_parallel() -> tuple[nn.Module, nn.Module, int]:
    model, head, side = torchvision_resnet()
    return nn.DataParallel(model), head, side


MODELS = [
    our_classifier,
    timm_vit,
    timm_convnext,
    timm_efficientnet,
    torchvision_resnet,
    torchvision_vit,
    ready,
    head_written_first,
    in_parallel,
]


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_the_head_of_the_features_is_the_model(build: Callable[[], tuple[nn.Module, nn.Module, int]]) -> None:
    model, head, side = build()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = split(model)
    assert parts.head is head
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    features, logits = parts(images)
    assert features.shape == (4, parts.head.in_features)
    torch.testing.assert_close(logits, model(images))
    weight, bias = parts.weights()
    torch.testing.assert_close(features @ weight.T + bias, logits)
    assert features.requires_grad
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_choice_of_classes_gives_their_rows() -> None:
    network = torchvision.models.resnet18(num_classes=10)
    model = OfClasses(network, ((7,), (2,), (9,)), 10).eval()
    parts = split(model)
    weight, bias = parts.weights()
    torch.testing.assert_close(weight, network.fc.weight[[7, 2, 9]])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features, logits = parts(images)
    torch.testing.assert_close(features @ weight.T + bias, logits)


def test_a_mixture_of_outputs_has_features_but_no_rows() -> None:
    network = torchvision.models.resnet18(num_classes=10)
    parts = split(OfClasses(network, ((7, 1), (2,)), 10).eval())
    features, logits = parts(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 512)
    assert logits.shape == (2, 2)
    with pytest.raises(Unsupported, match="mixture"):
        parts.weights()


def test_a_copy_is_split_alike(make_net: Callable[[str], nn.Sequential], batches: Tensor) -> None:
    net = make_net("bn")
    parts = split(net)
    twin = copy.deepcopy(parts)
    with torch.no_grad():
        parts.head.weight.zero_()
    assert twin.head is twin.model[-1]  # type: ignore[index]
    with torch.no_grad():
        assert float(twin(batches[0])[1].abs().max()) > float(parts(batches[0])[1].abs().max())


def two_heads() -> Any:
    return timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=10)


def convolution_head() -> Any:
    return torchvision.models.squeezenet1_1(num_classes=10)


def linear_before_pooling() -> nn.Module:
    class PerPixel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.permute(0, 2, 3, 1)).mean((1, 2))  # type: ignore[no-any-return]

    return PerPixel()


def odd_size() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 17 * 17, 10))


REFUSED = [
    (two_heads, "two heads"),
    (convolution_head, "runs none"),
    (linear_before_pooling, "pools"),
    (odd_size, "17"),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_other_heads_are_refused_in_words(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason if reason != "17" else "image_size"):
        split(build().eval())


def test_a_stated_size_is_tried_first() -> None:
    net = odd_size()
    net.image_size = 17  # type: ignore[assignment]
    assert split(net).head is net[1]  # type: ignore[index]
