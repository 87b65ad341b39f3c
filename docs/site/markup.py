"""Markdown of generated pages: escaped text, tables, and formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from latex2mathml.converter import convert

_CODE = re.compile(r"(`[^`\n]+`)")
_MATH = re.compile(r"\$([^$]+)\$")
_THIN = '<mspace width="0.17em"/>'
_LOGARITHM = re.compile("<mi>(?:log|ln)</mi>")
# Where a factor ends and a logarithm follows.
_AFTER_FACTOR = re.compile("(?:(?<=</mi>)|(?<=</msub>)|(?<=</msup>)|(?<=</msubsup>))(?=<mi>(?:log|ln)</mi>)")


def plain(text: str) -> str:
    """Return text from code as Markdown that shows it as it is; `code spans` in it stay code spans."""
    parts = _CODE.split(text)
    return "".join(
        part if place % 2 else re.sub(r"([\\*_\[\]<>|#$])", r"\\\1", part) for place, part in enumerate(parts)
    )


def code(text: object) -> str:
    """Return a code span that may stand in a cell of a table."""
    return f"<code>{html.escape(str(text)).replace('|', '&#124;')}</code>"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a pipe table; cells are Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def formula(lines: str | Sequence[str]) -> str:
    """Return lines of LaTeX as MathML, each in a box of its own that scrolls where the screen is narrow."""
    lines = [lines] if isinstance(lines, str) else lines
    return "\n".join(f'<div class="formula">{_mathml(line, "block")}</div>' for line in lines)


def with_math(text: str) -> str:
    """Replace each $LaTeX$ in Markdown by MathML."""
    return _MATH.sub(lambda found: _mathml(found[1], "inline"), text)


def _mathml(latex: str, display: str) -> str:
    made = convert(latex, display=display)
    if unknown := re.findall(r"\\\w*", made):
        raise ValueError(
            f"the formula {latex!r} has {', '.join(unknown)}, which latex2mathml does not know; write it otherwise"
        )
    made = _AFTER_FACTOR.sub(_THIN, _LOGARITHM.sub(rf"\g<0>{_THIN}", made))
    return made.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)
