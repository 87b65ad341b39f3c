"""A page for each method: its facts from the table, its formula, what it is held against, and published results.

Facts are those of `bench show method NAME --json`, formulas stand in formulas.toml, the runs of releases in
docs/parity.md, results in leaderboards/results.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markup import code, formula, plain, table, with_math
from typer.testing import CliRunner

from bench.cli.main import app
from leaderboards import BoardRow, read_bundle
from leaderboards.site import make_site
from methods import METHODS
from methods.table import TRACKS, MethodRow

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1]

NOTATION = with_math(
    "On all pages $x_i$ is an image of a batch of $n$, $z_i$ its logits and $p_i = \\mathrm{softmax}(z_i)$ its "
    "prediction over $C$ classes; $p(c \\mid x)$ is the predicted probability of class $c$ for an image $x$. "
    "$H(p) = -\\sum_c p_c \\log p_c$ is the entropy, in nats, and $\\mathrm{KL}(p \\, \\| \\, q) = "
    "\\sum_c p_c \\log (p_c / q_c)$. $\\theta$ are the parameters that are trained, $\\theta_0$ those of the source "
    "model, and $f(x)$ are the features before the last layer. $\\gamma$, $\\beta$ and $\\varepsilon$ are scale, shift "
    "and addend of a normalisation layer, where a page does not say otherwise. A step down a gradient $\\nabla$ is "
    "one of the optimiser that the options name, at the step size $\\eta$, which is `lr`."
)
_SEES = {
    "none": "no test image",
    "image": "each scored image alone",
    "stream": "the scored stream, batch by batch",
    "pool": "a pool of images before scoring",
}
_SOURCE = {
    "none": "nothing",
    "statistics": "statistics of source images",
    "unlabelled": "source images without labels",
    "labelled": "labelled source images",
}
_STATE = {
    "fixed": "nothing changes along the stream",
    "episodic": "changes are undone after every image",
    "online": "changes are kept along the stream",
    "offline": "all changes precede the stream",
}
_TRAINED = {
    "none": "nothing by gradients",
    "norm": "the affine parameters of normalisation layers",
    "partial": "some of the parameters",
    "full": "all parameters",
}
_TESTED = {
    "golden": "The adapter is held against numbers that the authors' released code produced on the same stream.",
    "restatement": "The adapter is held against a slow restatement of the paper, since no release could be run.",
    "none": "No release is compared with.",
}


@dataclass(frozen=True, slots=True)
class Result:
    """A row of a published board: the board's title and page, and the row."""

    title: str
    page: str
    row: BoardRow


def pages() -> dict[str, str]:
    """Return every page of methods by its name in the site, the table of all methods among them."""
    return {"methods/index.md": _index(), **{f"methods/{name}.md": _page(row) for name, row in METHODS.items()}}


def _index() -> str:
    parts = [
        "# Methods",
        "Every method by the track in which it is ranked, which is decided by what it may see "
        "([concepts](../concepts.md#tracks)). An adapter changes a classifier while it reads the test stream; a recipe "
        "makes a classifier before the stream. `recipe+adapter` runs an adapter on the classifier of a recipe.",
    ]
    for track, words in TRACKS.items():
        rows = [row for row in METHODS.values() if row.access.track == track]
        if rows:
            parts += [f"## Track {track}: {words}", table(("method", "kind", "what it does"), map(_line, rows))]
    parts += ["## Notation", NOTATION]
    return "\n\n".join(parts) + "\n"


def _line(row: MethodRow) -> tuple[str, str, str]:
    return f"[{code(row.name)}]({row.name}.md)", row.kind, plain(row.summary)


def _page(row: MethodRow) -> str:
    facts = facts_of(row.name)
    parts = [
        f"# {row.name}",
        f"{plain(row.summary)}.",
        table(("", ""), _facts(row)),
        "```sh\n" + f"bench run --method source,{row.name} --shift SHIFT\nbench cite {row.name}\n```",
        *_formula(row.name),
        "## What it does",
        *map(plain, paragraphs(facts["description"])),
        *_options(facts),
        *_cost(row, facts),
        *_tested(row.name, facts),
        *_results(row.name),
    ]
    return "\n\n".join(parts) + "\n"


@cache
def facts_of(name: str) -> dict[str, Any]:
    """Return what `bench show method NAME --json` prints."""
    done = CliRunner().invoke(app, ["show", "method", name, "--json"])
    if done.exit_code:
        raise ValueError(f"bench show method {name} failed: {done.output}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _facts(row: MethodRow) -> Iterator[tuple[str, str]]:
    access = row.access
    yield "kind", row.kind
    yield (
        "track",
        f"[{access.track}](index.md#{anchor(f'Track {access.track}: {TRACKS[access.track]}')}): {TRACKS[access.track]}",
    )
    yield "sees", _SEES[access.test]
    yield "uses beside it", _SOURCE[access.source]
    yield "state", _STATE[access.state]
    yield "trains on test images", _TRAINED[access.backprop]
    if row.needs:
        yield "runs on", f"the classifier of [{code(row.needs)}]({row.needs}.md)"
    yield "paper", re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", plain(row.citation))


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def formulas() -> Mapping[str, Mapping[str, Any]]:
    """Return the entries of formulas.toml by method."""
    return tomllib.loads((HERE / "formulas.toml").read_text(encoding="utf-8"))


def _formula(name: str) -> Iterator[str]:
    entry = formulas()[name]
    whole = {**formulas()[entry["as"]], **entry} if "as" in entry else entry
    yield "## Formula"
    yield formula(whole["formula"])
    if "as" in entry:
        yield with_math(f"{whole['where']} The rest is that of [{code(entry['as'])}]({entry['as']}.md).")
    elif "where" in whole:
        # A paragraph that began with a formula would be taken for a block of HTML.
        yield with_math(f"Here {whole['where']}" if whole["where"].startswith("$") else whole["where"])
    yield "[What the other signs mean](index.md#notation)."


def _described(paragraph: str, names: Sequence[str]) -> bool:
    start = re.match(r"([\w, ]+): ", paragraph)
    return start is not None and set(start[1].split(", ")) <= set(names)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring."""
    return [part for part in text.split("\n\n") if part.strip()]


def _options(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Options"
    options = facts["options"]
    if not options:
        yield "None."
        return
    tuned = facts["tuned"]
    titles = ["option", "type", "default", *(f"tuned on {shift}" for shift in tuned)]
    yield table(
        titles,
        (
            [code(option["name"]), code(option["type"]), code(option["default"])]
            + [code(values[option["name"]]) if option["name"] in values else "" for values in tuned.values()]
            for option in options
        ),
    )
    yield f"Set one with `--set {facts['name']}.{options[0]['name']}=VALUE`, or in a run file."
    names = [option["name"] for option in options]
    for paragraph in paragraphs(facts["about_options"]):
        yield "\n".join(_items(paragraph, names)) if _described(paragraph, names) else plain(paragraph)
    yield from _published(facts)


def _items(paragraph: str, names: Sequence[str]) -> Iterator[str]:
    """The lines of a paragraph about options as a list, an item for each `name: text`."""
    for line in paragraph.splitlines():
        start = re.match(r"([\w, ]+): ", line)
        if start is not None and set(start[1].split(", ")) <= set(names):
            yield f"- {', '.join(code(name) for name in start[1].split(', '))}: {plain(line[start.end() :])}"
        else:
            yield f"    {plain(line.strip())}"


def _published(facts: Mapping[str, Any]) -> Iterator[str]:
    """The options in force that are not defaults: by data and norms (adapters), or by shift and budget (recipes)."""
    in_force = facts.get("in_force", {})
    if not in_force:
        return
    yield "### Published options in force"
    if facts["kind"] == "adapter":
        yield (
            "By data and normalisation (bn: BatchNorm, gn: GroupNorm, ln: LayerNorm). All others are the defaults; "
            "`bench show method NAME SHIFT` says what holds on a shift."
        )
        rows = [
            (code(name), ", ".join(f"{key} = {value}" for key, value in words.items()))
            for name, words in in_force.items()
        ]
        yield table(
            ("data and normalisation", "options"), [(name, plain(words) or "the defaults") for name, words in rows]
        )
        return
    alike: dict[str, list[str]] = defaultdict(list)
    for shift, budgets in _by_shift(in_force).items():
        alike[json.dumps(budgets)].append(shift)
    for text, shifts in alike.items():
        budgets = json.loads(text)
        yield f"On {', '.join(code(shift) for shift in shifts)}, by budget:"
        kept = [
            name for name in next(iter(budgets.values())) if any("(budget" in words[name] for words in budgets.values())
        ]
        cells = (
            [code(name), *(plain(words[name].partition(" (budget")[0]) for words in budgets.values())] for name in kept
        )
        yield table(("option", *budgets), cells)


def _by_shift(in_force: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Mapping[str, str]]]:
    found: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
    for name, words in in_force.items():
        shift, _, budget = name.partition(", budget ")
        found[shift][budget] = words
    return found


def _cost(row: MethodRow, facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost"
    yield from map(plain, costs_in(facts["description"]))
    known = tomllib.loads((HERE / "passes.toml").read_text(encoding="utf-8"))
    if row.kind == "recipe":
        yield (
            "One forward pass an image on the stream. What its training takes here: "
            f"`bench run --method {row.name} --shift SHIFT --dry-run`."
        )
    elif row.name in known["passes"]:
        forwards, backwards = known["passes"][row.name]
        passes = f"{forwards:g} forward and {backwards:g} backward passes for each scored image"
        yield f"Measured: {passes} ({known['measured']})."


def costs_in(text: str) -> list[str]:
    """Return the sentences of a description that say what the method costs."""
    sentences = re.split(r"(?<=[.:;])\s+(?=[A-Z])", text.replace("\n", " "))
    return [sentence for sentence in sentences if re.search(r"\b[Cc]osts?\b", sentence)]


def _tested(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## What it is tested against"
    yield (
        _TESTED[facts["tested_against"]]
        if "tested_against" in facts
        else ("Closed forms, small models and, where the table below has a row, the authors' released code.")
    )
    runs = official_runs().get(name, [])
    if runs:
        yield "Largest difference of all outputs along the stream, by run ([how it is measured](../parity.md)):"
        yield table(("run", "release (commit)", "model", "difference", "branches entered"), runs)


@cache
def official_runs() -> Mapping[str, list[list[str]]]:
    """Return the rows of the table of docs/parity.md by method, without the method."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    for line in (HOME / "docs" / "parity.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("<lambda>", "built in the test") for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 6 and cells[0].strip("`") in METHODS:
            found[cells[0].strip("`")].append(cells[1:])
    return found


def _results(name: str) -> Iterator[str]:
    yield "## Published results"
    found = [result for result in results() if result.row.method == name]
    if not found:
        yield "None yet. [Publish one](../boards.md#publishing)."
        return
    yield (
        "Accuracy in % with its 95 % interval, rank within the track, passes for each scored image. Each board says "
        "which images, seeds and model it is of."
    )
    titles = ("board", "row", "rank", "accuracy", "clean", "ECE", "forwards", "backwards", "seeds")
    yield table(titles, map(_result, found))


@cache
def results() -> tuple[Result, ...]:
    """Return the rows of all published boards."""
    files = sorted((HOME / "leaderboards" / "results").glob("*.jsonl"))
    entries = make_site({file.name: read_bundle(file) for file in files}).entries
    return tuple(Result(entry.title, entry.page, row) for entry in entries for row in entry.board.rows)


def _result(result: Result) -> tuple[str, ...]:
    row = result.row
    interval = f" [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]" if row.interval else ""
    return (
        f'<a href="../boards/{result.page}">{plain(result.title)}</a>',
        plain(row.name),
        str(row.rank or "–"),
        f"{100 * row.accuracy:.1f}{plain(interval)}" if row.accuracy is not None else "–",
        *(f"{100 * value:.1f}" if value is not None else "–" for value in (row.clean_accuracy, row.ece)),
        *(f"{value:.1f}" if value is not None else "–" for value in (row.forwards, row.backwards)),
        str(len(row.seeds)),
    )
