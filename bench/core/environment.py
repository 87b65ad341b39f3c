"""Describe the environment of a measurement: versions, code state and hardware. It is stored, but not in any key."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from bench.core.version import version

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


@cache
def environment() -> dict[str, str | bool | None]:
    """Return the versions of the project, Python and the numeric libraries, and the git commit of a checkout.

    `package` is a digest of this project's code, because a version does not identify an edited tree.
    """
    home = Path(__file__).resolve().parents[2]
    commit = _git(home, "rev-parse", "--short=12", "HEAD") if (home / ".git").exists() else None
    state = _git(home, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "project": version(),
        "git": commit,
        "dirty": bool(state) if commit else None,
        "package": package_digest(),
        **libraries(),
    }


def libraries() -> dict[str, str | None]:
    """Return the versions of Python and the numeric libraries, and the platform: what no commit of ours changes."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{library: _version(library) for library in _LIBRARIES},
    }


def package_digest() -> str:
    """Return a digest of the source of the four installed packages, 16 hexadecimal digits."""
    return own_code("bench", "corruptions", "methods", "leaderboards")[:16]


@cache
def own_code(*packages: str) -> str:
    """Return a hash of the source of packages of this project (bench, corruptions, methods, leaderboards)."""
    sha = hashlib.sha256()
    home = Path(__file__).resolve().parents[2]
    # Names are compared and written in the same way on all systems.
    paths = sorted((path for name in packages for path in (home / name).rglob("*.py")), key=lambda path: path.parts)
    for path in paths:
        sha.update(f"{path.relative_to(home).as_posix()}|".encode() + path.read_bytes())
    return sha.hexdigest()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _git(home: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=home, capture_output=True, encoding="utf-8", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """Return the hardware name of a torch device."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({_processor()})"


@cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
