"""The state of an adapter: everything on `self` is saved, restored by reset, and never shared with the saved copy."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.base import Adapter, Source, check_images
from methods.table import Access


class Hoarder(Adapter):
    """Changes every kind of state that the base class promises to handle, and answers with all of it."""

    access = Access(test="stream", state="online", backprop="full")

    def configure(self, source: Source | None) -> None:
        self.model.requires_grad_(True)
        self.parameters = list(self.model.parameters())
        self.groups = [self.parameters[:1], self.parameters[1:]]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1, momentum=0.9)
        self.teachers = {"slow": copy.deepcopy(self.model), "fast": copy.deepcopy(self.model)}
        self.nested = {"optimizers": [torch.optim.Adam(self.teachers["fast"].parameters(), lr=0.01)]}
        self.average: Tensor | None = None
        self.memory: list[Tensor] = []
        self.bounds = (0.0, 1.0)
        self.counts = {"seen": 0}
        self.label = "start"
        self.mean = torch.zeros(3)

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.flatten(1))
        fast: Tensor = self.teachers["fast"](images.flatten(1))
        (logits.square().mean() + fast.square().mean()).backward()  # type: ignore[no-untyped-call]
        for optimizer in (self.optimizer, *self.nested["optimizers"]):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for slow, now in zip(self.teachers["slow"].parameters(), self.parameters, strict=True):
                slow.lerp_(now, 0.5)
            assert self.groups[0][0] is self.parameters[0]
            logits = logits + fast + self.teachers["slow"](images.flatten(1))
            if self.average is not None:
                logits = logits + self.average
            self.average = logits.mean(0)
            self.memory = [*self.memory, logits[0]][-3:]
            self.mean += 1
            low, high = self.bounds
            self.bounds = (low - 1, high + 1)
            self.counts["seen"] += len(images)
            self.label += "."
            self.late = getattr(self, "late", 0) + 1
            numbers = [*self.bounds, self.counts["seen"], len(self.label), self.late, len(self.memory)]
            noise = torch.rand(1, generator=self.generator)
            return logits.detach() + sum(numbers) + self.mean.sum() + noise


@pytest.fixture
def net() -> nn.Module:
    linear = nn.Linear(12, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1, 1, 48).view(4, 12))
        linear.bias.zero_()
    return linear


@pytest.fixture
def stream() -> Tensor:
    return torch.rand(6, 5, 3, 2, 2, generator=torch.Generator().manual_seed(3))


def play(adapter: Adapter, stream: Iterable[Tensor]) -> Tensor:
    return torch.stack([adapter.predict(batch) for batch in stream])


def ready(net: nn.Module) -> Hoarder:
    adapter = Hoarder(net, generator=torch.Generator().manual_seed(5))
    adapter.prepare()
    return adapter


def test_reset_replays_every_kind_of_state(net: nn.Module, stream: Tensor) -> None:
    adapter = ready(net)
    first = play(adapter, stream)
    for _ in range(2):
        adapter.reset()
        assert torch.equal(play(adapter, stream), first)


def test_a_state_is_a_copy_and_can_be_loaded_many_times(net: nn.Module, stream: Tensor) -> None:
    adapter = ready(net)
    play(adapter, stream[:2])
    state = adapter.state_dict()
    expected = play(adapter, stream[2:])
    for _ in range(2):
        adapter.load_state_dict(state)
        assert torch.equal(play(adapter, stream[2:]), expected)


def test_another_adapter_resumes_from_a_saved_file(net: nn.Module, stream: Tensor) -> None:
    adapter = ready(net)
    play(adapter, stream[:3])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    expected = play(adapter, stream[3:])
    file.seek(0)
    other = ready(net)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play(other, stream[3:]), expected)
    other.reset()
    adapter.reset()
    assert torch.equal(play(other, stream), play(adapter, stream))


def test_reset_forgets_what_appeared_after_prepare_and_keeps_types(net: nn.Module, stream: Tensor) -> None:
    adapter = ready(net)
    play(adapter, stream[:2])
    adapter.reset()
    assert not hasattr(adapter, "late")
    assert adapter.bounds == (0.0, 1.0)
    assert all(isinstance(teacher, nn.Module) for teacher in adapter.teachers.values())


def test_reset_before_prepare_says_what_to_do(net: nn.Module) -> None:
    with pytest.raises(RuntimeError, match=r"call prepare\(\)"):
        Hoarder(net).reset()


def test_what_cannot_be_saved_is_refused_by_name(net: nn.Module) -> None:
    class Opaque(Hoarder):
        def configure(self, source: Any) -> None:
            self.callback = lambda: None

    with pytest.raises(TypeError, match=r"self\.callback is a function"):
        Opaque(net).prepare()


CONTRACT = [
    (torch.rand(3, 2, 2), r"\[n, 3, h, w\], not \[3, 2, 2\]; give a batch of images"),
    (torch.rand(0, 3, 2, 2), "a batch of 0 images has nothing to predict or to learn from; leave it out"),
    (torch.ones(1, 3, 2, 2, dtype=torch.uint8), r"not uint8; give images.float\(\) / 255"),
    (torch.ones(1, 3, 2, 2, dtype=torch.bool), r"not bool; give"),
    (torch.rand(1, 3, 2, 2, dtype=torch.float64), r"float64 and no parameter of the model is; give images.float\(\)"),
]


@pytest.mark.parametrize(("images", "words"), CONTRACT)
def test_images_outside_the_contract_are_refused_before_a_subclass_sees_them(
    net: nn.Module, stream: Tensor, images: Tensor, words: str
) -> None:
    adapter = ready(net)
    with pytest.raises(ValueError, match=words):
        adapter.predict(images)
    assert not adapter.changed()
    assert torch.equal(play(adapter, stream), play(ready(net), stream))


def test_images_in_the_precision_of_the_model_are_taken(net: nn.Module) -> None:
    for precision in (torch.float64, torch.float16, torch.bfloat16):
        check_images(torch.ones(1, 3, 2, 2, dtype=precision), copy.deepcopy(net).to(precision))
    # Autocast takes lower precision than the model's.
    check_images(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16), net)


def test_a_mixin_that_brings_predict_is_checked_too(net: nn.Module) -> None:
    class Doubles:
        def predict(self, images: Tensor) -> Tensor:
            return 2 * super().predict(images)  # type: ignore[misc]

    class Doubled(Doubles, Hoarder):
        """Twice the answer."""

    class Inherits(Doubled):
        """No predict of its own."""

    for cls in (Doubled, Inherits):
        adapter = cls(net, generator=torch.Generator().manual_seed(5))
        adapter.prepare()
        with pytest.raises(ValueError, match="0 images"):
            adapter.predict(torch.rand(0, 3, 2, 2))
        images = torch.rand(2, 3, 2, 2)
        assert torch.equal(adapter.predict(images), 2 * ready(net).predict(images))
    assert Doubles.predict.__qualname__ == Doubled.predict.__qualname__
    assert not hasattr(Doubles.predict, "_checks_images")
