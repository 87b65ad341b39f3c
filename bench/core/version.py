"""The version of this project, from the tags of git (vX.Y.Z): the same when it is built, installed and run.

The build backend executes this file alone, so it imports the standard library only.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

UNKNOWN = "0+unknown"
"""The version of a copy that is neither installed nor a checkout."""

_TAGS = "v[0-9]*"


@cache
def version() -> str:
    """Return the version (PEP 440) of the code that runs.

    A checkout asks git each time, so an editable installation does not keep the version of the day that it was made:
    "0.2.0" at the tag v0.2.0, "0.2.1.dev3+g0123456789ab" three commits later, with ".dirty" at the end for uncommitted
    changes. A source distribution, an archive of git and an installed wheel say which version they were made from.
    Without tags, as in a shallow clone, the commit is known: "0.dev0+g0123456789ab".
    """
    home = Path(__file__).resolve().parents[2]
    return _tagged(home) or _of_sdist(home) or _of_archive(home) or _installed() or _untagged(home) or UNKNOWN


def _tagged(home: Path) -> str | None:
    said = _git(home, "describe", "--tags", "--long", "--dirty", "--abbrev=12", f"--match={_TAGS}")
    return None if said is None else _from_description(said)


def _untagged(home: Path) -> str | None:
    said = _git(home, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return None if said is None else f"0.dev0+g{said.replace('-', '.')}"


def _from_description(said: str) -> str | None:
    """Return the version of TAG, or of TAG-COMMITS-gHASH, which may end in -dirty."""
    found = re.fullmatch(r"v([0-9][^-]*)(?:-([0-9]+)-(g[0-9a-f]+))?(-dirty)?", said)
    if found is None:
        return None
    release, commits, commit, dirty = found.groups()
    if int(commits or 0) == 0 and not dirty:
        return release
    # What follows a release precedes the next one.
    upcoming = re.sub(r"[0-9]+$", lambda last: str(int(last[0]) + 1), release)
    return f"{upcoming}.dev{commits or 0}+{commit}{'.dirty' if dirty else ''}"


def _git(home: Path, *arguments: str) -> str | None:
    if not (home / ".git").exists():  # a checkout around an installed package is none of this project
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=home, capture_output=True, encoding="utf-8", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _of_sdist(home: Path) -> str | None:
    return _line(home / "PKG-INFO", r"Version: (\S+)")


def _of_archive(home: Path) -> str | None:
    """Return the version in the file that `git archive` fills in, as for the archives of a hosting service."""
    said = _line(home / ".git_archival.txt", r"describe: (\S+)")
    return None if said is None else _from_description(said)


def _line(file: Path, pattern: str) -> str | None:
    try:
        found = re.search(f"^{pattern}$", file.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if found is None else found[1]


def _installed() -> str | None:
    try:
        package = metadata.distribution("soupbench")
    except metadata.PackageNotFoundError:
        return None
    # Another installation may lie in this environment beside the code that runs.
    own = Path(str(package.locate_file("bench/core/version.py"))).resolve() == Path(__file__).resolve()
    return package.version if own else None
