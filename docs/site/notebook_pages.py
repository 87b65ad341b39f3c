"""Notebooks as pages: their text, their code, and the outputs they were stored with."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLAB = "https://colab.research.google.com/github/"


def pages(folder: Path, project: str = "") -> dict[str, str | bytes]:
    """Return each notebook of a folder as a page, with its pictures and the notebook itself, by name in the site.

    With the address of the project on GitHub, the page has a link that opens the notebook in Colab.
    """
    made: dict[str, str | bytes] = {}
    for file in sorted(folder.glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        parts = [*_cells(json.loads(file.read_text(encoding="utf-8")), file.stem, pictures)]
        links = [f"[Download this notebook]({file.name})"]
        if project.startswith("https://github.com/"):
            repository = project.removeprefix("https://github.com/").strip("/")
            links.append(f"[open it in Colab]({COLAB}{repository}/blob/main/docs/notebooks/{file.name})")
        parts.insert(1, " or ".join(links) + ".")
        made[f"notebooks/{file.stem}.md"] = "\n\n".join(parts) + "\n"
        made[f"notebooks/{file.name}"] = file.read_bytes()
        made |= {f"notebooks/{name}": content for name, content in pictures.items()}
    return made


def _cells(notebook: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            yield text
        elif text:
            yield f"```python\n{text}\n```"
            for output in cell["outputs"]:
                yield from _output(output, stem, pictures)


def _output(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        yield f"![What the code above draws]({name})"
    elif tables := re.findall(r"<table.*?</table>", "".join(data.get("text/html", "")), re.S):
        yield from (re.sub(r"<(table|tr)[^>]*>", r"<\1>", each) for each in tables)
    elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
        yield f"```text\n{text}\n```"
