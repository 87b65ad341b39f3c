"""Every method of the table follows every rule, and the suite finds an adapter that breaks each rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import METHODS, PLAIN
from methods.base import Adapter, Source, Unsupported
from methods.conformance import (
    CHECKS,
    Case,
    Finding,
    answers_every_image,
    conform,
    play,
    reset_replays,
    resumes_from_a_file,
    source_for,
    takes_single_images,
    uses_its_own_generator_alone,
)
from methods.example_models import EXAMPLES, example_images, example_model, examples_for, head_of
from methods.losses import entropy
from methods.norms import norm_family, norm_parameters
from methods.table import Access

Check = Callable[[Case], None]
ROWS = [PLAIN, *(row for row in METHODS.values() if row.kind == "adapter")]
COMMON = ("batch_norm", "layer_norm")
# Rules that are quick for adapters that train all parameters, or take several steps on every image.
FEW = (answers_every_image, takes_single_images, reset_replays, resumes_from_a_file, uses_its_own_generator_alone)


def class_of(path: str) -> type[Adapter]:
    module, _, name = path.partition(":")
    cls: type[Adapter] = getattr(import_module(module), name)
    return cls


def bad(adapter: type[Adapter], models: tuple[str, ...], checks: Sequence[Check] = CHECKS) -> list[Finding]:
    return [finding for finding in conform(adapter, models=models, checks=checks) if finding.status == "failed"]


def common_model(row: Any) -> str:
    """The smallest model that the adapter takes: the one that it needs, or batch norms before layer norms."""
    cls = class_of(row.path)
    config = cls.Config(**cls.checked_with)
    wanted = (*examples_for(cls.needs)[len(EXAMPLES) :], *COMMON)
    source = source_for(cls, torch.empty(0))
    return next(name for name in wanted if cls.supports(example_model(name), config, source)[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_method_keeps_the_rules_on_a_common_model(row: Any) -> None:
    checks = FEW if row.access.state == "episodic" or row.access.backprop == "full" else CHECKS
    assert bad(class_of(row.path), (common_model(row),), checks) == []


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_every_method_keeps_every_rule_on_every_model(row: Any) -> None:
    cls = class_of(row.path)
    rare = () if row.name == "foa" or row.needs else EXAMPLES
    assert bad(cls, tuple(dict.fromkeys((*COMMON, *examples_for(cls.needs)[len(EXAMPLES) :], *rare)))) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_refusals_say_why_and_what_to_do(row: Any) -> None:
    findings = list(conform(class_of(row.path), checks=()))
    assert len(findings) < len(examples_for(row.needs))
    for finding in findings:
        assert finding.status == "refused"
        assert "; " in finding.message
        assert finding.message.rpartition("; ")[2].split()[0] in ("choose", "use", "give")


# One adapter for each rule that breaks it, and the name of the check that must find it.


class Honest(Adapter):
    """Entropy minimisation, kept simple; the mutants below change one thing each."""

    access: ClassVar[Access] = Access(test="stream", state="online", backprop="norm")

    def configure(self, source: Source | None) -> None:
        self.parameters = [parameter.requires_grad_() for parameter in norm_parameters(self.model).values()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.02, momentum=0.9)

    def predict(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            logits: Tensor = self.model(images)
            entropy(logits).mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
        return logits.detach()


class KeepsTheGraph(Honest):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images).requires_grad_()


class ChangesTheBatch(Honest):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images.mul_(0.9))


class DropsARow(Honest):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images)[:3]


class DividesByTheSpread(Honest):
    def predict(self, images: Tensor) -> Tensor:
        logits = super().predict(images)
        return logits / logits.std(0).mean()


class ForgetsTheMomentum(Honest):
    def load_state_dict(self, state: Any) -> None:
        kept = self.optimizer.state_dict()
        super().load_state_dict(state)
        self.optimizer.load_state_dict(kept)


class KeepsAPlainCounterOutside(Honest):
    counts: ClassVar[dict[int, int]] = {}

    def predict(self, images: Tensor) -> Tensor:
        seen = self.counts[id(self)] = self.counts.get(id(self), 0) + 1
        return super().predict(images) * (1 + 0.01 * seen)


class SharesACount(Honest):
    calls: ClassVar[list[int]] = []

    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.calls.clear()

    def reset(self) -> None:
        super().reset()
        self.calls.clear()

    def predict(self, images: Tensor) -> Tensor:
        self.calls.append(1)
        return super().predict(images) * len(self.calls)


class SavesItsAverageElsewhere(Honest):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state.pop("optimizer")
        return state


class LeavesTheErrorBehind(Honest):
    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.model.register_forward_pre_hook(self._count)
        type(self).failed = 0

    failed: ClassVar[int] = 0

    def _count(self, module: nn.Module, inputs: Any) -> None:
        if inputs[0].shape[1] != 3:
            type(self).failed += 1

    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images) + self.failed


class AdaptsTheCallersModel(Honest):
    def __init__(self, classifier: nn.Module, config: Any = None, generator: torch.Generator | None = None) -> None:
        super().__init__(classifier, config, generator)
        self.model = classifier


class FollowsTheCallersGradientMode(Honest):
    def predict(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().predict(images)
        logits: Tensor = self.model(images)
        return logits


class DrawsFromAnywhere(Honest):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images + 0.01 * torch.rand_like(images))


class SeedsNumpy(Honest):
    def predict(self, images: Tensor) -> Tensor:
        np.random.seed(0)  # noqa: NPY002 - what it must not do
        return super().predict(images)


class Exponentiates(Honest):
    def predict(self, images: Tensor) -> Tensor:
        logits = super().predict(images)
        return (logits.exp() / logits.exp().sum(1, keepdim=True)).log()


class OverflowsInHalfPrecision(Honest):
    def predict(self, images: Tensor) -> Tensor:
        logits = super().predict(images)
        return logits if logits.dtype == torch.float32 else logits / 0


class HidesNaN(Honest):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images).nan_to_num()


class HidesABrokenModel(Honest):
    def predict(self, images: Tensor) -> Tensor:
        logits = super().predict(images)
        return logits.nan_to_num() if images.isfinite().all() else logits


class TakesAnyImages(Honest):
    """Answers itself for images that other adapters refuse."""

    def __init__(self, classifier: nn.Module, config: Any = None, generator: torch.Generator | None = None) -> None:
        super().__init__(classifier, config, generator)
        type(self).predict = _answer_anything  # type: ignore[method-assign]


def _answer_anything(self: Honest, images: Tensor) -> Tensor:
    batch = images if images.ndim == 4 else images[None]
    if len(batch) == 0:
        return torch.empty(0, 10)
    return Honest.predict(self, batch.float())


class CountsRefusedBatches(Honest):
    counts: ClassVar[dict[int, int]] = {}

    def __getattribute__(self, name: str) -> Any:
        if name == "predict":
            counts = type(self).counts
            counts[id(self)] = counts.get(id(self), 0) + 1
        return super().__getattribute__(name)

    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images) * self.counts[id(self)]


class KeepsEverything(Honest):
    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.seen: list[Tensor] = []

    def predict(self, images: Tensor) -> Tensor:
        self.seen.append(images.mean())
        return super().predict(images)


class KeepsAChainOfGraphs(Honest):
    def configure(self, source: Source | None) -> None:
        super().configure(source)
        self.mean = torch.zeros(10)

    def predict(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            self.mean = 0.9 * self.mean + self.model(images).mean(0)
        return self.mean.detach().expand(len(images), -1)


BREAKERS: list[tuple[type[Adapter], str]] = [
    (KeepsTheGraph, "answers_every_image"),
    (ChangesTheBatch, "answers_every_image"),
    (DropsARow, "answers_every_image"),
    (DividesByTheSpread, "takes_single_images"),
    (DividesByTheSpread, "survives_identical_images"),
    (ForgetsTheMomentum, "reset_replays"),
    (KeepsAPlainCounterOutside, "reset_replays"),
    (SavesItsAverageElsewhere, "resumes_from_a_file"),
    (LeavesTheErrorBehind, "reset_recovers_from_an_error"),
    (AdaptsTheCallersModel, "leaves_the_callers_model_alone"),
    (FollowsTheCallersGradientMode, "ignores_modes_and_outer_no_grad"),
    (DrawsFromAnywhere, "uses_its_own_generator_alone"),
    (SeedsNumpy, "uses_its_own_generator_alone"),
    (SharesACount, "lives_beside_another"),
    (Exponentiates, "survives_huge_logits"),
    (OverflowsInHalfPrecision, "survives_half_precision"),
    (OverflowsInHalfPrecision, "takes_models_in_half_precision"),
    (HidesNaN, "shows_what_is_not_finite"),
    (HidesABrokenModel, "shows_a_broken_model"),
    (TakesAnyImages, "refuses_images_outside_the_contract"),
    (CountsRefusedBatches, "refuses_images_outside_the_contract"),
    (KeepsEverything, "does_not_grow"),
    (KeepsAChainOfGraphs, "does_not_grow"),
]


def test_the_honest_one_keeps_every_rule() -> None:
    assert bad(Honest, COMMON) == []


@pytest.mark.parametrize(("adapter", "check"), BREAKERS, ids=lambda value: getattr(value, "__name__", value))
def test_who_breaks_a_rule_is_found(adapter: type[Adapter], check: str) -> None:
    rule = next(each for each in CHECKS if each.__name__ == check)
    (finding,) = conform(adapter, models=("layer_norm",), checks=(rule,))
    assert finding.status == "failed"


def test_every_check_has_an_adapter_that_breaks_it() -> None:
    assert {check.__name__ for check in CHECKS} == {check for _, check in BREAKERS}


def test_source_images_come_as_declared_and_not_otherwise() -> None:
    def sees(declared: Any) -> list[Finding]:
        class Looks(Honest):
            access = Access(source=declared, test="stream", state="online", backprop="norm")

            def configure(self, source: Source | None) -> None:
                super().configure(source)
                assert source is not None
                assert source[0].labels is not None

        return bad(Looks, ("layer_norm",))

    assert sees("labelled") == []
    for declared in ("none", "unlabelled"):
        with pytest.raises(AssertionError):
            sees(declared)


def test_labels_are_nowhere_in_what_predict_is_given() -> None:
    given: list[Any] = []

    class Collects(Honest):
        def predict(self, images: Tensor) -> Tensor:
            given.append((type(images), dict(vars(images))))
            return super().predict(images)

    assert bad(Collects, ("layer_norm",)) == []
    assert given == [(Tensor, {})] * len(given)


def test_classes_that_cannot_be_tried_fail_in_words() -> None:
    class Thawed(Honest):
        @dataclass
        class Config:
            lr: float = 0.1

    class Demanding(Honest):
        @dataclass(frozen=True)
        class Config:
            lr: float

    class Misspelt(Honest):
        checked_with: ClassVar[dict[str, Any]] = {"rate": 1.0}

    class Refusing(Honest):
        def configure(self, source: Source | None) -> None:
            raise Unsupported("no model is good enough; choose a better one")

    for adapter, words in (
        (Thawed, "frozen"),
        (Demanding, "no default"),
        (Misspelt, "rate"),
        (Refusing, "refuses every"),
    ):
        assert words in bad(adapter, COMMON)[-1].message


def test_supports_answers_without_touching_the_model() -> None:
    tent = class_of(METHODS["tent"].path)
    model = example_model("batch_norm")
    assert tent.supports(model) == (True, "")
    assert not any(module._forward_pre_hooks for module in model.modules())
    supported, reason = tent.supports(example_model("no_norm"))
    assert not supported
    assert "choose a model with" in reason
    eata = class_of(METHODS["eata"].path)
    assert "give prepare() a source, or use eta" in eata.supports(model)[1]


def test_example_models_are_what_their_names_say() -> None:
    families = {name: norm_family(example_model(name)) for name in EXAMPLES}
    assert {families[name] for name in ("batch_norm", "shared_norms")} == {"bn"}
    assert (families["group_norm"], families["layer_norm"], families["no_norm"]) == ("gn", "ln", "none")
    assert families["frozen_batch_norm"] == "none"
    images = example_images(4, 4).flatten(0, 1)
    with torch.no_grad():
        for name in EXAMPLES:
            model = example_model(name)
            assert head_of(model).out_features == 10
            certain = model(images).softmax(1).amax(1)
            # Thresholds on certainty have images on both sides.
            assert float(certain.min()) < 0.8 < float(certain.max()), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", COMMON)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_method_runs_on_a_gpu_and_starts_with_the_same_answers(row: Any, model: str) -> None:
    cls = class_of(row.path)
    case = Case(cls, cls.Config(**cls.checked_with), model)
    try:
        adapter = case.build(example_model(model).cuda())
    except Unsupported:
        pytest.skip("refuses this model")
    answers = play(adapter, case.stream.cuda())
    assert answers.is_cuda
    assert torch.isfinite(answers).all()
    adapter.reset()
    torch.testing.assert_close(play(adapter, case.stream.cuda()), answers, rtol=1e-3, atol=1e-2)
    # Answers from before the first update depend on no number that was drawn on a device.
    if row.name not in ("adacontrast", "cotta", "memo", "rmt"):
        torch.testing.assert_close(answers[:4].cpu(), case.answers[:4], rtol=1e-3, atol=1e-2)
