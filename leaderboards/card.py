"""What a bundle says of itself in words: the settings that repeat its run, and the model card made from its records."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from leaderboards.bundle import MAX_CARD, Bundle
from leaderboards.record import Record


def settings_of(records: Sequence[Record]) -> dict[str, JsonValue]:
    """Return the settings of a run file that repeats these records; keys are the names of flags."""
    first = records[0]
    corrupted = [record for record in records if not record.clean]
    seeds = sorted({record.seed for record in records})
    options: dict[str, dict[str, JsonValue]] = {}
    for record in records:
        for method, values in record.options.items():
            options.setdefault(method, {}).update(values)
    return {
        "method": list[JsonValue](sorted({record.method for record in records})),
        "shift": first.shift,
        "corruption": list[JsonValue](sorted({str(record.corruption) for record in corrupted})),
        "severity": list[JsonValue](sorted({record.severity for record in corrupted})),
        "model" if first.weights.ready else "stock": first.model,
        "protocol": first.protocol,
        "split": first.split,
        "seed": seeds[0],
        "seeds": seeds[-1] - seeds[0] + 1,
        "batch-size": first.batch_size,
        "precision": first.precision,
        "labels": first.data.labels_per_class or 0,
        "set": dict[str, JsonValue](options),
    }


def is_made(bundle: Bundle) -> bool:
    """Whether the card is the one made from the records; any other is the submitter's own words."""
    return bundle.card == card_of(bundle.records)


_SOURCE = {
    "none": "no source data while adapting",
    "statistics": "statistics of source data",
    "unlabelled": "unlabelled source images",
    "labelled": "labelled source images",
}
_TEST = {
    "none": "no test images",
    "image": "each test image alone",
    "stream": "the scored stream of test images, without labels",
    "other": "a pool of images of another shift before scoring, without labels",
    "pool": "a pool of shifted test images before scoring, without labels",
}


def card_of(records: Sequence[Record]) -> str:
    """Return the model card: what was run on which data, what each method saw, with which weights and code."""
    first = records[0]
    seeds = sorted({record.seed for record in records})
    labels = first.data.labels_per_class
    seen = {
        record.method: f"- {record.method} (track {record.track}): sees {_TEST[record.access.test]} and "
        f"{_SOURCE[record.access.source]}; {record.access.state}, gradients: {record.access.backprop}"
        for record in sorted(records, key=lambda record: record.method)
    }
    made = sorted({f"soupbench {r.env.get('project')}, commit {r.env.get('git') or 'of the release'}" for r in records})
    devices = sorted({record.cost.device_name for record in records if record.cost})
    corruptions = sorted({record.corruption for record in records if record.corruption})
    lines = [
        f"# {first.shift}, {first.model}, {first.protocol}, split {first.split}",
        "",
        f"{len(records)} records of {len(seen)} methods over {len(corruptions)} corruptions; seeds "
        f"{', '.join(map(str, seeds))}; {first.n} images in each condition.",
        "",
        "## What each method has seen",
        "",
        *seen.values(),
        "",
        "## Data and weights",
        "",
        f"- Corruptions: {', '.join(corruptions)}",
        f"- Labelled source images of each class: {labels or 'all'}",
        f"- Weights of {first.model}: {first.weights.digest}",
        f"- Preprocessing {first.data.profile}, storage {first.data.storage}, corruption seed {first.data.seed}",
        "",
        "## Made with",
        "",
        *(f"- {text}" for text in made),
        *(f"- device: {device}" for device in devices),
        "",
        "## How to repeat it",
        "",
        "`bench publish settings FILE -o run.toml` writes the run file, `bench run run.toml` runs it, and",
        "`bench run --record KEY --from FILE` repeats one record and compares its metrics.",
    ]
    return "\n".join(lines)[:MAX_CARD]
