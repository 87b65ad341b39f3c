"""Implement `bench reproduce`: run a reproduction card and compare its numbers with the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from bench.cli.run import carry_out, print_plan, say_counts
from bench.core.console import print_json, print_text, table
from bench.settings.reproductions import Card, PublishedNumbers, cards, find_card
from bench.settings.run_spec import make_spec

if TYPE_CHECKING:
    from bench.runs.reproduction import CardFinding

_WIDTH = 110


def listed() -> list[dict[str, Any]]:
    """Return a row for each card: its name, its summary and its published numbers."""
    return [
        {
            "name": card.name,
            "published": ", ".join(f"{number.row} {number.value:g}" for number in card.published),
            "what": "error" if card.published[0].quantity == "error" else "accuracy",
            "summary": card.summary,
        }
        for card in cards().values()
    ]


def shown(name: str) -> dict[str, Any]:
    """Return the fields of a card, its published numbers by row."""
    fields = find_card(name).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return fields | {"published": {number.row: _number(number) for number in find_card(name).published}}


def _number(published: PublishedNumbers) -> dict[str, Any]:
    told = {published.quantity: published.value, "tolerance": published.tolerance}
    return told | ({"each": list(published.each)} if published.each else {})


def reproduce(name: str | None, flags: Mapping[str, Any], *, dry_run: bool, as_json: bool) -> int:
    """Run a card, print ours beside theirs, and return 0, 1 (trials failed) or 4 (a number differs).

    Without a name the cards are listed. Raises UsageError and MissingDataError as a run does.
    """
    if name is None:
        _print_list(as_json)
        return 0
    from bench.planning.check_names import check_names
    from bench.runs.reproduction import compare, default_folder, exit_code, need_data, why_not_comparable

    card = find_card(name)
    spec = make_spec({"out": default_folder(card)}, card.run, flags)
    check_names([spec])
    need_data(card, spec)
    if dry_run:
        if not as_json:
            print_text("\n".join([*_head(card), ""]))
        return print_plan(spec, as_json)
    outcome = carry_out(spec)
    obstacle = why_not_comparable(card, spec)
    findings = compare(card, outcome.board(), obstacle)
    if as_json:
        told = [finding.as_json() for finding in findings]
        print_json({"card": card.name, "source": card.source, "url": card.url, "obstacle": obstacle, "findings": told})
    else:
        print_text("\n".join([*_head(card), "", _compared(findings), *_foot(card, obstacle)]))
    say_counts(outcome)
    return exit_code(findings, outcome.failed)


def _print_list(as_json: bool) -> None:
    rows = listed()
    if as_json:
        print_json(rows)
    else:
        print_text(table(list(rows[0]), [list(row.values()) for row in rows]))
        print_text("\nbench reproduce NAME runs one; --dry-run says what it would cost")


def _head(card: Card) -> Iterator[str]:
    yield f"{card.name}: {card.summary}"
    for word, text in (("source", f"{card.source}, {card.url}"), ("numbers", card.measures)):
        yield _paragraph(word, text)
    yield _paragraph("data", card.data)
    yield _paragraph("weights", card.weights)


def _foot(card: Card, obstacle: str) -> Iterator[str]:
    yield ""
    if obstacle:
        yield _paragraph("no verdict", obstacle)
    yield _paragraph("tolerance", card.why)
    for text in card.differs:
        yield _paragraph("differs", text)


def _paragraph(word: str, text: str) -> str:
    start = f"{word + ':':<12}"
    return fill(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)


def _compared(findings: Sequence[CardFinding]) -> str:
    rows = []
    for finding in findings:
        ours, width, difference = finding.ours, finding.half_width, finding.difference
        rows.append(
            [
                finding.row,
                f"{finding.theirs:.2f}",
                "-" if ours is None else f"{ours:.2f}" + ("" if width is None else f" ± {width:.2f}"),
                "-" if difference is None else f"{difference:+.2f}",
                f"{finding.tolerance:g}",
                finding.verdict,
            ]
        )
    return table(["row", "theirs", "ours", "difference", "tolerance", "verdict"], rows)
