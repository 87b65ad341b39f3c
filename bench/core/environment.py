"""Where a number was made: versions, code state and hardware. Shown beside results, never part of their key."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from bench.core.version import __version__

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


@cache
def environment() -> dict[str, str | bool | None]:
    """Versions of the project, Python and the libraries that move numbers; the git commit if this is a checkout.

    `package` is the content of this project's code, because a version alone says nothing of a tree that was changed.
    """
    home = Path(__file__).resolve().parents[2]
    commit = _git(home, "rev-parse", "--short=12", "HEAD") if (home / ".git").exists() else None
    state = _git(home, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "project": __version__,
        "git": commit,
        "dirty": bool(state) if commit else None,
        "package": package_digest(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{library: _version(library) for library in _LIBRARIES},
    }


def package_digest() -> str:
    """The content of the four packages as they are installed here, 16 hexadecimal digits."""
    return own_code("bench", "corruptions", "methods", "leaderboards")[:16]


@cache
def own_code(*packages: str) -> str:
    """A hash of the source of some of this project's packages: bench, corruptions, methods, leaderboards."""
    sha = hashlib.sha256()
    home = Path(__file__).resolve().parents[2]
    for path in sorted(path for name in packages for path in (home / name).rglob("*.py")):
        sha.update(f"{path.relative_to(home)}|".encode() + path.read_bytes())
    return sha.hexdigest()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _git(home: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=home, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """The name of the hardware behind a torch device string."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({_processor()})"


@cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
