"""Splits, parts and protocols: which part of a run sees which image, and in what order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.core.conditions import CLEAN, Condition
from bench.core.errors import UsageError
from bench.shifts import load_shift
from bench.shifts.shift import adapt_pool, labelled_source, limit_ids, pick_corruptions, split_ids

DIGITS = load_shift("digits-c")
FOG, NOISE = Condition("fog", 3), Condition("gaussian_noise", 3)


def test_parts_of_the_digits_are_disjoint_complete_and_balanced() -> None:
    parts = {part: set(DIGITS.ids(part).tolist()) for part in ("train", "dev", "test")}
    assert len(parts["train"] | parts["dev"] | parts["test"]) == sum(map(len, parts.values())) == 1797
    for ids in parts.values():
        counts = np.bincount(DIGITS.labels(np.array(sorted(ids))))
        assert counts.max() - counts.min() <= 5


@pytest.mark.parametrize("split", ["disjoint", "dev"])
def test_adapted_and_scored_images_never_meet(split: str) -> None:
    adapt, score = split_ids(DIGITS.ids("test"), split)
    assert not set(adapt.tolist()) & set(score.tolist())
    assert len(adapt) == len(score) == 350


def test_joint_scores_the_adapted_half_and_transductive_everything() -> None:
    ids = DIGITS.ids("test")
    adapt, score = split_ids(ids, "joint")
    assert np.array_equal(adapt, score)
    assert np.array_equal(adapt, ids[::2])
    adapt, score = split_ids(ids, "transductive")
    assert np.array_equal(adapt, ids)
    assert np.array_equal(score, ids)


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'disjoint'"):
        split_ids(DIGITS.ids("test"), "disjoin")


def test_the_same_image_has_the_same_pixels_in_every_company() -> None:
    ids = DIGITS.ids("test")[:9]
    together = DIGITS.images(ids, NOISE)
    alone = torch.cat([DIGITS.images(ids[i : i + 1], NOISE) for i in range(9)])
    backwards = DIGITS.images(ids[::-1].copy(), NOISE).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)
    assert not torch.equal(together[0], DIGITS.images(ids[:1], Condition("gaussian_noise", 2))[0])


def test_a_digest_names_ids_and_condition() -> None:
    ids = DIGITS.ids("test")
    digests = {
        DIGITS.digest(part, c) for part in (ids[:5], ids[5:10]) for c in (CLEAN, FOG, NOISE, Condition("fog", 4))
    }
    assert len(digests) == 8
    assert DIGITS.digest(ids[:5], FOG) == DIGITS.digest(ids[:5].copy(), FOG)


def test_limits_spread_over_the_sorted_list() -> None:
    assert limit_ids(np.arange(100), 3).tolist() == [0, 50, 99]
    assert limit_ids(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert len(set(limit_ids(np.arange(1000), 37).tolist())) == 37


def test_the_pool_has_every_condition_and_no_label() -> None:
    ids = DIGITS.ids("test")[:4]
    pool = adapt_pool(DIGITS, ids, (FOG, NOISE))
    assert torch.equal(pool.images, torch.cat([DIGITS.images(ids, FOG), DIGITS.images(ids, NOISE)]))
    assert set(vars(pool)) == {"images", "digest", "photographs"}
    with pytest.raises(UsageError, match="at least one corruption"):
        adapt_pool(DIGITS, ids, ())


def test_labelled_images_are_clean_balanced_and_move_with_the_seed() -> None:
    first, again, other = (labelled_source(DIGITS, 7, seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert torch.bincount(first.labels).tolist() == [7] * 10
    train = DIGITS.images(DIGITS.ids("train"), CLEAN)
    assert all((train == image).flatten(1).all(1).any() for image in first.images[:10])
    assert len(labelled_source(DIGITS, None, 0)) == 697
    with pytest.raises(UsageError, match="lower --labels"):
        labelled_source(DIGITS, 68, 0)


def test_dev_runs_use_the_tuning_corruptions() -> None:
    assert pick_corruptions(DIGITS, None, "dev") == ("speckle_noise", "gaussian_blur")
    assert pick_corruptions(DIGITS, None, "disjoint") == DIGITS.corruptions
    assert pick_corruptions(DIGITS, ["jpeg", "fog"], "disjoint") == ("fog", "jpeg_compression")
    with pytest.raises(UsageError, match=r"did you mean|has no corruption|nearest"):
        pick_corruptions(DIGITS, ["frogg"], "disjoint")


def test_a_group_stands_for_its_members_among_those_of_the_split() -> None:
    noises = ("gaussian_noise", "shot_noise", "impulse_noise")
    assert pick_corruptions(DIGITS, ["noise"], "disjoint") == noises
    assert pick_corruptions(DIGITS, ["fog", "noise"], "disjoint") == (*noises, "fog")
    assert pick_corruptions(DIGITS, ["extra"], "dev") == DIGITS.tuning_corruptions
    for group, split in (("extra", "disjoint"), ("noise", "dev")):
        with pytest.raises(UsageError, match=f"unknown corruption of digits-c '{group}'"):
            pick_corruptions(DIGITS, [group], split)
