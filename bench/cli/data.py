"""The commands of `bench data`: each calls one tool and prints its result."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.flags import DataRoot, Device, Json, Offline
from bench.cli.list_show import group
from bench.core.console import print_json, print_text, table
from bench.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from bench.data_tools.locate import Found

app = group("Show, fetch, verify, export and clean data sets.")

_CLASSES_SHOWN = 40


def _check_shift(name: str) -> None:
    from bench.planning.check_names import check_shift

    check_shift(name)


@app.command()
def status(
    shift: Annotated[str | None, typer.Argument(help="Only this shift, in detail.")] = None,
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Show which data sets are found and where, how to get the others, and what the cache holds."""
    from bench.data_tools.locate import kept, look, look_everywhere
    from bench.shifts.data_root import Reading

    reading = Reading(data_root)
    found = look_everywhere(reading) if shift is None else [look(shift, reading)]
    cache = kept()
    if json:
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


def _cells(found: "Found") -> list[str]:
    decoded = _size(found.decoded) if found.decoded else ""
    return [found.shift, found.here or "–", decoded, found.size, "" if found.here else found.fetch]


def _described(found: "Found") -> str:
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


@app.command()
def fetch(
    shift: Annotated[str, typer.Argument(help="A shift, or hf:REPO[:CONFIG].")],
    data_root: DataRoot = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Web folder with the files and their SHA256SUMS.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Download the published data of a shift and check it. Run it again to resume."""
    from bench.data_tools import fetch as fetching
    from bench.shifts import find_row
    from bench.shifts.data_root import Reading

    if offline and not find_row(shift).how_to_get.startswith("comes with"):
        raise UsageError("--offline forbids downloads; leave it out")
    where = fetching.fetch(shift, Reading(data_root), mirror, lambda text: sys.stderr.write(text + "\n"))
    print_text(f"{shift}: {where}")


@app.command()
def verify(
    shift: Annotated[str, typer.Argument(help="A shift, folder:PATH or hf:REPO[:CONFIG].")],
    data_root: DataRoot = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads; default: one for each core.")] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Check files against SHA256SUMS, if present, and decode every image. Exit code: 0 without problems, else 4."""
    _check_shift(shift)
    from bench.core.devices import cores
    from bench.core.offline import go_offline
    from bench.data_tools.verify import verify as verified
    from bench.shifts.data_root import Reading

    if offline:
        go_offline()
    report = verified(shift, Reading(data_root, None, offline, cores() if workers is None else workers))
    if json:
        print_json(asdict(report))
    else:
        for problem in report.problems:
            print_text(problem)
        left_out = f", {report.skipped} left out by skipped.txt" if report.skipped else ""
        sums = f", {report.checked} files agree with SHA256SUMS" if report.checked else ""
        state = f"{len(report.problems)} problems" if report.problems else "no problems"
        print_text(f"{shift}: {report.images:,} images read{left_out}{sums}: {state}")
    raise typer.Exit(4 if report.problems else 0)


@app.command()
def explain(
    shift: Annotated[str, typer.Argument(help="A shift, folder:PATH or hf:REPO[:CONFIG].")],
    data_root: DataRoot = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE|natural|imagefolder", help="Class order of folder: and hf:.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds the labels.")] = None,
    part: Annotated[str | None, typer.Option(metavar="NAME", help="The split of folder: and hf: to read.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="SHEET.png", help="Write the first images there.")
    ] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Show how a shift is read: split, label column, class order, number of images, and what is skipped and why."""
    _check_shift(shift)
    from bench.core.devices import cores
    from bench.core.offline import go_offline
    from bench.data_tools.explain import explain as explained
    from bench.shifts.data_root import Reading

    if offline:
        go_offline()
    found = explained(shift, Reading(data_root, None, offline, cores(), classes, label, part), out)
    if json:
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


def _shown_classes(classes: Sequence[tuple[str, int]]) -> list[list[str]]:
    rows = [[str(label), name, str(count)] for label, (name, count) in enumerate(classes) if count]
    more = len(rows) - _CLASSES_SHOWN
    return rows[:_CLASSES_SHOWN] + ([["…", f"{more} more, see --json", ""]] if more > 0 else [])


@app.command()
def export(
    shift: Annotated[str, typer.Argument(help="A generated shift (imagenet-c-gen, …), folder:PATH or hf:REPO.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write.")],
    corruption: Annotated[
        str | None, typer.Option(help="Only these, comma-separated; default: all scored ones.")
    ] = None,
    severity: Annotated[str, typer.Option(help="5, 3,5 or 1-5.")] = "1-5",
    layout: Annotated[
        str | None, typer.Option(help="imagenet-c, laion-c (JPEG trees) or cifar-c (.npy); default by shift.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; default: the shift's size and resize.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images, evenly spread.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one for each core.")] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write a corrupted copy in the published layout, with checksums. Run it again to resume."""
    from bench.planning.check_names import check_export

    check_export(shift, corruption, severity, layout, device)
    from bench.core.devices import cores, pick_device
    from bench.core.offline import go_offline
    from bench.data.decode import Preprocessing
    from bench.data_tools import export as exporting
    from bench.settings.run_spec import read_severities
    from bench.shifts import load_shift
    from bench.shifts.data_root import Reading
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
    opened = load_shift(shift, reading=Reading(data_root, preprocessing, offline, threads, added=added(wanted)))
    known = exporting.LAYOUTS
    made_as = exporting.usual_layout(opened) if layout is None else known[nearest(layout, known, "layout")]
    names = pick_corruptions(opened, wanted, "test")
    done = exporting.export(opened, out, names, severities, made_as, limit, pick_device(device), threads)
    if json:
        print_json(asdict(done))
        return
    there = f" ({done.images - done.made:,} already existed)" if done.made < done.images else ""
    print_text(
        f"{done.out}: {done.images:,} images{there} in the layout of {done.layout}; check them with: "
        f"cd {done.out} && sha256sum -c --quiet SHA256SUMS"
    )


@app.command()
def clean(
    shift: Annotated[str | None, typer.Argument(help="Only decoded images of this shift.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Delete cached pixels, tables, pools and predictions; they are made again when needed."""
    from bench.core.cache_dir import answers_dir
    from bench.data import decoded_store as store
    from bench.data.content_hash import identities_dir
    from bench.data.hf_tables import tables_dir
    from bench.data.imageset import clean_folder
    from bench.data.pixel_cache import pools_dir
    from bench.data_tools.locate import look
    from bench.shifts.data_root import Reading

    if shift is None:
        freed = store.clean() + sum(map(clean_folder, (tables_dir(), pools_dir(), answers_dir(), identities_dir())))
        print_text(f"{_size(freed)} freed")
        return
    found = look(shift, Reading(data_root))
    if not found.source:
        raise UsageError(f"{shift} is not found, so it has no decoded images; leave the name out to free everything")
    print_text(f"{_size(store.clean(found.source))} freed")
