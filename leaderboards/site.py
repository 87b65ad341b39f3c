"""The site of all published results: an index, and for each board its page, its tables and its sources."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leaderboards import figures
from leaderboards.boards import Board, BoardError, make_board
from leaderboards.bundle import Bundle, write_bundle
from leaderboards.files import write_atomically
from leaderboards.html import legend, render
from leaderboards.page import Download, matrix, to_page
from leaderboards.record import Record, schema
from leaderboards.tables import caption, to_csv, to_json, to_latex, to_markdown

TITLE = "soupbench leaderboards"
PAPER = "https://arxiv.org/abs/2602.02890"  # Self-Souping
_TABLES: dict[str, tuple[str, Callable[[Board], str]]] = {
    "csv": ("CSV", lambda board: to_csv(board, per_corruption=True)),
    "json": ("JSON", to_json),
    "md": ("Markdown", to_markdown),
    "tex": ("LaTeX", lambda board: to_latex(board, columns="paper")),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One board of the site and its result files. `slug` is the prefix of its page names."""

    slug: str
    board: Board
    bundles: tuple[tuple[str, Bundle], ...]

    @property
    def page(self) -> str:
        """The page of the board."""
        return f"{self.slug}.html"

    @property
    def about(self) -> str:
        """The page with the sources of this board."""
        return f"{self.slug}-about.html"

    @property
    def title(self) -> str:
        """What tells this board from others."""
        severities = ", ".join(f"{severity:g}" for severity in self.board.severities)
        return f"{self.board.shift}, {self.board.model}, {self.board.protocol}, severity {severities}"


def build_site(bundles: Mapping[str, Bundle], out: Path, *, project: str | None = None) -> list[Path]:
    """Write the site of checked bundles (by file name) into a folder and return its pages; other files there stay.

    index.html holds methods against boards; SLUG.html is a board, with the numbers of papers below it; SLUG-about.html
    holds its sources (model cards, settings), submit.html how to add a result. The same numbers are also written as
    csv, json, md and tex, the figures as svg; records/KEY.json is every record, results/NAME.jsonl every bundle. Result
    files with equal shift, model, protocol, split, labels and severities make one board, or one board each if their
    rows must not be mixed. `project` is the address of the source code, for links.
    """
    entries = _entries(bundles)
    links = [("index.html", "all boards"), ("submit.html", "how to submit"), (PAPER, "paper of Self-Souping")]
    links += [(project, "project")] if project else []
    write_atomically(out / "record.schema.json", (json.dumps(schema(), indent=2) + "\n").encode())
    for name, bundle in bundles.items():
        write_bundle(out / "results" / name, bundle)
        for record in bundle.records:
            write_atomically(out / "records" / f"{record.key}.json", record.to_json().encode() + b"\n")
    pages: list[Path] = []
    listed = []
    for entry in entries:
        drawn = figures.drawn(entry.board)
        files = _write_files(entry, drawn, out)
        own = [*links[:1], (entry.about, "about these results"), *links[1:]]
        page = to_page([entry.board], title=entry.title, links=own, drawn=[drawn], downloads=[files])
        pages += _write_pages(out, {entry.page: page, entry.about: _about(entry, files, links)})
        listed.append({"entry": entry, "caption": caption(entry.board), "downloads": files})
    boards = [entry.board for entry in entries]
    grid = matrix([(entry.page, entry.board) for entry in entries])
    shared = {"legend": legend(boards), "project": project}
    front = render("front.html.jinja", title=TITLE, links=links[1:], boards=listed, matrix=grid, **shared)
    submit = render("submit.html.jinja", title="How to submit", links=[*links[:1], *links[2:]], **shared)
    return [*_write_pages(out, {"index.html": front}), *pages, *_write_pages(out, {"submit.html": submit})]


def _write_pages(out: Path, pages: Mapping[str, str]) -> list[Path]:
    for name, text in pages.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in pages]


def _write_files(entry: Entry, drawn: Mapping[str, bytes], out: Path) -> list[Download]:
    """Write the tables and figures of a board and return them, with its result files."""
    content = {f"{entry.slug}.{end}": (kind, made(entry.board).encode()) for end, (kind, made) in _TABLES.items()}
    for name, svg in drawn.items():
        content[f"{entry.slug}--{name}.svg"] = (f"SVG, {figures.TITLES[name].lower()}", figures.to_file(svg))
    for name, (_, data) in content.items():
        write_atomically(out / name, data)
    results = [f"results/{name}" for name, _ in entry.bundles]
    return [
        *(Download(name, kind, len(data)) for name, (kind, data) in content.items()),
        *(Download(name, "JSON lines, all results", (out / name).stat().st_size) for name in results),
    ]


def _about(entry: Entry, files: Sequence[Download], links: Sequence[tuple[str, str]]) -> str:
    return render(
        "about.html.jinja",
        title=f"About {entry.title}",
        links=[links[0], (entry.page, "board"), *links[1:]],
        legend=legend([entry.board]),
        downloads=files,
        bundles=entry.bundles,
    )


def _entries(bundles: Mapping[str, Bundle]) -> list[Entry]:
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in sorted(bundles):
        first = bundles[name].records[0]
        severities = sorted({record.severity for record in bundles[name].records if not record.clean})
        shared = (first.shift, first.model, first.protocol, first.split, str(first.data.labels_per_class))
        groups[*shared, "-".join(f"{severity:g}" for severity in severities)].append(name)
    entries = []
    for key, names in groups.items():
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, key)).lower()).strip("-.")
        try:
            entries.append(Entry(slug, _board([bundles[name] for name in names]), _named(bundles, names)))
        except BoardError:
            for name in names:
                own = f"{slug}-{name.removesuffix('.jsonl')}"
                entries.append(Entry(own, _board([bundles[name]]), _named(bundles, [name])))
    return sorted(entries, key=lambda entry: entry.slug)


def _named(bundles: Mapping[str, Bundle], names: Sequence[str]) -> tuple[tuple[str, Bundle], ...]:
    return tuple((name, bundles[name]) for name in names)


def _board(bundles: Sequence[Bundle]) -> Board:
    bits = {key: found for bundle in bundles for key, found in bundle.bits.items()}
    records: list[Record] = [record for bundle in bundles for record in bundle.records]
    return make_board(records, lambda record: bits[record.key])
