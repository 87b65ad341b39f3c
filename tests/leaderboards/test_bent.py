"""Bundles bent in one place and consistent everywhere else: keys, settings and bits follow; one sentence refuses."""

from __future__ import annotations

import base64
import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.runs import publishing
from leaderboards.bundle import MAX_FILE, runs_of
from leaderboards.card import settings_of
from leaderboards.compact import Compact
from leaderboards.identity import key_of
from leaderboards.record import Record
from leaderboards.submit import check_file

Lines = list[dict[str, Any]]
Bend = Callable[[Lines], object]
ROOT = Path(publishing.__file__).parents[2]


def of_all(change: Callable[[dict[str, Any]], object], method: str | None = None) -> Bend:
    """A change of every record, or of those of one method."""

    def bend(lines: Lines) -> None:
        for line in lines[1:]:
            if method in (None, line["record"]["method"]):
                change(line["record"])

    return bend


def fields(**values: Any) -> Bend:
    return of_all(lambda record: record.update(values))


def data(**values: Any) -> Bend:
    return of_all(lambda record: record["data"].update(values))


def env(**values: Any) -> Bend:
    return of_all(lambda record: record["env"].update(values))


def options(method: str, **values: Any) -> Bend:
    return of_all(lambda record: record["options"].setdefault(method, {}).update(values))


def components(**values: str) -> Bend:
    return of_all(lambda record: record["components"].update(values))


def head(**values: Any) -> Bend:
    return lambda lines: lines[0].update(values)


def hits_of(line: dict[str, Any], n: int = 350) -> Any:
    return np.unpackbits(np.frombuffer(base64.b64decode(line["hits"]), np.uint8))[:n].astype(bool)


def set_hits(line: dict[str, Any], hits: Any) -> None:
    line["hits"] = base64.b64encode(np.packbits(hits).tobytes()).decode()
    line["record"]["metrics"]["accuracy"] = float(hits.mean())


def codes_of(line: dict[str, Any], n: int = 350) -> Compact:
    return Compact.of_bytes(base64.b64decode(line["probabilities"]), n)


def set_codes(line: dict[str, Any], **columns: Any) -> None:
    old = codes_of(line)
    names = ("confidence", "p_label", "sum_p2")
    new = Compact(*(np.asarray(columns.get(name, getattr(old, name)), dtype=np.uint16) for name in names))
    line["probabilities"] = base64.b64encode(new.to_bytes()).decode()


def lean(lines: Lines) -> None:
    """The bundle without probabilities and labels."""
    lines[0].pop("labels", None)
    for line in lines[1:]:
        line.pop("probabilities", None)


def repeated_ids(lines: Lines) -> None:
    """The easiest image again and again in place of others: the same set of ids, another multiset."""
    lean(lines)
    ids = np.array([first + step * i for first, step, n in lines[0]["images"]["images0"] for i in range(n)])
    again = np.sort(np.concatenate([ids, np.repeat(ids[0], 3150)]))
    lines[0]["images"]["images0"] = runs_of(again)
    for line in lines[1:]:
        hits = hits_of(line)
        set_hits(line, np.concatenate([np.ones(3150, dtype=bool), hits]))
        line["record"]["n"] = line["record"]["cost"]["forwards"] = len(again)


def swapped_ids(lines: Lines) -> None:
    lean(lines)
    ids = np.array([first + step * i for first, step, n in lines[0]["images"]["images0"] for i in range(n)])
    ids[1] = ids[0]
    lines[0]["images"]["images0"] = runs_of(ids)


def far_seeds(lines: Lines) -> None:
    for line in lines[1:]:
        line["record"]["seed"] *= 10**9


def all_right(clean: bool) -> Bend:
    def bend(lines: Lines) -> None:
        lean(lines)
        for line in lines[1:]:
            if (line["record"]["corruption"] is None) == clean:
                set_hits(line, np.ones(350, dtype=bool))

    return bend


def all_wrong(lines: Lines) -> None:
    lean(lines)
    for line in lines[1:]:
        if line["record"]["corruption"] is None:
            hits = np.zeros(350, dtype=bool)
            hits[:20] = True
            set_hits(line, hits)
            line["record"]["metrics"] |= {"nll": 5.0, "brier": 1.0}


def in_metrics(**changes: Callable[[float], float]) -> Bend:
    def bend(lines: Lines) -> None:
        for line in lines[1:]:
            for name, change in changes.items():
                line["record"]["metrics"][name] = change(line["record"]["metrics"][name])

    return bend


def other_labels(lines: Lines) -> None:
    labels = np.frombuffer(base64.b64decode(lines[0]["labels"]["images0"]), "<u2").copy()
    labels[0] = (labels[0] + 1) % 10
    lines[0]["labels"]["images0"] = base64.b64encode(labels.tobytes()).decode()


def sure_of_everything(lines: Lines) -> None:
    for line in lines[1:]:
        set_codes(line, confidence=np.full(350, 65535), p_label=np.zeros(350), sum_p2=np.full(350, 65535))


def unsure_hits(lines: Lines) -> None:
    for line in lines[1:]:
        set_codes(line, p_label=np.full(350, 30000))


def flat_squares(lines: Lines) -> None:
    for line in lines[1:]:
        set_codes(line, sum_p2=np.zeros(350))


def half_with_probabilities(lines: Lines) -> None:
    for line in lines[1::2]:
        line.pop("probabilities")


def as_version_1(lines: Lines) -> None:
    lines[0]["version"] = 1


def unused_images(lines: Lines) -> None:
    lines[0]["images"]["more"] = [[0, 1, 10]]


def many_images(lines: Lines) -> None:
    lines[0]["images"]["more"] = [[0, 1, 15_000_000]]


def ready(record: dict[str, Any]) -> None:
    record["weights"]["ready"] = True


def pooled(**changes: Any) -> Bend:
    """tent turned into tent_pool, with the history and so on that a change gives."""
    access = {"source": "none", "test": "pool", "state": "offline", "backprop": "norm"}

    def change(record: dict[str, Any]) -> None:
        record |= {"method": "tent_pool", "access": access, "track": "C", "options": {}}
        record["components"] = {
            {"method:source": "method:tent_pool"}.get(name, name): version
            for name, version in record["components"].items() if name != "method:tent"
        }  # fmt: skip
        record["data"] |= changes

    return of_all(change, "tent")


CASES: dict[str, tuple[Bend, str]] = {
    # 3. multisets
    "an easy image many times": (repeated_ids, "each once"),
    "one image in the place of another": (swapped_ids, "each once"),
    "a condition twice in the history": (
        pooled(history=["fog@3", "fog@3"], seen="a" * 32), "names a condition twice"),
    # 6. availability
    "seeds a billion apart": (far_seeds, "the seeds have gaps"),
    "a seed without end": (fields(seed=2**62), "less than or equal"),
    "a seed beyond the limit": (of_all(lambda r: r.update(seed=r["seed"] + 2**40)), "has a seed above"),
    "labels of 300 digits": (data(labels_per_class=10**300), "labels_per_class"),
    "labels without sense": (data(labels_per_class=10**9), "number of labels above"),
    "a batch of 300 digits": (fields(batch_size=10**300), "batch_size"),
    "a batch without sense": (fields(batch_size=10**8), "batch size above"),
    "an option of 300 digits": (options("source", epochs=10**300), "options must not hold"),
    "n of 300 digits": (fields(n=10**300), "less than or equal"),
    "a data seed of 300 digits": (data(seed=10**300), "data.seed"),
    "a history without end": (data(history=["fog@3"] * 20_000), "at most 10000"),
    "env without end": (env(**{f"k{i}": "x" for i in range(11_000)}), "at most 10000"),
    "options without end": (options("source", **{"x" * 2000: 1}), "at most 1000"),
    "a date without end": (fields(created="2026-11-22T20:00:00Z" + "0" * 10_000), "at most 64"),
    "a connectivity without end": (
        fields(connectivity={"n": 5, "positions": [0.5] * 20_000, "lines": []}), "connectivity"),
    "a connectivity of unequal lengths": (
        fields(connectivity={"n": 5, "positions": [0.0, 0.5, 1.0],
                             "lines": [{"first": "a", "second": "b", "accuracy": [0.1] * 4}]}),
        "one accuracy for each"),
    "a mixture that overflows": (fields(mixture={"ingredients": ["a"], "shares": {"all": [1e308]}}), "mixture"),
    "a set of images that no record has": (unused_images, "which no record has"),
    "more images than the file can hold": (many_images, "declares more than"),
    # 2. words
    "a protocol that looks like another": (fields(protocol="reset_each-shift"), "has no protocol of the project"),
    "a protocol with a default spelled out": (fields(protocol="continual:order=given"), "has no protocol"),
    "a protocol in capitals": (fields(protocol="Reset_each_shift"), "has no protocol"),
    "a protocol with a space": (fields(protocol="reset_each_shift "), "has no protocol"),
    "a protocol with a parameter of its own": (fields(protocol="episodic:x=1"), "has no protocol"),
    "a protocol that draws its images": (fields(protocol="label_shifts"), "draws its images"),
    "a free precision": (fields(precision="fp64-exact"), "has precision fp64-exact"),
    "an old float": (fields(precision="FP32"), "has precision FP32"),
    "a free storage": (data(storage="uint8-hd"), "storage and profile"),
    "a free profile": (data(profile="digits32-easy"), "storage and profile"),
    "tiles of a shift without tiles": (data(tiles="mine-12"), "has other tiles"),
    "an order of classes": (data(classes="imagefolder"), "--classes, --label or --part"),
    "a part of the data": (data(part="validation"), "--classes, --label or --part"),
    "a column of labels with a path": (data(label="a/../b"), "leaves its folder"),
    "a column of labels with spaces": (data(label="my label"), "--classes, --label or --part"),
    "another data seed": (data(seed=1), "corruption seed 1"),
    "a digest that is none": (data(digest="sha256:zz"), "without a SHA-256"),
    "labels that are no digest": (data(labels="all of them"), "without a digest"),
    "images met before that are no digest": (pooled(history=["fog@3"], seen="x"), "without a digest"),
    "images met before of no condition": (data(seen="a" * 32), "of no condition"),
    "a history that the access does not give": (data(history=["fog@3"], seen="a" * 32), "access and protocol"),
    "a pool without a history": (pooled(), "has a history that its access"),
    "another shift seen and called one's own": (
        pooled(history=["fog@3 of cifar10-c"], seen="a" * 32), "has a history that its access"),
    "another shift beside one's own that no option names": (
        pooled(history=["fog@3", "fog@3 of cifar10-c"], seen="a" * 32), "has a history that its access"),
    "some conditions of another shift": (
        pooled(history=["fog@3 of cifar10-c"], seen="a" * 32), "has met some conditions of cifar10-c only"),
    "a shift that nobody knows": (
        pooled(history=["fog@3 of nowhere"], seen="a" * 32), "has met fog@3, which nowhere does not report"),
    "a suite that is a claim": (env(suite="the best v1, changed: nothing!"), "has no suite in env"),
    "a pool of clean images": (pooled(history=["clean"], seen="a" * 32), "has met clean"),
    "an unknown option": (options("tent", turbo=1), "has the option tent.turbo, which is unknown"),
    "an option that is text": (options("tent", lr="0.01"), "a value of tent.lr that it never takes"),
    "an option that is a list": (options("tent", lr=[0.01]), "a value of tent.lr"),
    "an option that is huge": (options("tent", lr=1e300), "a value of tent.lr"),
    "a truth in place of a number": (options("tent", steps=True), "a value of tent.steps"),
    "an optimiser of one's own": (options("tent", optimizer="magic"), "a value of tent.optimizer"),
    "a nested option": (options("source", flip={"a": {"b": 1}}), "a value of source.flip"),
    "nothing where nothing is taken": (options("source", epochs=None), "a value of source.epochs"),
    "options of another method": (options("sar", lr=0.1), "has options of sar"),
    "a method with its implied recipe": (
        of_all(lambda r: r.update(method="source+tent"), "tent"), "is published as tent"),
    "a method the other way round": (
        of_all(lambda r: r.update(method="tent+source"), "tent"), "is published as tent"),
    "a part of a method without parts": (of_all(lambda r: r.update(part="soup"), "tent"), "is a part of tent"),
    "a part named like a claim": (
        of_all(lambda r: r.update(part="reproduced by the authors"), "source"), "is a part of source"),
    "a key of env": (env(note="best ever"), "has note in env, which is unknown"),
    "a version in words": (env(torch="the newest"), "has no torch in env"),
    "a platform with markup": (env(platform="Linux`x`"), "has no platform in env"),
    "a truth as a version": (env(python=True), "has no python in env"),
    "a device with a claim": (
        of_all(lambda r: r["cost"].update(device_name="cpu; reproduced by maintainers!")), "names its device"),
    "a component too many": (components(**{"method:sar": "1"}), "says that other code made it"),
    "a component too few": (of_all(lambda r: r["components"].pop("method:source")), "says that other code made it"),
    "no corruption among components": (
        of_all(lambda r: [r["components"].pop(n) for n in list(r["components"]) if n.startswith("corr")]),
        "says that other code made it"),
    "a version of the future": (components(harness="99"), "has version 99 of harness"),
    "an edited component": (components(harness="1+0123456789abcdef"), "has version 1+0123456789abcdef"),
    "a date in the future": (fields(created="2199-01-01T00:00:00+00:00"), "cannot have been made"),
    "a date before the project": (fields(created="1970-01-01T00:00:00Z"), "cannot have been made"),
    "a date in weeks": (fields(created="2026-W48-1T00:00:00Z"), "has a date that is not like"),
    "a model with spaces": (fields(model="digits (official)"), "names its model"),
    "a model in other letters": (fields(model="dіgits"), "names its model"),
    "a model that climbs": (fields(model="a/..b"), "names its model"),
    "known weights under another name": (fields(model="mine.safetensors"), "under the name mine.safetensors"),
    "a known model with other weights": (
        of_all(lambda r: r["weights"].update(digest="sha256:" + "0" * 64)), "are not those of digits"),
    "a classifier that needs no recipe": (of_all(ready), "has options of source"),
    "a severity between": (of_all(lambda r: r["corruption"] and r.update(severity=3.5)), "no published condition"),
    "a natural condition": (
        of_all(lambda r: r["corruption"] == "fog" and r.update(corruption="natural", severity=3.0)),
        "no published condition natural@3"),
    # 5. texts
    "a name that turns the line": (of_all(lambda r: r.update(part="a\u202eb"), "tent"), "part"),
    "a name in full width": (of_all(lambda r: r.update(part="＝1+1"), "tent"), "part"),
    "a name with C1 controls": (of_all(lambda r: r.update(part="a\x9b2Jb"), "tent"), "part"),
    "a name that hides": (of_all(lambda r: r.update(part="a\u200bb"), "tent"), "an invisible character"),
    "a name of tags": (of_all(lambda r: r.update(part="a\U000e0041b"), "tent"), "an invisible character"),
    "a card that hides": (head(card="fine\u2066"), "an invisible character"),
    "a card with C1 controls": (head(card="fine\x9b2J"), "an invisible character"),
    "a submitter that is a sentence": (head(submitter="the maintainers"), "submitter"),
    "weights at a script": (head(weights="javascript:alert(1)"), "weights"),
    "weights at an unsafe link": (head(weights="https://x.y/<b>"), "weights"),
    "weights at a moving revision": (head(weights="hf:a/b@main"), "weights"),
    # 4. numbers
    "an ECE of nothing": (in_metrics(ece=lambda value: 0.0), "says ece 0.0, its probabilities give"),
    "an ECE a little better": (in_metrics(ece=lambda value: value - 1e-3), "its probabilities give"),
    "an NLL a little better": (in_metrics(nll=lambda value: value - 1e-2), "says nll"),
    "a Brier score a little better": (in_metrics(brier=lambda value: value - 1e-3), "says brier"),
    "probabilities of a model that is always sure": (sure_of_everything, "its probabilities give"),
    "right answers that are improbable": (unsure_hits, "a right answer that is not the most probable class"),
    "squares that sum to nothing": (flat_squares, "a sum of squares"),
    "probabilities of some records": (half_with_probabilities, "only some records have probabilities"),
    "probabilities cut off": (
        lambda lines: lines[1].update(probabilities=lines[1]["probabilities"][:-8]), "350 images take"),
    "probabilities that are no base64": (
        lambda lines: lines[1].update(probabilities="!" * len(lines[1]["probabilities"])), "are not base64"),
    "version 2 that calls itself 1": (as_version_1, "belong to version 2"),
    "other labels beside the digest": (other_labels, "has other labels than the digest"),
    "labels of no images": (
        lambda lines: lines[0]["labels"].update(more="AAAA"), "which is no set of images"),
    "all clean images right": (all_right(True), "these weights reach 97.0% at best"),
    "all corrupted images right": (all_right(False), "the best clean accuracy beside it"),
    "clean images hardly right": (all_wrong, "at least 30.0% is expected"),
}  # fmt: skip


def consistent(lines: Lines) -> Lines:
    """Return lines whose keys, file names and settings follow from the records again, where these can be read."""
    for line in lines[1:]:
        record = line["record"]
        try:
            record["key"] = key_of(record)
        except (TypeError, ValueError, KeyError, OverflowError):
            continue
        record["predictions"] = f"predictions/{record['key']}.npz"
    try:
        found = [Record.from_content(line["record"]) for line in lines[1:]]
        lines[0]["settings"] = settings_of(found)
    except ValueError:
        pass
    return lines


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_bent_in_one_place(submission: Path, name: str) -> None:
    bend, expected = CASES[name]
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    bend(lines)
    submission.write_text("".join(json.dumps(line) + "\n" for line in consistent(lines)))
    problems = [problem.message for problem in check_file(submission, publishing.checker())[1]]
    assert any(expected in message for message in problems), problems[:5]
    assert all("; " in message and len(message) < 600 for message in problems), problems[:5]


def test_the_unbent_bundle_passes_with_and_without_probabilities(submission: Path) -> None:
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    assert check_file(submission, publishing.checker())[1] == []
    lean(lines)
    submission.write_text("".join(json.dumps(line) + "\n" for line in consistent(lines)))
    bundle, problems = check_file(submission, publishing.checker())
    assert problems == []
    assert bundle is not None
    assert not bundle.recomputed


@pytest.mark.parametrize("bend", [far_seeds, many_images])
def test_a_small_file_takes_little_memory(submission: Path, bend: Bend) -> None:
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    bend(lines)
    submission.write_text("".join(json.dumps(line) + "\n" for line in consistent(lines)))
    code = (
        "import resource, sys; from pathlib import Path; from bench.runs import publishing\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "sys.exit(publishing.check(Path(sys.argv[1]), None, as_json=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(submission)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (4, "")
    assert submission.stat().st_size < MAX_FILE


def _leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*place, name))]
    return [place]


@pytest.mark.parametrize("seed", range(40))
def test_no_change_of_any_value_raises(submission: Path, seed: int) -> None:
    """Any leaf of a record or of the head becomes something odd: a problem or nothing, never an exception."""
    rng = random.Random(seed)
    odd = [None, True, -1, 0, 10**30, -1e308, 1e-320, "", "x", "=1", "\u202e", [], [[]], {}, {"": None}, "9" * 500]
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    target = copy.deepcopy(lines)
    line = target[rng.choice([0, 1, 2, 3])]
    place = rng.choice(_leaves(line.get("record", line)))
    home = line.get("record", line)
    for step in place[:-1]:
        home = home[step]
    home[place[-1]] = rng.choice(odd)
    submission.write_text("".join(json.dumps(each) + "\n" for each in target))
    _, problems = check_file(submission, publishing.checker())
    assert not any("cannot be checked" in problem.message for problem in problems)
