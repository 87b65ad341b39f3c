"""Write the sources of the documentation site: the pages of docs/, and those that are generated from code.

    python docs/site/pages.py build/docs

The folder is written anew. `mkdocs.yml` names the pages in their order; any builder that reads it makes the site. The
address of the project ($SOUPBENCH_PROJECT) gives notebooks a link that opens them in Colab.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import command_page
import data_pages
import interface_pages
import method_pages
import notebook_pages

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
HOME = DOCS.parent
BOARDS = '<a href="boards/index.html">The published boards</a>'
_OF_THE_PROJECT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCED = re.compile(r"(^```.*?^```[^\n]*$)", re.S | re.M)


def written() -> dict[Path, str]:
    """Return the pages that people wrote, with their names in the site."""
    own = {page: page.relative_to(DOCS).as_posix() for page in sorted(DOCS.glob("**/*.md"))}
    return own | {HOME / name: placed for name, placed in _OF_THE_PROJECT.items()}


def relinked(page: Path, placed: dict[Path, str]) -> str:
    """Return the text of a page with the links that it has in the site.

    Raises ValueError for a link to a file that is not in the site.
    """

    def moved(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if re.match(r"[a-z]+:", target) or not target:
            return found[0]
        file = (page.parent / target).resolve()
        if file.parent == DOCS / "figures" and file.exists():
            name = f"figures/{file.name}"
        elif file in placed:
            name = placed[file]
        elif file.parent == DOCS / "notebooks" and file.exists():
            name = f"notebooks/{file.stem}.md"
        else:
            raise ValueError(
                f"{page.relative_to(HOME)} links to {target}, which is no page of the site; name it in a code span"
            )
        way = os.path.relpath(name, start=Path(placed[page]).parent).replace(os.sep, "/")
        return f"{found[1]}{way}{'#' + anchor if anchor else ''}{found[3]}"

    parts = _FENCED.split(page.read_text(encoding="utf-8"))
    return "".join(part if place % 2 else _LINK.sub(moved, part) for place, part in enumerate(parts))


def write(out: Path, project: str = "") -> None:
    """Write everything into a folder, in place of what an earlier call left there."""
    shutil.rmtree(out, ignore_errors=True)
    placed = written()
    content: dict[str, str | bytes] = {name: relinked(page, placed) for page, name in placed.items()}
    content["index.md"] = f"{content['index.md']}\n{BOARDS}\n"
    content |= {
        "reference/commands.md": command_page.page(),
        **data_pages.pages(),
        **interface_pages.pages(),
        **method_pages.pages(),
        **notebook_pages.pages(DOCS / "notebooks", project),
        **{f"figures/{file.name}": file.read_bytes() for file in sorted((DOCS / "figures").glob("*.*"))},
        "style.css": (HERE / "style.css").read_text(encoding="utf-8"),
    }
    for name, text in content.items():
        file = out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/site/pages.py FOLDER")
    write(Path(sys.argv[1]), os.environ.get("SOUPBENCH_PROJECT", ""))
