"""Implement `bench data`: run each command and print its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.core.cache_dir import answers_dir
from bench.core.console import print_json, print_text, table
from bench.core.devices import cores, pick_device
from bench.core.errors import UsageError, nearest
from bench.core.offline import go_offline
from bench.data import decoded_store as store
from bench.data.content_hash import identities_dir
from bench.data.decode import Preprocessing
from bench.data.hf_tables import tables_dir
from bench.data.imageset import clean_folder
from bench.data.pixel_cache import pools_dir
from bench.data_tools.locate import Found, kept, look, look_everywhere
from bench.settings.run_spec import read_severities
from bench.shifts import find_row, load_shift
from bench.shifts.data_root import Reading


def status(shift: str | None, data_root: Path | None, *, as_json: bool) -> None:
    """Print which data of one or all shifts is found, and what the cache holds."""
    reading = Reading(data_root)
    found = look_everywhere(reading) if shift is None else [look(shift, reading)]
    cache = kept()
    if as_json:
        print_json({"root": str(reading.root), "shifts": [asdict(one) for one in found], "cache": cache})
        return
    if shift is None:
        print_text(f"data root: {reading.root}")
        print_text(table(["shift", "found", "decoded", "size", "how to get it"], map(_cells, found)))
    else:
        print_text(_described(found[0]))
    for name, facts in cache.items():
        print_text(f"cache: {_size(facts['bytes'])} of {name} in {facts['path']}")
    print_text("free everything except downloaded data with: bench data clean")


def _cells(found: Found) -> list[str]:
    decoded = _size(found.decoded) if found.decoded else ""
    return [found.shift, found.here or "–", decoded, found.size, "" if found.here else found.fetch]


def _described(found: Found) -> str:
    lines = [
        f"shift: {found.shift}",
        f"scored images: {found.here or 'not found; searched ' + ', '.join(found.looked)}",
        f"clean copies: {found.clean or '–'}",
        f"train images: {found.train or '–'}",
        f"size: {found.size}",
        f"how to get it: {found.fetch}" + (f" ({found.gigabytes:g} GB)" if found.gigabytes else ""),
        f"licence: {found.licence}",
        f"citation: {found.citation}",
        f"checksums: {'SHA256SUMS, check with bench data verify ' + found.shift if found.sums else 'none'}",
        f"decoded pixels: {_size(found.decoded)}",
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def fetch(shift: str, data_root: Path | None, mirror: str | None, offline: bool) -> None:
    """Download with progress on stderr, and print the path of the data."""
    from bench.data_tools import fetch as fetching

    if offline and not find_row(shift).how_to_get.startswith("comes with"):
        raise UsageError("--offline forbids downloads; leave it out")
    where = fetching.fetch(shift, Reading(data_root), mirror, lambda text: sys.stderr.write(text + "\n"))
    print_text(f"{shift}: {where}")


def verify(shift: str, data_root: Path | None, workers: int | None, offline: bool, *, as_json: bool) -> int:
    """Print every problem of a shift's data; return 0 without problems, else 4."""
    from bench.data_tools.verify import verify as verified

    if offline:
        go_offline()
    report = verified(shift, Reading(data_root, None, offline, cores() if workers is None else workers))
    if as_json:
        print_json(asdict(report))
    else:
        for problem in report.problems:
            print_text(problem)
        left_out = f", {report.skipped} left out by skipped.txt" if report.skipped else ""
        sums = f", {report.checked} files agree with SHA256SUMS" if report.checked else ""
        state = f"{len(report.problems)} problems" if report.problems else "no problems"
        print_text(f"{shift}: {report.images:,} images read{left_out}{sums}: {state}")
    return 4 if report.problems else 0


def explain(
    shift: str,
    data_root: Path | None,
    classes: str | None,
    label: str | None,
    part: str | None,
    out: Path | None,
    offline: bool,
    *,
    as_json: bool,
) -> None:
    """Print how a shift is read, and write its first images to `out` if given."""
    from bench.data_tools.explain import explain as explained

    if offline:
        go_offline()
    found = explained(shift, Reading(data_root, None, offline, cores(), classes, label, part), out)
    if as_json:
        print_json({**asdict(found), "classes": [{"name": name, "images": n} for name, n in found.classes]})
        return
    without = sum(count == 0 for _, count in found.classes)
    lines = [
        f"shift: {found.shift}",
        f"first image: {found.where}",
        *([f"scored part: {found.part} (of {', '.join(found.parts) or 'the splits'})"] if found.part else []),
        *([f"label column: {found.column}"] if found.column else []),
        f"scored images: {found.images:,}" + (f", {found.left_out} left out by skipped.txt" if found.left_out else ""),
        f"train images: {'not searched' if found.train is None else f'{found.train:,}'}",
        f"classes: {len(found.classes)}, in this order" + (f"; {without} have no scored image" if without else ""),
    ]
    print_text("\n".join(lines))
    print_text(table(["label", "class", "scored images"], _shown_classes(found.classes)))
    for skipped in found.skipped:
        print_text(f"skipped: {skipped}")
    for note in found.notes:
        print_text(f"note: {note}")
    if out is not None:
        print_text(f"images: {out}")


_CLASSES_SHOWN = 40


def _shown_classes(classes: Sequence[tuple[str, int]]) -> list[list[str]]:
    rows = [[str(label), name, str(count)] for label, (name, count) in enumerate(classes) if count]
    more = len(rows) - _CLASSES_SHOWN
    return rows[:_CLASSES_SHOWN] + ([["…", f"{more} more, see --json", ""]] if more > 0 else [])


def export(
    name: str,
    out: Path,
    corruption: str | None,
    severity: str,
    layout: str | None,
    size: int | None,
    limit: int | None,
    data_root: Path | None,
    device: str,
    workers: int | None,
    offline: bool,
    *,
    as_json: bool,
) -> None:
    """Write a corrupted copy and print its path and size."""
    from bench.data_tools import export as exporting
    from bench.shifts.shift import pick_corruptions
    from bench.shifts.user_corruption import added

    try:
        severities = read_severities(severity)
    except ValueError as error:
        raise UsageError(f"--severity {error}") from None
    wanted = None if corruption is None else [part.strip() for part in corruption.split(",") if part.strip()]
    threads = workers or cores()
    preprocessing = None if size is None else Preprocessing(size, size)
    if offline:
        go_offline()
    shift = load_shift(name, reading=Reading(data_root, preprocessing, offline, threads, added=added(wanted)))
    known = exporting.LAYOUTS
    made_as = exporting.usual_layout(shift) if layout is None else known[nearest(layout, known, "layout")]
    done = exporting.export(
        shift,
        out,
        pick_corruptions(shift, wanted, "test"),
        severities,
        made_as,
        limit,
        pick_device(device),
        threads,
    )
    if as_json:
        print_json(asdict(done))
    else:
        there = f" ({done.images - done.made:,} already existed)" if done.made < done.images else ""
        print_text(
            f"{done.out}: {done.images:,} images{there} in the layout of {done.layout}; check them with: "
            f"cd {done.out} && sha256sum -c --quiet SHA256SUMS"
        )


def clean(shift: str | None, data_root: Path | None) -> None:
    """Delete decoded pixels of one shift, or all cached data that can be made again; print the freed size."""
    if shift is None:
        freed = store.clean() + sum(map(clean_folder, (tables_dir(), pools_dir(), answers_dir(), identities_dir())))
        print_text(f"{_size(freed)} freed")
        return
    found = look(shift, Reading(data_root))
    if not found.source:
        raise UsageError(f"{shift} is not found, so it has no decoded images; leave the name out to free everything")
    print_text(f"{_size(store.clean(found.source))} freed")
