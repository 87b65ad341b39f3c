"""T3A: golden parity, and a slow restatement that keeps lists of supports class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.t3a import T3A
from methods.base import Unsupported


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_matches_the_official_scores(golden: Any, model: str) -> None:
    adapter = T3A(golden.model(model), T3A.Config(official_quirks=True))
    assert golden.difference(adapter, f"{model}__t3a") <= 1e-4


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("supports", [1, 5])
def test_fewer_supports_would_fail_the_golden_comparison(golden: Any, model: str, supports: int) -> None:
    adapter = T3A(golden.model(model), T3A.Config(supports, official_quirks=True))
    assert golden.difference(adapter, f"{model}__t3a") > 1e-2


class Slow:
    """Lists of (entropy, direction) for each class, sorted and cut after each batch."""

    def __init__(self, head: nn.Linear, keep: int, quirks: bool) -> None:
        self.head, self.keep = head, keep
        self.kept: list[list[tuple[float, Tensor]]] = [[] for _ in range(head.out_features)]
        for label, row in enumerate(head.weight):
            self._take(row, None if quirks else label)

    def _take(self, feature: Tensor, label: int | None) -> None:
        p = self.head(feature).softmax(dim=0)
        uncertainty = float(-(p * p.log()).sum())
        self.kept[int(p.argmax()) if label is None else label].append((uncertainty, feature / feature.norm()))

    def __call__(self, features: Tensor) -> Tensor:
        for feature in features:
            self._take(feature, None)
        self.kept = [sorted(each, key=lambda support: support[0])[: self.keep] for each in self.kept]
        scores = torch.zeros(len(features), len(self.kept))
        for label, each in enumerate(self.kept):
            if each:
                total = torch.stack([direction for _, direction in each]).sum(dim=0)
                scores[:, label] = features @ (total / total.norm())
        return scores


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 20])
@pytest.mark.parametrize("kind", ["bn", "gn"])
@torch.no_grad()
def test_is_the_slow_one(
    make_net: Callable[[str], nn.Sequential], batches: Tensor, kind: str, keep: int, quirks: bool
) -> None:
    net = make_net(kind)
    head = net[-1]
    assert isinstance(head, nn.Linear)
    slow = Slow(head, keep, quirks)
    adapter = T3A(net, T3A.Config(keep, quirks))
    adapter.prepare()
    for batch in [*batches, batches[0, :1]]:
        torch.testing.assert_close(adapter.predict(batch), slow(net[:-1](batch)), rtol=1e-4, atol=1e-5)


def test_a_class_that_no_row_predicts_scores_zero_only_by_the_quirk(batches: Tensor) -> None:
    head = nn.Linear(3 * 32 * 32, 3)
    with torch.no_grad():
        # The second row is a small copy of the first, which the first class therefore claims.
        head.weight[1] = head.weight[0] / 2
        head.bias.zero_()
    net = nn.Sequential(nn.Flatten(), head).eval()
    scores = []
    for quirks in (False, True):
        adapter = T3A(net, T3A.Config(official_quirks=quirks))
        adapter.prepare()
        assert torch.equal(adapter.memory.view(3, 20, -1)[1, 0], torch.zeros(3 * 32 * 32)) == quirks
        scores.append(adapter.predict(batches[0])[:, 1])
    assert float(scores[0].abs().max()) > 0


def test_is_the_same_in_one_batch_or_many_for_the_last_image(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    whole, parts = (T3A(make_net("gn"), T3A.Config(3)) for _ in range(2))
    whole.prepare()
    parts.prepare()
    together = whole.predict(batches[0])[-1]
    one_by_one = [parts.predict(image[None])[0] for image in batches[0]][-1]
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"t3a\.supports"):
        T3A.Config(supports=0)


def test_mixtures_of_classes_are_refused() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images).view(-1, 2, 2).logsumexp(dim=2)  # type: ignore[no-any-return]

    with pytest.raises(Unsupported, match="mixture"):
        T3A(Mixture().eval()).prepare()


def test_scores_are_nan_exactly_where_the_logits_are_no_probabilities(
    make_net: Callable[[str], nn.Sequential], batches: Tensor
) -> None:
    """Prototypes stay finite, so without a guard the classifier of a broken head would look sound."""

    class Masked(nn.Module):
        def __init__(self, addends: Tensor) -> None:
            super().__init__()
            self.net, self.addends = make_net("gn"), addends

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images)
            return logits + self.addends[: len(logits)]

    sound = torch.zeros(4, 10)
    broken = sound.clone()
    broken[0, 3], broken[1, 4], broken[2, 5], broken[3] = torch.nan, torch.inf, -torch.inf, -torch.inf
    answers = []
    for addends in (sound, broken):
        adapter = T3A(Masked(sound), T3A.Config())
        adapter.prepare()
        adapter.model.addends = addends
        answers.append(adapter.predict(batches[0]))
    assert answers[0].isfinite().all()
    # A class masked with minus infinity is a valid probability of 0; nothing but such classes is not.
    assert answers[1].isnan().all(1).tolist() == [True, True, False, True]
    assert answers[1][2].isfinite().all()
