"""Download published data sets: Zenodo archives through pooch, hub data sets through `datasets`."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tarfile import TarError
from textwrap import shorten
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from bench.core.cache_dir import write_bytes
from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.data.hf_tables import read_hub
from bench.data_tools.locate import SUMS
from bench.shifts import ShiftRow, find_row
from bench.shifts.data_root import Reading

ZENODO = "https://zenodo.org/api/records"
_CHUNK = 1 << 16
_TRIES = 5
_TIMEOUT = 60
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its path below the data set's folder, size in bytes (0: unknown), checksum and URL."""

    name: str
    size: int
    checksum: str
    url: str


def fetch(name: str, reading: Reading, mirror: str | None, say: Callable[[str], object]) -> Path | str:
    """Download the data of a shift below the data root (or into the cache of `datasets`) and return its location.

    Finished files are not fetched again, interrupted ones continue, and every file must match its checksum. `mirror` is
    the URL of a folder that holds the files and their SHA256SUMS. Raises UsageError when offline, MissingDataError if
    the source cannot be reached or the data must be downloaded by hand, BenchError for a full disk.
    """
    row = find_row(name)
    if row.how_to_get.startswith("comes with"):
        return f"nothing to fetch, it {row.how_to_get}"
    if row.how_to_get == "your own files":
        raise UsageError(f"{name} is made of your own files, so there is nothing to fetch; run it where they are")
    if reading.offline:
        raise UsageError("offline forbids fetching; leave --offline out")
    say(f"{name}: {row.size}; licence: {row.licence}")
    if mirror is None and not row.doi:
        return _from_hub(row)
    if not row.places:
        raise UsageError(f"{name} has no folder below the data root; fetch it without --mirror")
    root = reading.root / row.places[0]
    remotes = _listed_at(mirror) if mirror is not None else _of_zenodo(row)
    total = sum(remote.size for remote in remotes)
    say(f"{len(remotes)} files, {total / 1e9:.3g} GB, into {root}" if total else f"{len(remotes)} files into {root}")
    _need_room(root, total)
    pooch.get_logger().setLevel("WARNING")  # the progress bar shows it
    for remote in tqdm(remotes, unit=" files", leave=False, disable=None):
        _get(remote, root)
    if mirror is not None and not any(remote.name.endswith(_ARCHIVES) for remote in remotes):
        sums = "".join(f"{remote.checksum.partition(':')[2]}  {remote.name}\n" for remote in remotes)
        write_bytes(root / SUMS, sums.encode())
    return root


def _from_hub(row: ShiftRow) -> str:
    repo, config = row.repository
    if not repo:
        raise MissingDataError(f"{row.name} cannot be fetched from here; get it from {row.how_to_get}")
    splits = []
    for split in dict.fromkeys((row.hub_test, "train", "validation", "val")):
        try:
            splits.append(f"{split}: {len(read_hub(repo, config, split, offline=False)):,} images")
        except MissingDataError as error:
            if "nknown split" not in str(error):
                raise
    if not splits:
        raise MissingDataError(f"{repo} has no split test, train or validation; choose another data set")
    return f"hub cache ({repo}: {', '.join(splits)})"


def _of_zenodo(row: ShiftRow) -> list[Remote]:
    number = row.doi.rpartition(".")[2]
    facts = _ask(f"{ZENODO}/{number}", row.name).json()
    return [
        Remote(_safe(file["key"]), int(file["size"]), file["checksum"], file["links"]["self"])
        for file in facts["files"]
    ]


def _listed_at(mirror: str) -> list[Remote]:
    base = mirror.rstrip("/")
    lines = _ask(f"{base}/{SUMS}", mirror).text.splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})[ ][ *](.+)", line) for line in lines if line.strip()]
    if not found or None in found:
        raise UsageError(f"{base}/{SUMS} is not a list of sha256sum; write it there with: sha256sum FILE… > {SUMS}")
    named = [(match[1], _safe(match[2])) for match in found if match is not None]
    return [Remote(name, 0, f"sha256:{digest}", f"{base}/{name}") for digest, name in named]


def _safe(name: str) -> str:
    """Return a downloaded file name. Raises UsageError if it leads out of the target folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or not name.strip():
        raise UsageError(f"the list of files holds the path {name!r}, which leads elsewhere; do not use this source")
    return name


def _ask(url: str, what: str) -> requests.Response:
    try:
        answer = requests.get(url, timeout=_TIMEOUT)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise MissingDataError(
            f"{what} cannot be reached ({_short(error)}); check the network and run the same command again"
        ) from None
    return answer


def _short(error: Exception) -> str:
    """Return in a few words what went wrong, for errors of the network without the words of its libraries."""
    if isinstance(error, requests.RequestException):
        where = urlsplit(str(error.request.url or "")).hostname if error.request is not None else None
        answer = error.response
        if answer is not None:
            return f"{where or 'the server'} answers {answer.status_code} {answer.reason}".rstrip()
        if isinstance(error, requests.Timeout):
            return f"no answer from {where or 'the server'} within {_TIMEOUT} s"
        if isinstance(error, requests.ConnectionError) and "fewer bytes" not in str(error):
            return f"no connection to {where or 'the server'}"
    return shorten((str(error) or type(error).__name__).splitlines()[0], 160, placeholder=" …")


def _need_room(root: Path, total: int) -> None:
    nearest_there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(nearest_there).free
    if total > free:
        raise BenchError(
            f"{total / 1e9:.3g} GB do not fit into the {free / 1e9:.3g} GB left at {nearest_there}; free space or "
            "choose another disk with --data-root"
        )


def _get(remote: Remote, root: Path) -> None:
    """Download and verify one file; an archive is unpacked, and a marker file records that it was."""
    mark = root / ".fetched" / f"{remote.name}.{remote.checksum.rpartition(':')[2]}"
    if mark.is_file():
        return
    target = root / remote.name
    part = target.with_name(target.name + ".part")
    try:
        pooch.retrieve(
            remote.url,
            remote.checksum,
            fname=target.name,
            path=target.parent,
            downloader=partial(download, part=part),
        )
        part.unlink(missing_ok=True)
        if target.name.endswith(_ARCHIVES):
            _unpack(target, root)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            target.unlink()
    except requests.RequestException as error:
        raise MissingDataError(
            f"{remote.name} was interrupted ({_short(error)}); run the same command again to continue"
        ) from None
    except ValueError as error:
        part.unlink(missing_ok=True)
        raise MissingDataError(
            f"{remote.name} does not match its checksum and was deleted ({_short(error)}); run the same command again"
        ) from None
    except (TarError, zipfile.BadZipFile, shutil.ReadError, EOFError) as error:
        raise UsageError(f"{target} cannot be unpacked ({_short(error)}); remove it and fetch again") from None
    except OSError as error:
        raise BenchError(f"cannot write below {root} ({error.strerror or error}); free space, then run again") from None


def download(url: str, output: str, _: Any, *, part: Path) -> None:
    """Download a URL to `output` for pooch, through the partial file `part`, which a later call continues.

    A broken connection is retried. Raises requests.RequestException if all tries fail.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            _download_rest(url, part)
            break
        except requests.HTTPError:
            raise
        except requests.RequestException:
            if attempt == _TRIES:
                raise
    # Moved, because a copy would need the space twice; pooch verifies the checksum next.
    part.replace(output)


def _download_rest(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the file is complete
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
        length = int(answer.headers.get("Content-Length", 0))
        bar = tqdm(
            total=have + length or None, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False,
            disable=None,
        )  # fmt: skip
        with part.open("ab" if have else "wb") as file, bar:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if length and part.stat().st_size != have + length:
            raise requests.ConnectionError("fewer bytes arrived than announced")


def _unpack(archive: Path, root: Path) -> None:
    """Unpack into a temporary folder, then move into `root`, without a top folder of that name. Other files stay."""
    temporary = root / ".unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if archive.suffix == ".zip":
        shutil.unpack_archive(archive, temporary)
    else:
        shutil.unpack_archive(archive, temporary, filter="data")
    inside = list(temporary.iterdir())
    wrapped = len(inside) == 1 and inside[0].is_dir() and _bare(inside[0].name) == _bare(root.name)
    shutil.copytree(inside[0] if wrapped else temporary, root, dirs_exist_ok=True, copy_function=shutil.move)
    shutil.rmtree(temporary)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
