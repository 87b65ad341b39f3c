"""Protocols: the order of images, the resets of adapters and the parsing of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.evaluation.protocols import PROTOCOLS, Segment, by_class, chains, parse_protocol, plan_stream
from bench.planning.plan import make_plan
from bench.runs.repeat import spec_of
from bench.runs.run import Outcome
from bench.settings.run_spec import make_spec
from bench.shifts import load_shift
from bench.shifts.shift import blended
from corruptions import corrupt

IDS = np.arange(100, 140)
LABELS = np.tile(np.arange(4), 10)
FOG, NOISE = ([Condition(name, level) for level in (1, 3, 5)] for name in ("fog", "gaussian_noise"))
CONDITIONS = (CLEAN, *FOG, *NOISE)
TWO = (CLEAN, FOG[2], NOISE[2])
EACH_ONCE = [name for name in PROTOCOLS if name not in ("label_shifts", "ccc_uncalibrated")]


def plan(text: str, conditions: tuple[Condition, ...] = CONDITIONS, seed: int = 3) -> list[Segment]:
    return plan_stream(parse_protocol(text), conditions, IDS, LABELS, seed)


def seen(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(str(s.conditions[k]), int(i)) for s in segments for k, i in zip(s.which, s.ids, strict=True)]


@pytest.mark.parametrize("name", EACH_ONCE)
def test_every_image_comes_once_under_each_condition_in_a_seeded_order(name: str) -> None:
    first = seen(plan(name))
    assert len(first) == len(set(first)) == 40 * 7
    assert first == seen(plan(name))
    assert first != seen(plan(name, seed=4))
    assert not any(np.array_equal(s.ids, np.sort(s.ids)) for s in plan(name))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_segment_holds_numbers_and_no_labels(name: str) -> None:
    for segment in plan(name, CONDITIONS if name == "gradual" else TWO):
        arrays = [v for v in vars(segment).values() if isinstance(v, np.ndarray)]
        assert all(array.dtype == np.int64 and array.shape == segment.ids.shape for array in arrays)
        assert not any(np.array_equal(array, LABELS[segment.ids - 100]) for array in arrays)


def test_resets_are_where_the_protocol_says() -> None:
    resets = {name: [s.reset for s in plan(name, TWO)] for name in PROTOCOLS if name != "gradual"}
    assert resets == {
        "reset_each_shift": [True, True, True],
        "episodic": [True, True, True],
        "continual": [True, True, False],
        "mixed_domains": [True, True],
        "correlated": [True, True, False],
        "mixed_domains_correlated": [True, True],
        "label_shifts": [True, True, True],
        "ccc_uncalibrated": [True, True],
    }
    assert [s.reset for s in plan("gradual")] == [True, True, False]
    assert [len(chain) for chain in chains(plan("continual", TWO))] == [1, 2]
    assert [s.episodic for name in PROTOCOLS if name != "gradual" for s in plan(name, TWO)].count(True) == 3


def test_continual_orders() -> None:
    def order(text: str, seed: int = 0) -> list[str]:
        return [str(s.conditions[0]) for s in plan(text, seed=seed)]

    given = [str(c) for c in CONDITIONS]
    assert order("continual") == given
    assert order("continual:order=gaussian_noise/fog") == [given[0], *given[4:], *given[1:4]]
    orders = {tuple(order("continual:order=seeded", seed)) for seed in range(4)}
    assert len(orders) > 1
    assert all(sorted(o) == sorted(given) and o[0] == "clean" for o in orders)
    for wrong in ("fog", "fog/fog/gaussian_noise", "fog/snow"):
        with pytest.raises(UsageError, match="fog/gaussian_noise"):
            order(f"continual:order={wrong}")


def test_gradual_swells_and_fades() -> None:
    _, fog, noise = plan("gradual")
    runs = [int(k) for i, k in enumerate(fog.which) if i == 0 or fog.which[i - 1] != k]
    assert [fog.conditions[k].severity for k in runs] == [1, 3, 5, 3, 1]
    assert {c.corruption for c in noise.conditions} == {"gaussian_noise"}
    assert Counter(fog.which.tolist()) == {0: 40, 1: 40, 2: 40}
    with pytest.raises(UsageError, match="--severity 1-5"):
        plan("gradual", TWO)


def runs_of(labels: np.ndarray) -> int:
    return 1 + int((np.diff(labels) != 0).sum())


def test_without_delta_classes_come_sorted() -> None:
    for segment in plan("correlated", TWO):
        assert LABELS[segment.ids - 100].tolist() == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    mixed = plan("mixed_domains_correlated", TWO)[1]
    assert LABELS[mixed.ids - 100].tolist() == sorted([0, 1, 2, 3] * 20)
    assert runs_of(mixed.which) > 10


def test_more_delta_mixes_more_and_rare_classes_stay() -> None:
    labels = np.repeat(np.arange(20), 50)
    labels[:49] = 1  # one image of class 0
    runs = []
    for delta in (0, 0.01, 0.1, 1.0, 100.0):
        order = by_class(labels, delta, np.random.default_rng(0))
        assert np.array_equal(np.sort(order), np.arange(1000))
        runs.append(runs_of(labels[order]))
    assert runs == sorted(runs)
    assert runs[0] == 20
    assert runs[-1] > 300


def test_label_shifts_follow_the_ratio() -> None:
    ids, labels = np.arange(4000), np.tile(np.arange(4), 1000)
    for ratio, share in ((1, 0.25), (3, 0.5), (500000, 1.0)):
        protocol = parse_protocol(f"label_shifts:ratio={ratio}")
        streams = plan_stream(protocol, TWO, ids, labels, seed=1)
        assert all(np.array_equal(streams[0].ids, s.ids) for s in streams)
        turns = labels[streams[0].ids].reshape(4, 1000)
        likeliest = [np.bincount(turn, minlength=4) for turn in turns]
        if ratio > 1:
            assert sorted(int(counts.argmax()) for counts in likeliest) == [0, 1, 2, 3]
        assert np.mean([counts.max() for counts in likeliest]) / 1000 == pytest.approx(share, abs=0.03)
    pure = streams[0].ids
    assert len(set(pure.tolist())) > 3990  # all images of a class are drawn before one comes twice


def test_ccc_walks_from_one_corruption_to_the_next() -> None:
    third = Condition("contrast", 5)
    segment = plan("ccc_uncalibrated:speed=2,images=90", (*TWO, third))[1]
    assert segment.conditions == (Condition("ccc_uncalibrated", 5),)
    assert segment.blend is not None
    assert segment.blend.tolist() == [i // 2 for i in range(90)]
    assert len(segment.blends) == 45
    first, second = segment.blends[1][0].corruption, segment.blends[1][1].corruption
    assert segment.blends[0] == (Condition(first, 5),)
    assert segment.blends[1] == (Condition(first, 4.75), Condition(second, 0.25))
    assert segment.blends[19] == (Condition(first, 0.25), Condition(second, 4.75))
    assert segment.blends[20] == (Condition(second, 5),)
    assert first != second
    assert Counter(segment.ids[:80].tolist()) == dict.fromkeys(IDS.tolist(), 2)
    assert len(plan("ccc_uncalibrated", TWO)[1].ids) == 80
    for wrong in (TWO[:2], CONDITIONS):
        with pytest.raises(UsageError, match="two corruptions or more and one severity"):
            plan("ccc_uncalibrated", wrong)


def test_a_blend_is_one_corruption_after_the_other() -> None:
    digits = load_shift("digits-c")
    ids = digits.ids("test")[:3]
    fog, noise = Condition("fog", 1.25), Condition("gaussian_noise", 3.75)
    how = {"seed": 0, "ids": ids.tolist(), "profile": "digits32"}
    expected = corrupt(corrupt(digits.images(ids, CLEAN), "fog", 1.25, **how), "gaussian_noise", 3.75, **how)  # type: ignore[arg-type]
    assert torch.equal(blended(digits, ids, (fog, noise)), expected)
    assert torch.equal(blended(digits, ids, (fog,)), digits.images(ids, fog))
    assert not torch.equal(blended(digits, ids, (noise, fog)), expected)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("correlated:delta=0.10", "correlated:delta=0.1"),
        ("correlated:delta=0", "correlated"),
        (" label_shifts : ratio = 10 ", "label_shifts:ratio=10"),
        ("ccc_uncalibrated:speed=20,images=100", "ccc_uncalibrated:speed=20,images=100"),
        ("ccc_uncalibrated:images=100,speed=20", "ccc_uncalibrated:speed=20,images=100"),
        ("continual:order=given", "continual"),
    ],
)
def test_one_protocol_has_one_text(text: str, canonical: str) -> None:
    assert str(parse_protocol(text)) == canonical
    assert parse_protocol(canonical) == parse_protocol(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("continul", "did you mean 'continual'"),
        ("correlated:delt=1", "did you mean 'delta'"),
        ("correlated:delta", "NAME:parameter=value"),
        ("correlated:delta=-1", "at least 0"),
        ("correlated:delta=many", "must be a number"),
        ("label_shifts:ratio=0.5", "at least 1"),
        ("ccc_uncalibrated:speed=0", "at least 1"),
        ("episodic:delta=1", "no parameters"),
    ],
)
def test_a_wrong_protocol_is_refused_in_words(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("text", "severity", "done"),
    [
        ("gradual", "2,4", 5),
        ("correlated:delta=0.1", "3", 3),
        ("mixed_domains_correlated", "3", 3),
        ("label_shifts:ratio=10", "3", 3),
        ("continual:order=contrast/fog", "3", 3),
        ("ccc_uncalibrated:speed=3", "3", 2),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_run_under_every_protocol_gives_records_that_can_be_planned_again(
    text: str, severity: str, done: int, batch_size: int, settings: dict[str, Any], run_quick: Callable[..., Outcome]
) -> None:
    changes = {"method": "tent", "protocol": text, "severity": severity, "batch_size": batch_size, "limit": 6}
    outcome = run_quick(settings, **changes)
    assert (outcome.done, outcome.failed) == (done, 0)
    assert outcome.board().rows[0].accuracy is not None
    for record in outcome.records():
        assert record.protocol == text
        if not record.clean:
            assert record.key in make_plan(make_spec(spec_of(record), {"stock": settings["stock"]})).keys


def test_parameters_move_keys(settings: dict[str, Any]) -> None:
    texts = ["correlated", "correlated:delta=0.1", "label_shifts", "label_shifts:ratio=2", "continual:order=seeded"]
    texts += [f"ccc_uncalibrated:{p}" for p in ("speed=2", "speed=3", "images=9")]
    keys = [frozenset(make_plan(make_spec({**settings, "protocol": text})).keys) for text in texts]
    assert len(set(keys)) == len(keys)
    again = make_plan(make_spec({**settings, "protocol": "correlated:delta=0.0"})).keys
    assert frozenset(again) == keys[0]
