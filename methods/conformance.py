"""The rules that every adapter must follow: the suite that the tests and `bench check method` share.

A check is a function of a `Case` that raises `Broken`, or any other exception, if its rule is broken. Its docstring
states the rule.
"""

from __future__ import annotations

import copy
import gc
import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from methods.base import Adapter, Source, SourceBatch, Unsupported
from methods.example_models import CLASSES, SIDE, example_images, example_model, examples_for, head_of

BATCHES, SIZE = 3, 4


class Broken(Exception):
    """Raised where an adapter breaks a rule; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Finding:
    """The result of one check on one model: passed, failed, or refused with a reason."""

    check: str
    model: str
    status: Literal["passed", "failed", "refused"]
    message: str = ""


@dataclass(frozen=True)
class Case:
    """An adapter class with options, on one of the example models."""

    adapter: type[Adapter]
    config: Any
    model: str

    @property
    def stream(self) -> Tensor:
        return example_images(BATCHES, SIZE)

    def build(self, model: nn.Module | None = None, seed: int = 0) -> Adapter:
        """Build an adapter that is ready for the stream. It gets source images only as its class declares them.

        Source images have the precision and device of the model.
        """
        given = example_model(self.model) if model is None else model
        adapter = self.adapter(given, self.config, torch.Generator().manual_seed(seed))
        adapter.prepare(source_for(self.adapter, next(given.parameters())))
        return adapter

    @cached_property
    def answers(self) -> Tensor:
        """The predictions of a fresh adapter along the stream."""
        return play(self.build(), self.stream)


def source_for(adapter: type[Adapter], like: Tensor) -> Source | None:
    """Return example source images as an adapter's class declares them, in the precision and on the device of `like`.

    None if it declares no source.
    """
    if adapter.access.source == "none":
        return None
    images = example_images(3, SIZE).flip(-1).to(like)
    labels = (torch.arange(3 * SIZE) % CLASSES).view(3, SIZE).to(like.device)
    labelled = adapter.access.source == "labelled"
    return Source(lambda number: SourceBatch(images[number], labels[number] if labelled else None), 3)


def play(adapter: Adapter, batches: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the predictions for consecutive batches, [images, classes]. Raises Broken for a wrong shape."""
    rows = []
    for batch in batches:
        answer = adapter.predict(batch)
        if not isinstance(answer, Tensor) or answer.shape != (len(batch), CLASSES):
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise Broken(f"predict gave {shape} for {len(batch)} images; return a tensor [{len(batch)}, {CLASSES}]")
        rows.append(answer)
    return torch.cat(rows)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise Broken(sentence)


def _require_same(found: Tensor, expected: Tensor, sentence: str) -> None:
    if not torch.equal(found, expected):
        raise Broken(f"{sentence} (predictions differ by up to {float((found - expected).abs().max()):.3g})")


def _finite_state(adapter: Adapter) -> bool:
    return all(torch.isfinite(value).all() for value in adapter.model.state_dict().values())


def answers_every_image(case: Case) -> None:
    """Returns a finite row of scores for each image, without autograd history, and leaves the batch unchanged."""
    stream = case.stream
    before = stream.clone()
    answers = play(case.build(), stream)
    _require(
        bool(torch.isfinite(answers).all()),
        "scores are not finite on ordinary images; find where the first such value appears",
    )
    _require(not answers.requires_grad, "scores carry an autograd graph; return logits.detach()")
    _require(torch.equal(stream, before), "predict changed the images it was given; work on a copy")


def takes_single_images(case: Case) -> None:
    """Predicts batches of one image, also as the last batch."""
    images = case.stream.flatten(0, 1)
    for parts in (list(torch.split(images, 1)), [images[:4], images[4:7], images[7:8]]):
        adapter = case.build()
        _require(bool(torch.isfinite(play(adapter, parts)).all()), "scores of a batch of one image are not finite")
        _require(_finite_state(adapter), "a batch of one image leaves parameters that are not finite")


def reset_replays(case: Case) -> None:
    """After reset() the same stream gives bit-identical predictions, also a second time."""
    adapter = case.build()
    first = play(adapter, case.stream)
    for _ in range(2):
        adapter.reset()
        again = play(adapter, case.stream)
        _require_same(again, first, "reset() does not restore everything; keep all state on self")


def reset_recovers_from_an_error(case: Case) -> None:
    """After an error in the middle of a batch, reset() restores everything."""
    adapter = case.build()
    play(adapter, case.stream[:2])
    broken = torch.rand(2, 5, SIDE, SIDE)
    try:
        adapter.predict(broken)
    except Exception:  # noqa: BLE001 - any error about five channels will do
        adapter.reset()
    else:
        raise Broken("images with five channels gave a prediction; let the error of the model propagate")
    _require_same(
        play(adapter, case.stream),
        case.answers,
        "reset() after an error does not restore everything; keep all state on self",
    )


def resumes_from_a_file(case: Case) -> None:
    """From a state saved mid-stream, another process continues with bit-identical predictions."""
    adapter = case.build()
    play(adapter, case.stream[:2])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    file.seek(0)
    other = case.build(seed=99)
    play(other, case.stream[2:])
    other.load_state_dict(torch.load(file, weights_only=True))
    found = play(other, case.stream[2:])
    _require_same(found, case.answers[2 * SIZE :], "a resumed stream gives other predictions; keep all state on self")


def leaves_the_callers_model_alone(case: Case) -> None:
    """The caller's model keeps its values, modes, flags and hooks."""
    model = example_model(case.model).train()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before, kept = _look(model), copy.deepcopy(model.state_dict())
    adapter = case.build(model)
    play(adapter, case.stream)
    adapter.reset()
    same = all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    _require(same and _look(model) == before, "the caller's model was changed; work on self.model, which is a copy")


def _look(model: nn.Module) -> list[Any]:
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    parameters = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    statistics = [getattr(module, "track_running_stats", None) for module in model.modules()]
    return [list(model.state_dict()), modules, parameters, statistics]


def ignores_modes_and_outer_no_grad(case: Case) -> None:
    """The caller's train() and eval(), and an outer torch.no_grad(), change no answer."""
    model = example_model(case.model).train()
    with torch.no_grad():
        adapter = case.build(model)
        rows = []
        for number, batch in enumerate(case.stream):
            model.train(number % 2 == 0)
            rows.append(adapter.predict(batch))
        _require(not torch.is_grad_enabled(), "predict leaves gradients switched on; use `with torch.enable_grad():`")
    sentence = "predictions change under torch.no_grad(); adapt inside `with torch.enable_grad():`"
    _require_same(torch.cat(rows), case.answers, sentence)


def uses_its_own_generator_alone(case: Case) -> None:
    """Two runs with one seed agree, whatever the global random state, and draw no global random numbers."""
    adapter = case.build()
    with _other_randomness():
        before = _global_randomness()
        answers = play(adapter, case.stream)
        adapter.reset()
        same = _global_randomness() == before
    _require(same, "global random numbers are drawn or seeded; draw from self.generator")
    _require_same(answers, case.answers, "two runs with the same seed differ; draw from self.generator alone")


@contextmanager
def _other_randomness() -> Iterator[None]:
    """Seed all global generators differently inside the context and restore them afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - restored below
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        np.random.seed(123)  # noqa: NPY002
        random.seed(123)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def _global_randomness() -> tuple[bytes, bytes, Any]:
    state: Any = np.random.get_state()  # noqa: NPY002 - the state is only compared
    return torch.get_rng_state().numpy().tobytes(), state[1].tobytes(), random.getstate()


def lives_beside_another(case: Case) -> None:
    """Two adapters of one class do not affect each other when they predict batches in turn."""
    one, other = case.build(), case.build(seed=5)
    rows = []
    for batch in case.stream:
        rows.append(one.predict(batch))
        other.predict(batch.flip(0))
    _require_same(
        torch.cat(rows), case.answers, "a second adapter changes the predictions of the first; keep state on self"
    )


def survives_huge_logits(case: Case) -> None:
    """Logits of 10 000 give finite scores and leave finite parameters."""
    model = example_model(case.model)
    with torch.no_grad():
        head_of(model).weight.mul_(1e4 / model(case.stream[0]).abs().max())
    adapter = case.build(model)
    sentence = "huge logits overflow; use log_softmax, logsumexp or methods.losses.entropy instead of exp and log"
    _require(bool(torch.isfinite(play(adapter, case.stream)).all()), sentence)
    _require(_finite_state(adapter), sentence)


def survives_half_precision(case: Case) -> None:
    """Under autocast to bfloat16 scores and parameters stay finite."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapter = case.build()
        finite = bool(torch.isfinite(play(adapter, case.stream)).all()) and _finite_state(adapter)
    _require(finite, "half precision gives numbers that are not finite; do sums and logarithms in float32")


def takes_models_in_half_precision(case: Case) -> None:
    """A model in bfloat16 or float16 gives finite scores and parameters, or is refused as Unsupported."""
    for precision in (torch.bfloat16, torch.float16):
        try:
            adapter = case.build(example_model(case.model).to(precision))
        except Unsupported:
            continue
        finite = bool(torch.isfinite(play(adapter, case.stream.to(precision))).all()) and _finite_state(adapter)
        _require(
            finite,
            f"a model in {precision} gives numbers that are not finite; calculate in float32, or raise Unsupported",
        )


def survives_identical_images(case: Case) -> None:
    """Batches of one repeated, a black or a white image give finite scores and leave finite parameters."""
    adapter = case.build()
    same = case.stream[0, :1].expand(SIZE, -1, -1, -1)
    for batch in (same, torch.zeros_like(same), torch.ones_like(same), case.stream[1]):
        finite = bool(torch.isfinite(play(adapter, [batch])).all()) and _finite_state(adapter)
        _require(finite, "identical images give numbers that are not finite; guard divisions by their spread")


def shows_what_is_not_finite(case: Case) -> None:
    """Images with NaN give scores that are not finite, or an error; reset() recovers."""
    adapter = case.build()
    play(adapter, case.stream[:1])
    try:
        answer = adapter.predict(torch.full_like(case.stream[0], torch.nan))
    except Exception:  # noqa: BLE001 - an error is equally acceptable
        answer = torch.tensor(torch.nan)
    sentence = "images with NaN give finite scores; let NaN through, so that the run can report it"
    _require(not bool(torch.isfinite(answer).all()), sentence)
    adapter.reset()
    _require_same(
        play(adapter, case.stream),
        case.answers,
        "reset() does not recover from images with NaN; keep all state on self",
    )


def shows_a_broken_model(case: Case) -> None:
    """Where a model with a NaN in its weights gives scores that are not finite, so does the adapter, or an error."""
    for place in ("first parameter", "head's weight", "head's bias"):
        model = example_model(case.model)
        head = head_of(model)
        values = {"first parameter": next(model.parameters()), "head's weight": head.weight, "head's bias": head.bias}
        with torch.no_grad():
            values[place].view(-1)[0] = torch.nan
            broken = ~torch.isfinite(model(case.stream.flatten(0, 1))).all(1)
        try:
            answers = play(case.build(model), case.stream)
        except Broken:
            raise
        except Exception:  # noqa: BLE001 - an error is equally acceptable
            continue
        hidden = torch.isfinite(answers).all(1) & broken
        _require(
            not bool(hidden.any()),
            f"a model with NaN in its {place} gets finite scores; return NaN where the model's scores are not finite",
        )


def refuses_images_outside_the_contract(case: Case) -> None:
    """A batch of 0 images, integers, float64 for a float32 model and a single image [3, h, w] raise ValueError.

    They change nothing. The base class does this for each `predict` that a class defines.
    """
    adapter = case.build()
    first = play(adapter, case.stream[:1])
    batch = case.stream[1]
    refused = {
        "a batch of 0 images": batch[:0],
        "uint8 images": batch.mul(255).to(torch.uint8),
        "float64 images for a float32 model": batch.double(),
        "an image without a batch dimension": batch[0],
    }
    for what, images in refused.items():
        try:
            adapter.predict(images)
        except ValueError:
            continue
        except Exception as error:
            kind = type(error).__name__
            raise Broken(f"{what} gave {kind}; call methods.base.check_images first in predict") from error
        raise Broken(f"{what} gave an answer; call methods.base.check_images first in predict")
    found = torch.cat([first, play(adapter, case.stream[1:])])
    _require_same(found, case.answers, "refused images change later predictions; refuse them before anything else")


def does_not_grow(case: Case) -> None:
    """The size of its state stays constant along a long stream, and it keeps no graph of past batches."""
    adapter = case.build()
    sizes, tensors = [], []
    # Existing objects do not count, and scanning them each time would take most of the time.
    gc.freeze()
    try:
        for _ in range(4):
            play(adapter, case.stream[:, :2])
            file = io.BytesIO()
            torch.save(adapter.state_dict(), file)
            sizes.append(len(file.getvalue()))
            gc.collect()
            tensors.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    finally:
        gc.unfreeze()
    # A counter may grow by a digit.
    _require(
        max(sizes[2:]) <= max(sizes[:2]) + 64 and max(tensors[2:]) <= max(tensors[:2]) + 4,
        f"the state grows along the stream ({sizes} bytes of state, {tensors} tensors); keep a bounded memory, "
        "and set a small one in checked_with",
    )
    for name, value in vars(adapter).items():
        for tensor in value if isinstance(value, list | tuple) else [value]:
            graph = isinstance(tensor, Tensor) and tensor.grad_fn is not None
            _require(not graph, f"self.{name} keeps the graph of past batches; keep a detached copy")


CHECKS: tuple[Callable[[Case], None], ...] = (
    answers_every_image,
    takes_single_images,
    reset_replays,
    reset_recovers_from_an_error,
    resumes_from_a_file,
    leaves_the_callers_model_alone,
    ignores_modes_and_outer_no_grad,
    uses_its_own_generator_alone,
    lives_beside_another,
    survives_huge_logits,
    survives_half_precision,
    takes_models_in_half_precision,
    survives_identical_images,
    shows_what_is_not_finite,
    shows_a_broken_model,
    refuses_images_outside_the_contract,
    does_not_grow,
)


def conform(
    adapter: type[Adapter],
    config: Any = None,
    models: Sequence[str] | None = None,
    checks: Sequence[Callable[[Case], None]] = CHECKS,
) -> Iterator[Finding]:
    """Run the checks on an adapter class with example models; yield each result as soon as it is known.

    `models`: by default EXAMPLES and that of the recipe which it `needs`.

    `config`: its options, by default those of `checked_with`. A ValueError from `prepare` means that it refuses the
    model (for example, for lack of normalisation layers); a class that refuses every model fails.
    """
    problem = _problem(adapter)
    if problem is not None:
        yield Finding("declares_itself", "", "failed", problem)
        return
    config = adapter.Config(**adapter.checked_with) if config is None else config
    accepted = False
    for model in examples_for(adapter.needs) if models is None else models:
        case = Case(adapter, config, model)
        supported, reason = adapter.supports(example_model(model), config, source_for(adapter, torch.empty(0)))
        if not supported:
            yield Finding("supports", model, "refused", reason)
            continue
        accepted = True
        for check in checks:
            yield _find(check, case)
    if not accepted:
        yield Finding("supports", "", "failed", "it refuses every example model; make `configure` accept one of them")


def _find(check: Callable[[Case], None], case: Case) -> Finding:
    try:
        check(case)
    except Broken as error:
        return Finding(check.__name__, case.model, "failed", str(error))
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and the other checks must run
        return Finding(check.__name__, case.model, "failed", f"{type(error).__name__}: {error}")
    return Finding(check.__name__, case.model, "passed")


def _problem(adapter: type[Adapter]) -> str | None:
    """Return why a class cannot be tested at all, or None."""
    config = cast(Any, adapter.Config)
    if not (is_dataclass(config) and cast(Any, config).__dataclass_params__.frozen):
        return "Config is not a frozen dataclass; write @dataclass(frozen=True) above it"
    try:
        cast(Any, config)()
    except TypeError:
        return "an option has no default; give every field of Config one"
    unknown = adapter.checked_with.keys() - {field.name for field in fields(config)}
    if unknown:
        return f"checked_with names {', '.join(sorted(unknown))}, which Config does not have; correct it"
    return None
