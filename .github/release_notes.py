"""Check that a tag can be released, and print its notes: `python .github/release_notes.py vX.Y.Z > notes.md`.

The section of the version in CHANGELOG.md must be complete, and the version that is built must be that of the tag. For
a final release CITATION.cff must name it, and `leaderboards/reference/known.json` the content of its packages.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def notes_of(changelog: str, version: str, *, final: bool = True) -> str:
    """Return the section of a version. Raises ValueError if there is none, or a final one is marked as unreleased."""
    found = re.search(rf"^## {re.escape(version)}( .*)?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section '## {version}'; write it, commit and move the tag")
    if found[1] and final:
        raise ValueError(f"the section of {version} in CHANGELOG.md is marked{found[1]}; take that off and move the tag")
    return found[2].strip() + "\n"


def check(tag: str, built: str, content: str, home: Path = HOME) -> str:
    """Return the notes of a tag. Raises ValueError naming what is not ready."""
    version = tag.removeprefix("v")
    if built != version:
        raise ValueError(f"the tag {tag} would release the version {built}; tag a clean commit that has no later tag")
    final = re.fullmatch(r"\d+\.\d+\.\d+", version) is not None
    changelog = (home / "CHANGELOG.md").read_text(encoding="utf-8")
    notes = notes_of(changelog, re.sub(r"(a|b|rc)\d+$", "", version), final=final)
    if final:
        citation = (home / "CITATION.cff").read_text(encoding="utf-8")
        if f"\nversion: {version}\n" not in citation or "\ndate-released: " not in citation:
            raise ValueError(f"CITATION.cff does not name {version} and its date; write both and move the tag")
        known = json.loads((home / "leaderboards" / "reference" / "known.json").read_text(encoding="utf-8"))
        if known["releases"].get(version) != content:
            raise ValueError(f'known.json lacks "{version}": "{content}" in releases; add it and move the tag')
    return notes


def main() -> None:
    sys.path.insert(0, str(HOME))
    from bench.core.environment import package_digest
    from bench.core.version import version

    try:
        sys.stdout.write(check(sys.argv[1], version(), package_digest()))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
