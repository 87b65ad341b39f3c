"""Download published data sets: Zenodo archives through pooch, hub data sets through `datasets`."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
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
_MOST_LISTED = 64 << 20
"""Bytes of the longest list of files: a million lines of sha256sum."""
_MOST_MEMBERS = 20_000_000
"""Files in an archive; ImageNet-C has 3.75 million in all."""

PINNED: dict[str, dict[str, str]] = {
    "2235448": {
        "blur.tar": "md5:2d8e81fdd8e07fef67b9334fa635e45c",
        "digital.tar": "md5:89157860d7b10d5797849337ca2e5c03",
        "extra.tar": "md5:d492dfba5fc162d8ec2c3cd8ee672984",
        "noise.tar": "md5:e80562d7f6c3f8834afb1ecf27252745",
        "weather.tar": "md5:33ffea4db4d93fe4a428c40a6ce0c25d",
    },
    "2535967": {"CIFAR-10-C.tar": "md5:56bf5dcef84df0e2308c6dcbcbbd8499"},
    "3555552": {"CIFAR-100-C.tar": "md5:11f0ed0f1191edbf9fa23466ae6021d3"},
}
"""The checksums that Zenodo listed for the files of a record when this project took them over, by its number.

They agree with those that torch_uncertainty, Avalanche and others carry for the same addresses. For other records only
the checksum that the record itself lists is compared, and a fetch says so.
"""


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
    remotes = _listed_at(mirror) if mirror is not None else _of_zenodo(row, say)
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


def _of_zenodo(row: ShiftRow, say: Callable[[str], object]) -> list[Remote]:
    number = row.doi.rpartition(".")[2]
    content = _ask(f"{ZENODO}/{number}", row.name)
    try:
        remotes = [
            Remote(_safe(file["key"]), int(file["size"]), str(file["checksum"]), str(file["links"]["self"]))
            for file in json.loads(content)["files"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MissingDataError(f"Zenodo's answer on {row.name} is no list of files; try again later") from None
    pinned = PINNED.get(number)
    if pinned is None:
        say(f"no published checksum is known for {row.name}: its files are compared with the list they come with")
        return remotes
    for remote in remotes:
        if pinned.get(remote.name) != remote.checksum:
            known = pinned.get(remote.name, "no such file")
            raise UsageError(
                f"Zenodo lists {remote.name} with {remote.checksum}, but it was published with {known}; do not use it, "
                "and report this"
            )
    return remotes


def _listed_at(mirror: str) -> list[Remote]:
    base = mirror.rstrip("/")
    lines = _ask(f"{base}/{SUMS}", mirror).decode("utf-8", "replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})[ ][ *](.+)", line) for line in lines if line.strip()]
    if not found or None in found:
        raise UsageError(f"{base}/{SUMS} is not a list of sha256sum; write it there with: sha256sum FILE… > {SUMS}")
    named = [(match[1], _safe(match[2])) for match in found if match is not None]
    return [Remote(name, 0, f"sha256:{digest}", f"{base}/{name}") for digest, name in named]


def _safe(name: str) -> str:
    """Return a downloaded file name. Raises UsageError if it leads out of the target folder."""
    place = PureWindowsPath(name)  # whose rules are the stricter ones
    if place.drive or place.root or ".." in place.parts or "\\" in name or not name.strip():
        raise UsageError(f"the list of files holds the path {name!r}, which leads elsewhere; do not use this source")
    return name


def _ask(url: str, what: str) -> bytes:
    """Return the content at a URL. Raises MissingDataError if it cannot be reached, UsageError if it has no end."""
    content = b""
    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_content(_CHUNK):
                content += chunk
                if len(content) > _MOST_LISTED:
                    raise UsageError(f"the list at {url} has more than {_MOST_LISTED >> 20} MiB; use another source")
    except requests.RequestException as error:
        raise MissingDataError(
            f"{what} cannot be reached ({_short(error)}); check the network and run the same command again"
        ) from None
    return content


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
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
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
    try:
        room = _Room(archive, shutil.disk_usage(root).free)
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                for member in packed.infolist():
                    room.take(_safe(member.filename), member.file_size)
                packed.extractall(temporary)
        else:
            with tarfile.open(archive) as packed_tar:
                packed_tar.extractall(temporary, filter=room.checked)
        inside = list(temporary.iterdir())
        wrapped = len(inside) == 1 and inside[0].is_dir() and _bare(inside[0].name) == _bare(root.name)
        shutil.copytree(inside[0] if wrapped else temporary, root, dirs_exist_ok=True, copy_function=shutil.move)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Room:
    """The space that an archive may fill, so that a small one never fills a disk."""

    def __init__(self, archive: Path, free: int) -> None:
        self._archive, self._free = archive, free
        self._bytes = self._members = 0

    def take(self, name: str, size: int) -> None:
        """Count a member. Raises UsageError if all so far unpack to more than the disk has room for."""
        self._bytes += size
        self._members += 1
        if self._bytes > self._free or self._members > _MOST_MEMBERS:
            raise UsageError(
                f"{self._archive} unpacks to more than the {self._free / 1e9:.3g} GB left here, or to more than "
                f"{_MOST_MEMBERS:,} files ({name}, …); free space if its source is right, else do not use it"
            )

    def checked(self, member: tarfile.TarInfo, place: str) -> tarfile.TarInfo | None:
        """Count a member, and refuse links and names that lead elsewhere (PEP 706)."""
        self.take(member.name, member.size)
        return tarfile.data_filter(member, place)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
