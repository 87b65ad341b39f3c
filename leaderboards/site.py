"""The site of all published results: an index, and for each board its page, its tables and its sources."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from leaderboards.boards import TRACKS, Board, BoardError, BoardRow, make_board
from leaderboards.bundle import Bundle, write_bundle
from leaderboards.card import is_made
from leaderboards.escaping import shown
from leaderboards.files import write_atomically
from leaderboards.page import to_page
from leaderboards.record import Record, schema
from leaderboards.tables import to_csv, to_json, to_latex, to_markdown

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


def build_site(bundles: Mapping[str, Bundle], out: Path) -> list[Path]:
    """Write the site of checked bundles (by file name) into a folder and return its pages; other files there stay.

    index.html lists the boards; SLUG.html is a board, with the numbers of papers below it; SLUG-about.html holds its
    sources (model cards, settings); the same numbers are also written as md, csv, json and tex; records/KEY.json is
    every record, results/NAME.jsonl every bundle. Result files with equal shift, model, protocol, split, labels and
    severities make one board, or one board each if their rows must not be mixed.
    """
    entries = _entries(bundles)
    pages = [out / "index.html"]
    write_atomically(pages[0], _page("site_index.html", title=TITLE, boards=entries).encode())
    write_atomically(out / "record.schema.json", (json.dumps(schema(), indent=2) + "\n").encode())
    for name, bundle in bundles.items():
        write_bundle(out / "results" / name, bundle)
        for record in bundle.records:
            write_atomically(out / "records" / f"{record.key}.json", record.to_json().encode() + b"\n")
    for entry in entries:
        board = entry.board
        pages.append(out / f"{entry.slug}.html")
        title = f"{board.shift}, {board.model}, {board.protocol}"
        links = [("index.html", "all boards"), *entry.links[1:]]
        write_atomically(pages[-1], to_page([board], title=title, links=links).encode())
        pages.append(out / entry.about)
        write_atomically(pages[-1], _page("site_about.html", title=title, entry=entry, is_made=is_made).encode())
        for end, render in _TABLES.items():
            write_atomically(out / f"{entry.slug}.{end}", render(board).encode())
    return pages


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
