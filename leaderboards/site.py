"""The site of all published results: an index, and for each board its page, its tables and its sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from leaderboards.boards import TRACKS, Board, BoardRow, make_board
from leaderboards.bundle import Bundle, write_bundle
from leaderboards.card import is_made
from leaderboards.escaping import shown
from leaderboards.files import write_atomically
from leaderboards.page import to_page
from leaderboards.record import Record, schema
from leaderboards.tables import to_csv, to_json, to_latex, to_markdown
from leaderboards.union import Published, boards_of, merge

TITLE = "soupbench leaderboards"
_TABLES: dict[str, Callable[[Board], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json, "tex": to_latex}


@dataclass(frozen=True, slots=True)
class Entry:
    """One board of the site and its result files. `slug` is the prefix of its page names."""

    slug: str
    board: Board
    bundles: tuple[tuple[str, Bundle], ...]

    @property
    def severities(self) -> str:
        """The severities in words."""
        return ", ".join(f"{severity:g}" for severity in self.board.severities)

    @property
    def leaders(self) -> list[BoardRow]:
        """The best complete main row of each track by mean accuracy."""
        rows = [row for row in self.board.rows if row.main and row.accuracy is not None]
        return [row for track in TRACKS if (row := next((r for r in rows if r.track == track), None))]

    @property
    def about(self) -> str:
        """The page with the sources of this board."""
        return f"{self.slug}-about.html"

    @property
    def links(self) -> list[tuple[str, str]]:
        """Files of this board, relative to the site, and their link texts."""
        made = [(f"{self.slug}.html", "board"), (self.about, "about these results")]
        made += [(f"{self.slug}.{end}", end) for end in _TABLES]
        return made + [(f"results/{name}", name) for name, _ in self.bundles]


@dataclass(frozen=True, slots=True)
class Site:
    """All published results as they are shown: the boards by address, and every record once."""

    entries: tuple[Entry, ...]
    published: Published


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


def _same(records: Sequence[Record], board: Board, now: Published, then: Published) -> bool:
    """Return whether a board has these records, with the same outcomes."""
    keys = {key for row in board.rows for key in row.keys}
    return keys == {record.key for record in records} and all(
        then.records[key] == now.records[key] and np.array_equal(then.bits[key].hits, now.bits[key].hits)
        for key in keys
    )


def build_site(bundles: Mapping[str, Bundle], out: Path) -> list[Path]:
    """Write the site of checked bundles (by file name) into a folder and return its pages; other files there stay.

    index.html lists the boards; SLUG.html is a board, with the numbers of papers below it; SLUG-about.html holds its
    sources (model cards, settings); the same numbers are also written as md, csv, json and tex; records/KEY.json is
    every record, results/NAME.jsonl every bundle.
    """
    site = make_site(bundles)
    for name, bundle in bundles.items():
        write_bundle(out / "results" / name, bundle)
    files = files_of(site)
    for name, content in files.items():
        write_atomically(out / name, content.encode())
    return [out / name for name in files if name.endswith(".html")]


def files_of(site: Site, *, with_figures: bool = True) -> dict[str, str]:
    """Return the text of every file of a site but the bundles, by its address; the index is the first."""
    files = {"index.html": _page("site_index.html", title=TITLE, boards=site.entries)}
    for entry in site.entries:
        board = entry.board
        title = f"{board.shift}, {board.model}, {board.protocol}"
        links = [("index.html", "all boards"), *entry.links[1:]]
        files[f"{entry.slug}.html"] = to_page([board], title=title, links=links, with_figures=with_figures)
        files[entry.about] = _page("site_about.html", title=title, entry=entry, is_made=is_made)
        files |= {f"{entry.slug}.{end}": render(board) for end, render in _TABLES.items()}
    files["record.schema.json"] = json.dumps(schema(), indent=2) + "\n"
    return files | {f"records/{key}.json": f"{r.to_json()}\n" for key, r in site.published.records.items()}


def _page(template: str, **content: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leaderboards"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=shown,
    )
    style = (resources.files("leaderboards") / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **content)
