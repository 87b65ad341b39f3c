"""HTML from the templates: every text is escaped, nothing is fetched, and only the page's own script may run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from leaderboards.board_data import MEANING, TRACKS, BoardData
from leaderboards.escaping import shown, visible

if TYPE_CHECKING:
    from jinja2 import Environment

_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")
_OF_OTHERS = ("E", "F")
_EXAMPLES = 4  # methods that the legend names for each track


def render(template: str, **content: object) -> str:
    """Return a page. Its policy forbids all sources but the style and the one script that stand in it."""
    return _environment().get_template(template).render(**content)


def legend(boards: Iterable[BoardData]) -> list[tuple[str, str, str]]:
    """Return each track, what its methods may see, and some that are on these boards; tracks without any have "".

    The tracks of methods that saw another shift (E, F) are there only if a board has some."""
    found: dict[str, dict[str, None]] = {track: {} for track in TRACKS}
    for board in boards:
        for row in board.rows:
            found[row.track][row.method] = None
    return [
        (track, MEANING[track], ", ".join(list(found[track])[:_EXAMPLES]))
        for track in TRACKS
        if found[track] or track not in _OF_OTHERS
    ]


def fragment(*texts: str) -> str:
    """Return an id for texts, different for different ones; it is the texts themselves if they are plain words."""
    if all(_PLAIN.fullmatch(text) for text in texts):
        return ":".join(texts)
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(texts)).strip("-")
    return f"{safe[:60]}:{hashlib.sha256(repr(texts).encode()).hexdigest()[:8]}"


def size_in_words(size: int) -> str:
    """Return a number of bytes as "5.2 kB" or "1.3 MB", in powers of ten."""
    return f"{size} B" if size < 1000 else f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _breakable(text: str) -> str:
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[:=_+])", visible(text)))


def _text(name: str) -> str:
    return (resources.files("leaderboards") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    script = _text("page.js")
    environment.globals["style"] = _text("page.css")
    environment.globals["script"] = script
    environment.globals["script_digest"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["breakable"] = _breakable
    environment.filters["ours"] = Markup  # for trusted parts: style, script and figures
    return environment
