"""Makers of records and predictions, so that a test says only what it is about."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import leaderboards
from leaderboards import Predictions, Record, Store, make_bundle, score, write_bundle
from leaderboards.identity import key_of, labels_digest

Content = dict[str, Any]
MakePredictions = Callable[..., Predictions]


@pytest.fixture(scope="session")
def make_predictions() -> MakePredictions:
    """Predictions of given hits (or of random ones), with consistent probabilities over ten classes."""

    def make(n: int = 50, *, hits: Any = None, seed: int = 0, ids: Any = None, labels: Any = None) -> Predictions:
        rng = np.random.default_rng(seed)
        label = np.arange(n) % 10 if ids is None else np.asarray(ids) % 10
        label = label if labels is None else np.asarray(labels)
        right = rng.random(n) < 0.6 if hits is None else np.asarray(hits, dtype=bool)
        predicted = np.where(right, label, (label + 1) % 10)
        probabilities = rng.dirichlet(np.ones(10), n)
        top = probabilities.argmax(axis=1)
        rows = np.arange(n)
        probabilities[rows, top], probabilities[rows, predicted] = (
            probabilities[rows, predicted],
            probabilities[rows, top],
        )
        return Predictions(
            id=np.arange(n) if ids is None else np.asarray(ids, dtype=np.int64),
            label=label,
            predicted=predicted,
            confidence=probabilities[rows, predicted].astype(np.float32),
            p_label=probabilities[rows, label].astype(np.float32),
            sum_p2=np.square(probabilities).sum(axis=1).astype(np.float32),
        )

    return make


@pytest.fixture
def content() -> Content:
    """The fields of a valid done record, as JSON would hold them."""
    return done_record()


def done_record() -> Content:
    return keyed(
        {
            "schema": 3,
            "created": "2026-11-22T20:00:00Z",
            "status": "done",
            "method": "tent",
            "part": None,
            "access": {"source": "none", "test": "stream", "state": "online", "backprop": "norm"},
            "track": "A",
            "shift": "imagenet-c",
            "corruption": "fog",
            "severity": 5,
            "model": "resnet50.tv_in1k",
            "protocol": "reset_each_shift",
            "split": "disjoint",
            "seed": 0,
            "batch_size": 64,
            "precision": "fp32",
            "options": {"tent": {"lr": 0.00025, "layers": ["bn", None], "steps": 1}},
            "components": {"harness": "1", "method:tent": "1"},
            "limit": None,
            "n": 50,
            "metrics": {"accuracy": 0.43, "nll": 2.81, "ece": 0.071, "brier": 0.68},
            "cost": {
                "fit_seconds": 0,
                "predict_seconds": 7.5,
                "forwards": 50,
                "backwards": 50,
                "peak_memory_mb": None,
                "device_name": "cpu",
            },
            "data": {
                "digest": "sha256:aa",
                "seed": 0,
                "storage": "uint8",
                "profile": "imagenet224",
                "labels": labels_digest(np.arange(50), np.arange(50) % 10),
            },
            "weights": {"digest": "sha256:bb"},
            "env": {"torch": "2.14.1", "git_dirty": False, "cuda": None},
            "error": None,
        }
    )


def keyed(content: Content) -> Content:
    """The content with the key that follows from it, and its predictions named after that."""
    key = key_of(content)
    done = content["status"] == "done"
    return content | {"key": key, "predictions": f"predictions/{key}.npz" if done else None}


_ACCESS = {
    "R": {"source": "none", "test": "none", "state": "fixed", "backprop": "none"},
    "A": {"source": "none", "test": "stream", "state": "online", "backprop": "norm"},
    "B": {"source": "statistics", "test": "stream", "state": "online", "backprop": "norm"},
    "C": {"source": "none", "test": "pool", "state": "offline", "backprop": "full"},
    "D": {"source": "labelled", "test": "pool", "state": "offline", "backprop": "full"},
}


class Results:
    """A results folder under construction: `add` one record after another, read `records` or the `store`."""

    def __init__(self, store: Store, content: Content, make_predictions: MakePredictions) -> None:
        self.store = store
        self._content = content
        self._make_predictions = make_predictions
        self._count = 0

    def add(self, method: str, corruption: str | None = "fog", *, hits: Any = None, **fields: Any) -> Record:
        """A done record whose metrics follow from its predictions, or a failed one if `error` is given."""
        self._count += 1
        given = {name: fields.pop(name, None) for name in ("ids", "labels")}
        track = fields.get("track", "A")
        made = None
        if "error" in fields:
            fields |= {"status": "failed", "metrics": None, "cost": None}
        else:
            made = self._make_predictions(50 if hits is None else len(hits), hits=hits, seed=self._count, **given)
            fields = {"metrics": score(made).model_dump(), "n": len(made)} | fields
            fields["data"] = {"labels": labels_digest(made.id, made.label)} | fields.get("data", {})
        for name in ("data", "cost"):
            if fields.get(name):
                fields[name] = self._content[name] | fields[name]
        content = keyed(
            self._content
            | {"method": method, "corruption": corruption, "severity": 0 if corruption is None else 5}
            | {"access": _ACCESS[track], "track": track}
            | fields
        )
        record = Record.model_validate_json(json.dumps(content))
        self.store.write(record, made)
        return record

    @property
    def records(self) -> list[Record]:
        return self.store.records()


@pytest.fixture(scope="session")
def new_results(make_predictions: MakePredictions) -> Callable[[Path], Results]:
    """Makes an empty results folder at a path, for boards that many tests share."""
    return lambda folder: Results(Store(folder), done_record(), make_predictions)


@pytest.fixture
def results(tmp_path: Path, new_results: Callable[[Path], Results]) -> Results:
    return new_results(tmp_path / "results")


@pytest.fixture(scope="session")
def digits_run(new_results: Callable[[Path], Results], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A results folder as a run of two methods on all of digits-c leaves it: known data, two seeds, whole grid."""
    known = json.loads((Path(leaderboards.__file__).parent / "reference" / "known.json").read_text())
    split = known["shifts"]["digits-c"]["disjoint"]
    ids = [first + step * i for first, step, count in split["ids"] for i in range(count)]
    made = new_results(tmp_path_factory.mktemp("digits") / "run")
    labels = load_digits().target.astype(np.int64)
    draws = count()
    for method, track, seed in product(("tent", "source"), ("A",), (0, 1)):
        for condition, digest in split["conditions"].items():
            name, _, level = condition.partition("@")
            if level not in ("", "3"):
                continue
            made.add(
                method,
                None if name == "clean" else name,
                track="R" if method == "source" else track,
                ids=(order := np.random.default_rng(seed).permutation(ids)),
                labels=labels[order],
                hits=np.random.default_rng(next(draws)).random(len(ids)) < 0.6,
                seed=seed,
                severity=3.0 if level else 0,
                shift="digits-c",
                model="digits",
                components={"harness": "1", "method:source": "1"}
                | ({"method:tent": "1"} if method == "tent" else {})
                | ({f"corruption:{name}": "1"} if level else {}),
                options={"source": {"epochs": 30}} | ({"tent": {"lr": 0.01}} if method == "tent" else {}),
                data={"digest": digest, "profile": "digits32", "labels_per_class": 10},
                weights={"digest": known["models"]["digits"]},
                cost={"forwards": len(ids), "backwards": 0},
                env={"project": "0.1.0", "git": "0123456789ab", "dirty": False},
            )
    made.store.compile()
    return made


@pytest.fixture(scope="session")
def bundle_text(digits_run: Results, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "bundle.jsonl"
    write_bundle(path, make_bundle(digits_run.records, digits_run.store.predictions))
    return path.read_bytes()


@pytest.fixture
def submission(bundle_text: bytes, tmp_path: Path) -> Path:
    """A bundle of that run that nothing speaks against, in a folder of its own."""
    path = tmp_path / "results" / "digits-c-tent.jsonl"
    path.parent.mkdir()
    path.write_bytes(bundle_text)
    return path
