"""The site of all published results: a front page, and for each board its page, its tables, figures and sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leaderboards import figures, heat, matrix_figures, matrix_tables
from leaderboards.boards import Board, BoardRow, make_board
from leaderboards.bundle import Bundle, write_bundle
from leaderboards.card import is_made
from leaderboards.files import write_atomically
from leaderboards.html import legend, render
from leaderboards.matrix import comparable, comparisons
from leaderboards.matrix_page import drawn as drawn_matrix
from leaderboards.matrix_page import front, section
from leaderboards.page import Download, row_id, to_page
from leaderboards.record import Record, schema
from leaderboards.tables import caption, to_csv, to_json, to_latex, to_markdown
from leaderboards.union import PublishedRecords, boards_of, merge

TITLE = "soupbench leaderboards"
MATRIX = "matrix.html"
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


@dataclass(frozen=True, slots=True)
class Site:
    """All published results as they are shown: the boards by address, and every record once."""

    entries: tuple[Entry, ...]
    published: PublishedRecords


def make_site(bundles: Mapping[str, Bundle], like: Site | None = None) -> Site:
    """Make the boards of checked bundles (by file name); those that are equal to boards of `like` are taken from there.

    Which results stand together, and where, is said in `leaderboards.union`; rows have their full names.
    """
    published = merge(bundles)
    known = {entry.slug: entry for entry in like.entries} if like else {}
    entries = []
    for slug, records in boards_of(published.records.values()).items():
        before = known.get(slug)
        if like is not None and before is not None and _same(records, before.board, published, like.published):
            board = before.board
        else:
            board = make_board(records, lambda record: published.bits[record.key], full_names=True)
        names = sorted({name for record in records for name in published.homes[record.key]})
        entries.append(Entry(slug, board, tuple((name, bundles[name]) for name in names)))
    return Site(tuple(entries), published)


def _same(records: Sequence[Record], board: Board, now: PublishedRecords, then: PublishedRecords) -> bool:
    """Return whether a board has these records, with the same outcomes."""
    keys = {key for row in board.rows for key in row.keys}
    return keys == {record.key for record in records} and all(
        then.records[key] == now.records[key] and np.array_equal(then.bits[key].hits, now.bits[key].hits)
        for key in keys
    )


def build_site(bundles: Mapping[str, Bundle], out: Path | str, *, project: str | None = None) -> list[Path]:
    """Write the site of checked bundles (by file name) into a folder and return its pages; other files there stay.

    index.html holds methods against boards, matrix.html means and mean ranks over boards that differ only in shift,
    protocol or model, if there are any; SLUG.html is a board, with the numbers of papers below it; SLUG-about.html
    holds its sources (model cards, settings), submit.html how to add a result. The same numbers are also written as
    csv, json, md and tex, the figures as svg; records/KEY.json is every record, results/NAME.jsonl every bundle.
    `project` is the address of the source code, for links.
    """
    out = Path(out)
    for name, bundle in bundles.items():
        write_bundle(out / "results" / name, bundle)
    sizes = {name: (out / "results" / name).stat().st_size for name in bundles}
    files = files_of(make_site(bundles), sizes, project=project)
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files if name.endswith(".html")]


def files_of(
    site: Site, sizes: Mapping[str, int], *, project: str | None = None, with_figures: bool = True
) -> dict[str, bytes]:
    """Return every file of a site but the bundles, whose sizes are given, by its address; the front page is the first.

    Raises BoardError for a board that cannot be shown.
    """
    links = [("index.html", "all boards"), ("submit.html", "how to submit"), (PAPER, "paper of Self-Souping")]
    links += [(project, "project")] if project else []
    matrices, files = _matrices(site.entries, with_figures=with_figures)
    if matrices:
        links.insert(1, (MATRIX, "means and ranks"))
    listed = []
    for entry in site.entries:
        drawn = figures.drawn(entry.board) if with_figures else {}
        beside = _files_of_board(entry, drawn)
        results = [(f"results/{name}", name) for name, _ in entry.bundles]
        downloads = [
            *(Download(name, kind, len(data)) for name, (kind, data) in beside.items()),
            *(Download(address, "JSON lines, all results", sizes.get(name, 0)) for address, name in results),
        ]
        own = [links[0], (entry.about, "about these results"), *links[1:]]
        confirmed = {key: word for _, bundle in entry.bundles for key, word in bundle.provenance.items()}
        page = to_page(
            [entry.board], title=entry.title, links=own, drawn=[drawn], downloads=[downloads], confirmed=confirmed
        )
        files |= {name: data for name, (_, data) in beside.items()}
        files |= {entry.page: page.encode(), entry.about: _about(entry, downloads, links).encode()}
        listed.append({"entry": entry, "caption": caption(entry.board), "downloads": downloads})
    boards = [entry.board for entry in site.entries]
    view = front([(entry.page, entry.board) for entry in site.entries])
    compared = MATRIX if matrices else ""
    shared = {"legend": legend(boards), "project": project}
    head = {"title": TITLE, "links": links[1:], "boards": listed, "matrix": view, "compared": compared}
    index = render("front.html.jinja", **head, **shared)
    others = [link for link in links if link[0] != "submit.html"]
    submit = render("submit.html.jinja", title="How to submit", links=others, **shared)
    if matrices:
        files[MATRIX] = _matrix_page(matrices, [link for link in links if link[0] != MATRIX], legend(boards)).encode()
    return {
        "index.html": index.encode(),
        **files,
        "submit.html": submit.encode(),
        "record.schema.json": (json.dumps(schema(), indent=2) + "\n").encode(),
        **{f"records/{key}.json": f"{r.to_json()}\n".encode() for key, r in site.published.records.items()},
    }


def _matrix_page(
    matrices: Sequence[Mapping[str, Any]], links: Sequence[tuple[str, str]], known: Sequence[tuple[str, str, str]]
) -> str:
    return render(
        "matrix.html.jinja", title="Means and ranks", links=links, legend=known, matrices=matrices, colours=heat.style()
    )


def _matrices(entries: Sequence[Entry], *, with_figures: bool) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the sections of the page of means and ranks, one for each axis, and the files beside it by address."""
    pages = {id(entry.board): entry.page for entry in entries}

    def address(board: Board, row: BoardRow | None) -> str:
        return pages[id(board)] + (f"#{row_id(board, row)}" if row else "")

    sections: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for axis, made in comparable([entry.board for entry in entries]).items():
        tests = comparisons(made)
        drawn = drawn_matrix(made, tests) if with_figures else {}
        beside: dict[str, tuple[str, bytes]] = {
            f"matrix-{axis}.csv": ("CSV", matrix_tables.to_csv(made).encode()),
            f"matrix-{axis}.json": ("JSON", matrix_tables.to_json(made, tests).encode()),
            f"matrix-{axis}.md": ("Markdown", matrix_tables.to_markdown(made, tests).encode()),
            f"matrix-{axis}.tex": ("LaTeX", matrix_tables.to_latex(made, tests).encode()),
        }
        for name, svg in drawn.items():
            title = matrix_figures.TITLES[name].lower()
            beside[f"matrix-{axis}--{name}.svg"] = (f"SVG, {title}", figures.to_file(svg))
        downloads = [Download(name, kind, len(data)) for name, (kind, data) in beside.items()]
        sections.append(
            section(made, tests, address, heading=f"{axis.capitalize()}s", drawn=drawn, downloads=downloads)
        )
        files |= {name: data for name, (_, data) in beside.items()}
    return sections, files


def _files_of_board(entry: Entry, drawn: Mapping[str, bytes]) -> dict[str, tuple[str, bytes]]:
    """Return the kind and the content of the tables and figures of a board, by address."""
    content = {f"{entry.slug}.{end}": (kind, made(entry.board).encode()) for end, (kind, made) in _TABLES.items()}
    for name, svg in drawn.items():
        content[f"{entry.slug}--{name}.svg"] = (f"SVG, {figures.TITLES[name].lower()}", figures.to_file(svg))
    return content


def _about(entry: Entry, files: Sequence[Download], links: Sequence[tuple[str, str]]) -> str:
    return render(
        "about.html.jinja",
        title=f"About {entry.title}",
        links=[links[0], (entry.page, "board"), *links[1:]],
        legend=legend([entry.board]),
        downloads=files,
        bundles=entry.bundles,
        is_made=is_made,
    )
