"""Implement `bench results`, `leaderboard`, `compare` and `verify`, which read the results of runs. No torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from bench.core.cache_dir import cache_dir, write_bytes
from bench.core.console import new_console, print_json, print_rich, print_text, table
from bench.core.errors import MissingDataError, UsageError, nearest
from bench.core.errors import ValidationError as InvalidResults
from bench.execution import progress_files as live
from bench.runs import hub
from bench.runs.manifest import read_manifest, read_trainings, running
from bench.runs.progress import in_words, shown
from bench.runs.read_records import filtered, open_records
from leaderboards import agreement, compare, design, matrix_tables, tables
from leaderboards.boards import Board, BoardError, make_board
from leaderboards.escaping import one_line
from leaderboards.files import StoreError
from leaderboards.friedman import POSTHOC
from leaderboards.known import known
from leaderboards.matrix import AXES, BLOCKS, Matrix, RankTest, comparisons, matrix
from leaderboards.memory import Memory
from leaderboards.record import Record
from leaderboards.reference import reference_rows
from leaderboards.store import find_scored, state_of
from leaderboards.union import boards_of
from leaderboards.variance import Spread
from leaderboards.verify import verify

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_results(folder: Path, as_json: bool, watch: bool = False) -> None:
    """Print a line for each method, part and seed: conditions done, running, failed and missing, barrier, first error.

    The barrier is the accuracy lost between the ingredients of a soup, in points, on held-out clean images. `watch`
    repeats this until nothing is missing, with the progress of each training and stream and the time left.
    """
    if as_json and watch:
        raise UsageError("--watch draws a table again and again; leave it or --json out")
    lines = _standing(folder)
    if as_json:
        print_json(lines)
        return
    if not watch:
        print_text(_standing_table(lines))
        return
    console, read_seconds, last_printed = new_console(), 0.0, time.monotonic()
    with Live(_with_now(folder, lines), console=console, auto_refresh=False) as screen:
        while any(line["running"] or line["missing"] for line in lines):
            time.sleep(max(_SECONDS_BETWEEN_UPDATES, 5 * read_seconds))
            began = time.monotonic()
            before, lines = lines, _standing(folder)
            read_seconds = time.monotonic() - began  # read a large folder less often
            if console.is_terminal:
                screen.update(_with_now(folder, lines), refresh=True)
            elif lines != before or time.monotonic() - last_printed >= _SECONDS_OF_SILENCE:
                last_printed = time.monotonic()
                print_text(_in_lines(folder, lines))
        screen.update(Text(_standing_table(lines)), refresh=True)


def _with_now(folder: Path, lines: list[dict[str, Any]]) -> RenderableType:
    """Return the time left and running work, followed by the table of results, which may be long."""
    now = live.running(folder, read_trainings(folder)).values()
    return Group(Text(_progress(folder)), shown(now), "", Text(_standing_table(lines)))


def _in_lines(folder: Path, lines: list[dict[str, Any]]) -> str:
    sums = ((name, sum(int(line[name]) for line in lines)) for name in _STATES)
    counts = ", ".join(f"{number} {name}" for name, number in sums)
    now = live.running(folder, read_trainings(folder)).values()
    return "\n".join([*filter(None, (counts, _progress(folder))), *(f"  {each}" for each in now)])


def _progress(folder: Path) -> str:
    """Return the number of finished trainings and streams and the time left; empty if no run is active."""
    left = live.left(folder)
    if left is None:
        return ""
    return ", ".join(filter(None, (f"{left.done} of {left.of} trainings and streams", in_words(left))))


_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_OF_SILENCE = 30.0
_STATES = ("done", "running", "failed", "missing")


def _standing(folder: Path) -> list[dict[str, Any]]:
    planned = read_manifest(folder)
    records = [] if planned and not any((folder / "records").glob("*.json")) else open_records([folder])
    rows: dict[tuple[str, str, str, int], dict[str, Any]] = {}

    def row(shift: str, method: str, part: str | None, seed: int) -> dict[str, Any]:
        names = {"shift": shift, "method": method, "part": part or "", "seed": seed}
        more = {"barrier": None, "barrier_images": None, "shares": None, "error": ""}
        new = {**names, **dict.fromkeys(_STATES, 0), **more}
        return rows.setdefault((shift, method, part or "", seed), new)

    status = {record.key: record.status for record in records}
    now = running(folder, planned)
    for each in planned:  # rows in the order of the run
        row(each.shift, each.method, each.part, each.seed)
    for record in sorted(records, key=lambda r: (r.shift, r.method, r.part or "", r.seed)):
        line = row(record.shift, record.method, record.part, record.seed)
        if record.key not in now or record.status == "done":
            line[record.status] += 1
        line["error"] = line["error"] or record.error or ""
        if record.connectivity is not None:
            line["barrier"] = round(100 * record.connectivity.barrier, 2)
            line["barrier_images"] = record.connectivity.n
        if record.mixture is not None:
            line["shares"] = [round(share, 4) for share in record.mixture.means]
    seen: set[str] = set()
    for each in planned:
        line = row(each.shift, each.method, each.part, each.seed)
        for key in {key for keys in each.streams.values() for key in keys} - seen:
            seen.add(key)
            if key in now and status.get(key) != "done":
                line["running"] += 1
            elif key not in status:
                line["missing"] += 1
    return list(rows.values())


def _standing_table(lines: list[dict[str, Any]]) -> str:
    shown = []
    for line in lines:
        barrier, images, shares = (line[name] for name in ("barrier", "barrier_images", "shares"))
        found = {
            "barrier": "" if barrier is None else f"{barrier:g} on {images} images",
            "shares": " ".join(f"{share:.2f}" for share in shares or ()),
        }
        shown.append({name: str(found.get(name, line[name])) for name in line if name != "barrier_images"})
    empty = [name for name in ("barrier", "shares") if not any(line[name] for line in shown)]
    columns = [name for name in shown[0] if name not in empty]
    return table(columns, [[line[name] for name in columns] for line in shown])


_ALL_COLUMNS = ("csv", "json", "html")
_OTHER_NAMES = {"markdown": "md", "tex": "latex", "text": "terminal"}
_FORMATS = ("terminal", "md", "csv", "json", "latex")


@dataclass(frozen=True)
class Shown:
    """Which records a command shows, and how: the values of SHIFT, --from, --where, --format and --out."""

    shift: str | None
    folders: str
    format: str
    where: Sequence[str]
    out: Path | None

    def format_of(self, *more: str) -> str:
        """Return the name of the format, which may be one of `more`. Raises UsageError if it is unknown."""
        known = (*_FORMATS, *more)
        nearest(self.format, [*known, *_OTHER_NAMES], "format")
        name = _OTHER_NAMES.get(self.format, self.format)
        if name == "terminal" and self.out is not None:
            raise UsageError(f"--out cannot write the terminal format; add --format {', '.join(known[1:])}")
        return name

    def read(self, command: str) -> tuple[list[Path], list[Record]]:
        """Return the folders or files and the chosen records in them; `command` is named where there are none."""
        paths = _folders(self.folders, command)
        return paths, filtered(open_records(paths), [*self.where, *([f"shift={self.shift}"] if self.shift else [])])

    def show(self, name: str, made: Mapping[str, Callable[[], Any]]) -> None:
        """Print or write a result in a format, which `made` makes by name."""
        if name == "terminal":
            print_rich(made[name]())
        else:
            _print_or_write(made[name](), self.out)


def print_leaderboard(
    asked: Shown, per_corruption: bool = False, figures: Path | None = None, columns: str = "", sort: str = ""
) -> None:
    """Print or write the board of the selected records, and write its figures into a folder."""
    name = asked.format_of("html")
    if columns not in ("", "full") and name in _ALL_COLUMNS:
        raise UsageError(f"--format {name} always has all columns; use --columns with terminal, md or latex")
    paths, records = asked.read("leaderboard")
    with _as_bench_error():
        if columns or sort:
            quick = make_board(records)  # without predictions, so that a misspelt name costs no comparison
            _chosen_columns(quick, columns)
            _known_columns(quick, [sort] if sort else [])
        memory = Memory(cache_dir() / "comparisons", lambda record: state_of(paths, record))
        board = make_board(records, lambda record: find_scored(paths, record), memory=memory)
    chosen = _chosen_columns(board, columns)
    if sort:
        board = tables.arranged(board, *_known_columns(board, [sort]))
    detail = {"per_corruption": per_corruption}
    made: dict[str, Callable[[], Any]] = {
        "terminal": lambda: tables.to_terminal(board, **detail, columns=chosen),
        "md": lambda: tables.to_markdown(board, **detail, columns=chosen),
        "latex": lambda: tables.to_latex(board, **detail, columns=chosen),
        "csv": lambda: tables.to_csv(board, **detail),
        "json": lambda: tables.to_json(board),
        "html": lambda: _page(board, _addresses(paths, asked.out)),
    }
    asked.show(name, made)
    if figures is not None:
        _write_figures(board, figures)


def print_matrix(
    asked: Shown,
    figures: Path | None = None,
    *,
    by: str = "",
    across: bool = False,
    blocks: str = "columns",
    posthoc: str = "nemenyi",
) -> None:
    """Print or write methods against the boards of the selected records, and write the figures into a folder."""
    name = asked.format_of("html")
    axis = nearest(by, AXES, "axis of --by") if by else None
    for value, known_ones, what in ((blocks, BLOCKS, "value of --blocks"), (posthoc, list(POSTHOC), "post-hoc test")):
        nearest(value, known_ones, what)
    paths, records = asked.read("leaderboard --matrix")
    with _as_bench_error():
        memory = Memory(cache_dir() / "comparisons", lambda record: state_of(paths, record))
        groups = boards_of(records).values()
        boards = [make_board(own, lambda record: find_scored(paths, record), memory=memory) for own in groups]
        found = matrix(boards, by=axis, across=across)
        tests = comparisons(found, blocks=blocks, posthoc=posthoc)
    made: dict[str, Callable[[], Any]] = {
        "terminal": lambda: matrix_tables.to_terminal(found, tests),
        "md": lambda: matrix_tables.to_markdown(found, tests),
        "latex": lambda: matrix_tables.to_latex(found, tests),
        "csv": lambda: matrix_tables.to_csv(found),
        "json": lambda: matrix_tables.to_json(found, tests),
        "html": lambda: _matrix_page(found, tests, _addresses(paths, asked.out)),
    }
    asked.show(name, made)
    if figures is not None:
        _write_matrix_figures(found, tests, figures)


def _write_matrix_figures(made: Matrix, tests: Sequence[RankTest], folder: Path) -> None:
    """Write the figures of a matrix, and say why one is not drawn."""
    from leaderboards.matrix_figures import figures

    _write(figures(made, tests), folder)
    for test in tests:
        if isinstance(test.found, str):
            sys.stderr.write(f"not in a critical-difference diagram ({one_line(test.name)}): {test.found}\n")


def _chosen_columns(board: Board, columns: str) -> str | list[str]:
    """Return the name of a preset, or titles of columns."""
    if columns in tables.PRESETS:
        return columns
    return _known_columns(board, [name.strip() for name in columns.split(",") if name.strip()], tables.PRESETS)


def _known_columns(board: Board, names: list[str], more: Iterable[str] = ()) -> list[str]:
    """Return titles of columns, given these or short titles. Raises UsageError if one is unknown."""
    titles: dict[str, str] = {}
    for column in tables.columns_of(board, per_corruption=True):
        titles |= {column.title: column.title, column.label: column.title}
    known = [nearest(name, [*titles, *more], "column") for name in names]
    presets = [name for name in known if name not in titles]
    if presets:
        raise UsageError(f"--columns takes '{presets[0]}' alone, or titles of columns; give one of both")
    return [titles[name] for name in known]


def _write_figures(board: Board, folder: Path) -> None:
    from leaderboards.figures import figures

    _write(figures(board), folder)


def _write(drawn: Mapping[str, Figure], folder: Path) -> None:
    from leaderboards.figures import to_bytes

    for name, figure in drawn.items():
        for form in ("svg", "png", "pdf"):
            write_bytes(folder / f"{name}.{form}", to_bytes(figure, form))
    sys.stderr.write(f"{', '.join(drawn) or 'no figure'} in {folder}\n")


def _page(board: Board, address: Callable[[str], str | None]) -> str:
    from leaderboards.page import to_page

    return to_page([board], title=f"{board.shift}, {board.model}", record_url=address)


def _matrix_page(found: Matrix, tests: Sequence[RankTest], address: Callable[[str], str | None]) -> str:
    from leaderboards.matrix_page import matrix_page

    return matrix_page(found, tests, record_url=address)


def _addresses(folders: list[Path], out: Path | None) -> Callable[[str], str | None]:
    """Return a function from a record key to the record's URL relative to the page; None if it is in a bundle."""
    base = (out.parent if out is not None else Path()).resolve()

    def address(key: str) -> str | None:
        for folder in folders:
            if (folder / "records" / f"{key}.json").is_file():
                return quote(os.path.relpath((folder / "records").resolve(), base)) + f"/{key}.json"
        return None

    return address


def print_published(asked: Shown) -> None:
    """Print or write published numbers, of one shift or all; with records, beside the boards of the same protocol."""
    form = asked.format_of()
    if not asked.folders:
        if asked.where:
            raise UsageError("--where keeps some of the records of --from DIR; add it, or leave --where out")
        known_shifts = sorted({row.shift for row in reference_rows()})
        rows = reference_rows(
            nearest(asked.shift, known_shifts, "shift with published numbers") if asked.shift else None
        )
        asked.show(form, agreement.published_tables(rows))
        return
    paths, records = asked.read("published")
    with _as_bench_error():
        memory = Memory(cache_dir() / "comparisons", lambda record: state_of(paths, record))
        groups = boards_of(records).values()
        found = agreement.agreements(
            make_board(own, lambda record: find_scored(paths, record), memory=memory) for own in groups
        )
    if not found:
        names = ", ".join(sorted({f"{record.shift} ({record.protocol})" for record in records}))
        raise UsageError(
            f"nothing is published for the protocol, severity and all corruptions of {names}; see bench published"
        )
    asked.show(form, agreement.renderings(found))


def print_comparison(asked: Shown, a: str, b: str, sizes: Mapping[str, str], *, across_stocks: bool = False) -> None:
    """Print or write the paired comparison of two rows; `sizes` belong to `print_design` and must be empty."""
    for name, text in sizes.items():
        if text:
            raise UsageError(f"--{name} belongs to the design of a study; add --design")
    form = asked.format_of()
    paths, records = asked.read("compare A B")
    with _as_bench_error():
        read = partial(find_scored, paths)
        found = compare.compare_rows(records, a, b, read, across_stocks=across_stocks)
    asked.show(form, compare.renderings(found))


def print_design(asked: Shown, a: str, b: str, sizes: Mapping[str, str]) -> None:
    """Print or write the half-widths that studies of some sizes expect; `sizes` are lists as text, by option."""
    form = asked.format_of()
    wanted: dict[str, Any] = {name.replace("-", "_"): _whole_numbers(name, text) for name, text in sizes.items()}
    paths, records = asked.read("compare A B --design")
    with _as_bench_error():
        found = design.design(records, a, b, partial(find_scored, paths), **wanted)
    asked.show(form, design.renderings(found))


def print_planned_design(asked: Shown, a: str, b: str, spread: str, sizes: Mapping[str, str]) -> None:
    """Print or write the half-widths that studies expect of a difference with a given spread, "images=40,…" in points.

    Records must not be named as well.
    """
    form = asked.format_of()
    if asked.shift or asked.folders or asked.where:
        raise UsageError("--spread takes the place of a pilot; leave --from, --shift and --where out, or --spread")
    if sizes["conditions"]:
        raise UsageError("--spread is that of the mean over all conditions of the study; leave --conditions out")
    if not sizes["n"]:
        raise UsageError("--spread needs the number of scored images; add --n, as in --n 5000")
    wanted: dict[str, Any] = {name.replace("-", "_"): _whole_numbers(name, text) for name, text in sizes.items()}
    wanted |= {name: wanted[name] or (1,) for name in ("seeds", "stocks")}
    del wanted["conditions"]
    with _as_bench_error():
        found = design.planned(a, b, _read_spread(spread), **wanted)
    asked.show(form, design.renderings(found))


def _read_spread(text: str) -> Spread:
    """Read standard deviations in points: "images=40,label_draws=0.6"."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            values[name.replace("-", "_")] = float(number) / 100
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--spread takes names and points, as in images=40,label_draws=0.6, not '{part.strip()}'")
    try:
        return Spread.named(values)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise UsageError(f"--{option} takes whole numbers above 0, as in --{option} 1,3,5, not '{text}'")
    return tuple(map(int, parts))


def _folders(text: str, command: str) -> list[Path]:
    folders = [path for part in text.split(",") if part.strip() for path in _paths(part.strip())]
    if not folders:
        raise UsageError(f"no records given; use bench {command} --from DIR[,DIR]")
    return folders


def _paths(text: str) -> list[Path]:
    """Return a folder or file, or the bundles of a data set of the hub for "hf:REPO"."""
    kind, colon, repo = text.partition(":")
    if kind != "hf" or not colon:
        return [Path(text)]
    return hub.checked(repo, cache_dir() / "boards" / quote(repo, safe=""))


@contextmanager
def _as_bench_error() -> Iterator[None]:
    """Convert errors about damaged or incompatible records into errors with exit codes."""
    try:
        yield
    except StoreError as error:
        raise InvalidResults(str(error)) from None
    except BoardError as error:
        raise UsageError(str(error)) from None


def _print_or_write(text: str, out: Path | None) -> None:
    if out is None:
        print_text(text)
    else:
        write_bytes(out, (text.rstrip("\n") + "\n").encode())


def print_verification(folder: Path, as_json: bool) -> int:
    """Recompute all metrics, print the problems and return the exit code: 0 without problems, else 4."""
    open_folder = (folder / "records").is_dir() or (folder / "records.jsonl").is_file()
    if not open_folder:
        raise MissingDataError(f"no records in {folder}; give a folder made by `bench run --out DIR`")
    report = verify(folder, known().labels_of)
    if as_json:
        problems = [{"key": p.key, "file": p.file, "message": p.message} for p in report.problems]
        print_json({"checked": len(report.checked), "problems": problems})
    else:
        for problem in report.problems:
            print_text(f"{problem.file}: {problem.message}")
        print_text(f"{len(report.checked)} records recomputed from their predictions, {len(report.problems)} problems")
    return 4 if report.problems else 0
