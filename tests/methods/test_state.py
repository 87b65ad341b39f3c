"""State that a forward pass changes besides the weights: saved, compared and restored, whatever its type."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.adapters.memo import Memo
from methods.adapters.plain import Plain
from methods.adapters.tent import Tent
from methods.base import Adapter
from methods.state import Unsaved, constants, load_module, same, save_module, untouched


class Slotted:
    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = torch.zeros(())


class Pair(NamedTuple):
    mean: Tensor
    seen: int


@dataclass(frozen=True)
class Frozen:
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))


class Restless(nn.Module):
    """Scores that depend on `kept`, which each pass changes in one way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, 12).view(4, 3))
            self.head.bias.zero_()
        KINDS[kind][0](self)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            extra = KINDS[self.kind][1](self, images.detach().mean())
        scores: Tensor = self.head(self.norm(images).mean((2, 3)))
        return scores * (1 + torch.as_tensor(extra, dtype=torch.float32))


def _start(name: str, value: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value())


def _counter(model: Any, mean: Tensor) -> float:
    model.kept += 1
    return float(model.kept)


def _text(model: Any, mean: Tensor) -> int:
    model.kept += "."
    return len(model.kept)


def _in_place(find: Callable[[Any], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda model, mean: find(model).add_(mean).clone()


def _rebound(model: Any, mean: Tensor) -> Tensor:
    model.kept = model.kept + mean
    return model.kept  # type: ignore[no-any-return]


def _grow(model: Any, mean: Tensor) -> int:
    model.kept.append(mean)
    return len(model.kept)


def _bank(model: Any, mean: Tensor) -> int:
    model.kept = torch.cat([model.kept, mean[None]]) if model.kept is not None else mean[None]
    return len(model.kept)


def _late(model: Any, mean: Tensor) -> int:
    model.late = getattr(model, "late", 0) + 1
    return int(model.late)


def _alias(model: Any, mean: Tensor) -> Tensor:
    model.kept["also"].add_(mean)
    return model.other.clone()  # type: ignore[no-any-return]


def _two_names(model: Any) -> None:
    model.register_buffer("other", torch.zeros(()), persistent=False)
    model.kept = {"also": model.other}


def _same_list(model: Any) -> None:
    model.other = torch.zeros(())
    model.kept = {"also": model.other}


def _named(model: Any, mean: Tensor) -> Tensor:
    model.kept = model.kept._replace(seen=model.kept.seen + 1)
    return model.kept.mean.add_(mean) + model.kept.seen  # type: ignore[no-any-return]


def _set(model: Any, mean: Tensor) -> int:
    model.kept.add(len(model.kept))
    return len(model.kept)


def _buffer(persistent: bool, value: Callable[[], Tensor | None]) -> Callable[[Any], None]:
    return lambda model: model.register_buffer("kept", value(), persistent=persistent)


def _zero() -> Tensor:
    return torch.zeros(())


def _array(model: Any, mean: Tensor) -> float:
    model.kept += float(mean)
    return float(model.kept.sum())


def _counts(model: Any, mean: Tensor) -> int:
    model.kept["new" if model.kept["seen"] else "seen"] += 1
    return sum(model.kept.values())


KINDS: dict[str, tuple[Callable[[Any], None], Callable[[Any, Tensor], Any]]] = {
    "buffer": (_buffer(True, _zero), _in_place(lambda m: m.kept)),
    "buffer, not persistent": (_buffer(False, _zero), _in_place(lambda m: m.kept)),
    "buffer, bound anew": (_buffer(False, _zero), _rebound),
    "buffer that grows": (_buffer(True, lambda: torch.zeros(1)), _bank),
    "buffer that comes": (_buffer(True, lambda: None), _bank),
    "tensor": (_start("kept", _zero), _in_place(lambda m: m.kept)),
    "tensor, bound anew": (_start("kept", _zero), _rebound),
    "counter": (_start("kept", int), _counter),
    "float": (_start("kept", float), _counter),
    "numpy number": (_start("kept", lambda: np.float64(0)), _counter),
    "text": (_start("kept", str), _text),
    "array": (_start("kept", lambda: np.zeros(2)), _array),
    "list": (_start("kept", list), _grow),
    "deque": (_start("kept", lambda: deque(maxlen=3)), _grow),
    "dict": (_start("kept", lambda: {"a": [torch.zeros(())]}), _in_place(lambda m: m.kept["a"][0])),
    "dict of numbers": (_start("kept", lambda: defaultdict(int)), _counts),
    "dict by type": (_start("kept", lambda: {Pair: torch.zeros(())}), _in_place(lambda m: m.kept[Pair])),
    "set": (_start("kept", set), _set),
    "named tuple": (_start("kept", lambda: Pair(torch.zeros(()), 0)), _named),
    "object": (_start("kept", lambda: SimpleNamespace(a=torch.zeros(()))), _in_place(lambda m: m.kept.a)),
    "slots": (_start("kept", Slotted), _in_place(lambda m: m.kept.mean)),
    "frozen": (_start("kept", Frozen), _in_place(lambda m: m.kept.mean)),
    "partial": (
        _start("kept", lambda: functools.partial(max, torch.zeros(()))),
        _in_place(lambda m: m.kept.args[0]),
    ),
    "comes late": (lambda model: None, _late),
    "two names of a buffer": (_two_names, _alias),
    "two names of a tensor": (_same_list, _alias),
    "module in a list": (_start("kept", lambda: [nn.BatchNorm1d(1)]), _in_place(lambda m: m.kept[0].running_mean)),
    "generator": (_start("kept", lambda: random.Random(3)), lambda m, mean: m.kept.random()),
    "numpy generator": (_start("kept", lambda: np.random.default_rng(3)), lambda m, mean: m.kept.random()),
    "mode": (_start("kept", _zero), lambda m, mean: (float(m.norm.training), m.norm.train(not m.norm.training))[0]),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def batches() -> Tensor:
    return torch.rand(3, 2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def play(adapter: Any, batches: Tensor) -> Tensor:
    return torch.stack([adapter.predict(batch) for batch in batches])


def start(method: type[Adapter], kind: str) -> Adapter:
    adapter = method(Restless(kind), OPTIONS.get(method), torch.Generator().manual_seed(2))
    adapter.prepare()
    return adapter


OPTIONS: dict[type[Adapter], Any] = {Memo: Memo.Config(views=2, crop="none", prior=-1), Tent: Tent.Config(lr=0.1)}


@pytest.mark.filterwarnings("ignore:memo adapts to one image")
@pytest.mark.parametrize("method", [Plain, Tent, Memo])
def test_reset_undoes_what_the_model_does_to_itself(method: type[Adapter], kind: str, batches: Tensor) -> None:
    adapter = start(method, kind)
    first = play(adapter, batches)
    assert not torch.equal(first, play(adapter, batches)), "the model of this test changes"
    for _ in range(2):
        adapter.reset()
        assert torch.equal(play(adapter, batches), first)


@pytest.mark.parametrize("method", [Plain, Tent])
def test_a_saved_file_continues_it_elsewhere(method: type[Adapter], kind: str, batches: Tensor) -> None:
    adapter = start(method, kind)
    adapter.predict(batches[0])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    expected = play(adapter, batches[1:])
    file.seek(0)
    other = start(method, kind)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play(other, batches[1:]), expected)
    other.reset()
    assert torch.equal(play(other, batches), play(start(method, kind), batches))


def test_a_change_is_seen_and_a_pass_on_trial_leaves_none(kind: str, batches: Tensor) -> None:
    adapter = start(Plain, kind)
    assert not adapter.changed()
    answers = play(copy.deepcopy(adapter), batches)
    with untouched(adapter.model):
        adapter.model(batches[0])
    assert not adapter.changed()
    assert torch.equal(play(adapter, batches), answers)
    assert adapter.changed()
    adapter.reset()
    assert not adapter.changed()


def test_an_ordinary_model_does_not_change(batches: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[1].running_mean.fill_(torch.nan)
    adapter = Plain(model)
    adapter.prepare()
    adapter.predict(batches[0])
    assert not adapter.changed()


def test_weights_keep_their_place() -> None:
    model = Restless("buffer")
    places = {name: value.data_ptr() for name, value in (*model.named_parameters(), *model.named_buffers())}
    saved = save_module(model)
    load_module(model, saved)
    assert {n: v.data_ptr() for n, v in (*model.named_parameters(), *model.named_buffers())} == places
    assert saved["weights"].keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (lambda: itertools.count(), "count"),
        (lambda: iter([1, 2]), "list_iterator"),
        (lambda: threading.Lock(), "lock"),
        (lambda: {Slotted()}, "set"),
    ],
)
def test_what_shows_nothing_is_refused_in_a_sentence(thing: Callable[[], Any], said: str) -> None:
    model = Restless("counter")
    model.norm.feed = [thing()]
    with pytest.raises(Unsaved, match=rf"keeps a {said} in norm\.feed\[0\].*; keep tensors"):
        save_module(model)


def test_an_object_put_in_place_of_another_is_refused() -> None:
    model = Restless("object")
    saved = save_module(model)
    model.kept = None
    with pytest.raises(Unsaved, match=r"replaced the object in kept by a NoneType.*; keep the same object"):
        load_module(model, saved)


def test_what_holds_itself_is_saved_once() -> None:
    model: Any = Restless("counter")
    model.kept = {"mean": torch.zeros(2)}
    model.kept["me"] = model.kept
    model.norm.above = [model]
    saved = save_module(model)
    model.kept["mean"] += 1
    load_module(model, saved)
    assert model.kept["me"]["mean"].tolist() == [0, 0]
    assert model.norm.above == [model]


def test_equal_means_to_the_bit() -> None:
    assert same({"a": [torch.tensor([1.0, torch.nan]), float("nan")]}, {"a": [torch.tensor([1.0, torch.nan]), np.nan]})
    for one, other in [
        (torch.zeros(2), torch.zeros(1)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.float64)),
        (torch.tensor([0.0]), torch.tensor([1e-30])),
        (1, 1.0),
        (True, 1),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (None, 0),
    ]:
        assert not same(one, other)


def _models(change: bool) -> Iterator[tuple[str, nn.Module]]:
    """Models of a zero-shot head in the ways people keep its text features, one number changed or none."""
    text = torch.arange(6.0).view(2, 3)
    text[1, 2] += change
    for name, kept in {
        "tensor": text,
        "list": [text],
        "dict": {"a photo of a cat": (text,)},
        "array": text.numpy(),
        "array of texts": np.array(["cat", "dogs" if change else "dog"]),
        "partial": functools.partial(torch.matmul, other=text.T),
        "object": SimpleNamespace(inner=SimpleNamespace(text=text)),
        "slots": _slotted(text),
        "number": 5.0 + change,
        "number in an object": SimpleNamespace(scale=_own(5 + change)),
        "half": text.half(),
        "sparse": text.to_sparse(),
    }.items():
        model = nn.Sequential(nn.Linear(3, 3))
        model[0] = Restless("counter")
        model[0].features = kept
        yield name, model


def _slotted(text: Tensor) -> Slotted:
    made = Slotted()
    made.mean = text
    return made


class _Scale:
    def __init__(self, value: float) -> None:
        self.value = value


def _own(value: float) -> _Scale:
    return _Scale(value)


def test_every_number_that_can_be_reached_is_a_constant() -> None:
    def state_of(model: nn.Module) -> dict[str, list[Any]]:
        return {name: value.tolist() for name, value in constants(model).items()}

    for (name, one), (_, again), (_, other) in zip(_models(False), _models(False), _models(True), strict=True):
        assert state_of(one) == state_of(again), name
        assert state_of(one) != state_of(other), name


def test_layers_of_libraries_have_no_constants() -> None:
    import timm
    import torchvision

    for model in (
        timm.create_model("test_vit"),
        timm.create_model("test_efficientnet"),
        torchvision.models.mobilenet_v3_small(),
        nn.TransformerEncoderLayer(8, 2),
    ):
        assert constants(model) == {}
