"""Labelled images where people keep them: class folders, parquet and arrow, the hub, .npy, IDX and CIFAR files."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.cache import cache_dir
from bench.data.decode import decode, decode_array
from bench.errors import MissingDataError, UsageError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SKIP_LIST = "skipped.txt"
Labels = NDArray[np.int64]


class ImageSet(Protocol):
    """Images with labels, in an order that never changes while the files do not.

    `classes` names them, `labels` (int64 [n]) are positions in it. `key` changes when the files do. `skipped` counts
    images that the user chose to leave out.
    """

    @property
    def key(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What an error calls that image."""

    def read(self, row: int) -> Image.Image:
        """The image in RGB. Raises UsageError where it cannot be read."""


@dataclass(frozen=True, eq=False)
class FolderSet:
    """A tree CLASS/IMAGE; made by `read_folder`."""

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Labels
    key: str
    skipped: int
    as_published: bool

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        return str(self.root / self.files[row])

    def read(self, row: int) -> Image.Image:
        path = self.root / self.files[row]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); mend the link or the rights") from None
        return decode(content, str(path), as_published=self.as_published)


def read_folder(root: Path, classes: Sequence[str] | None = None, *, as_published: bool = False) -> FolderSet:
    """Images of a tree CLASS/IMAGE in the order of sorted class, then sorted file.

    `classes` fixes the labels: a folder may be missing (a subset), but not be one too many. Without it the class
    folders themselves are the classes; folders named by numbers only are sorted as numbers. Hidden files are no
    images; everything else inside a class folder must be one. Links are followed. Files that `skipped.txt` in `root`
    lists (one path a line) are left out and counted.
    Raises MissingDataError without the folder, UsageError for a layout that is not this one.
    """
    if not root.is_dir():
        raise MissingDataError(f"no folder {root}; give the folder that holds one folder for each class")
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    loose = next((entry for entry in entries if entry.is_file() and entry.suffix.lower() in EXTENSIONS), None)
    if loose is not None:
        raise UsageError(f"{loose} lies outside of a class folder; sort the images of {root} into one folder a class")
    if not folders:
        raise UsageError(f"{root} has no class folders; put the images into one folder for each class")
    names = tuple(classes) if classes is not None else _class_order([folder.name for folder in folders])
    places = {name: place for place, name in enumerate(names)}
    extra = next((folder for folder in folders if folder.name not in places), None)
    if extra is not None:
        raise UsageError(
            f"{extra} is not one of the {len(names)} classes ({names[0]}, {names[1 % len(names)]}, …); "
            "move that folder elsewhere"
        )
    left_out = _skip_list(root)
    files: list[str] = []
    labels: list[int] = []
    sha = hashlib.sha256()
    for folder in sorted(folders, key=lambda entry: places[entry.name]):
        for entry in sorted(folder.iterdir()):
            relative = f"{folder.name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if relative in left_out:
                left_out[relative] = True
                continue
            _check_entry(entry)
            stat = entry.stat()
            sha.update(f"{relative}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
            files.append(relative)
            labels.append(places[folder.name])
    unknown = next((name for name, met in left_out.items() if not met), None)
    if unknown is not None:
        raise UsageError(f"{root / SKIP_LIST} lists {unknown}, which is not there; take that line out")
    if not files:
        raise UsageError(f"{root} has class folders but no images in them; copy the images there")
    key = f"folder:{sha.hexdigest()[:32]}"
    return FolderSet(
        root, tuple(files), names, np.array(labels, dtype=np.int64), key, len(left_out), as_published=as_published
    )


def _class_order(names: list[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"\d+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _skip_list(root: Path) -> dict[str, bool]:
    path = root / SKIP_LIST
    if not path.is_file():
        return {}
    return {line.strip(): False for line in path.read_text().splitlines() if line.strip()}


def _check_entry(entry: Path) -> None:
    if entry.is_symlink() and not entry.exists():
        raise UsageError(f"{entry} is a link to nothing; mend or remove it")
    if entry.is_dir():
        raise UsageError(f"{entry} is a folder inside a class folder; move its images one level up")
    if entry.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"{entry} is not an image file; move it out of the class folders")
    if entry.stat().st_size == 0:
        raise UsageError(
            f"{entry} is an empty file of 0 bytes; replace it, or list it in {entry.parent.parent / SKIP_LIST} "
            "to leave it out (the record counts it)"
        )


@dataclass(frozen=True, eq=False)
class ArraySet:
    """Images uint8 [n, h, w, 3] or [n, h, w] in memory or mapped from a file, some rows of them."""

    where: str
    images: NDArray[np.uint8]
    labels: Labels
    classes: tuple[str, ...]
    key: str
    first: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{self.where}[{self.first + row}]"

    def read(self, row: int) -> Image.Image:
        return decode_array(np.asarray(self.images[self.first + row]), self.name(row))


def read_npy(images: Path, labels: Path, classes: Sequence[str], severity: int | None = None) -> ArraySet:
    """Images and labels of `.npy` files; with `severity`, that fifth of a published corruption file.

    A labels file may be as long as all images or as one fifth of them. Pickled arrays are refused.
    Raises MissingDataError or UsageError naming the file.
    """
    pixels, numbers = _load_npy(images), _load_npy(labels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise UsageError(f"{images} holds {pixels.dtype} {list(pixels.shape)}; it must be uint8 [n, height, width, 3]")
    count, first = len(pixels), 0
    if severity is not None:
        if count % 5:
            raise UsageError(f"{images} holds {count} images, not five severities of equal size; fetch it again")
        count //= 5
        first = (severity - 1) * count
    if len(numbers) == len(pixels):
        numbers = numbers[first : first + count]
    elif len(numbers) != count:
        raise UsageError(
            f"{labels} holds {len(numbers)} labels but {images} {len(pixels)} images; fetch both from one release"
        )
    return ArraySet(
        str(images),
        pixels,
        _checked_labels(np.asarray(numbers), len(classes), str(labels)),
        tuple(classes),
        f"npy:{_stat_digest([images, labels])}:{first}",
        first,
    )


def _load_npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingDataError(f"no file {path}; fetch the published files and give their folder") from None
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{path} is not a whole .npy file of numbers ({error}); fetch it again") from None


def _checked_labels(labels: NDArray[Any], classes: int, where: str) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(f"{where} holds {labels.dtype} {list(labels.shape)}; labels must be whole numbers [n]")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(f"{where} has the label {bad}, outside of 0 .. {classes - 1}; check that it fits the classes")
    return labels.astype(np.int64)


def _stat_digest(paths: Sequence[Path]) -> str:
    facts = [f"{path.name}|{path.stat().st_size}|{path.stat().st_mtime_ns}" for path in paths]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def read_idx(images: Path, labels: Path, classes: Sequence[str]) -> ArraySet:
    """Grey images of the IDX files of MNIST and Fashion-MNIST, gzipped or not."""
    pixels, numbers = _read_idx_file(images), _read_idx_file(labels)
    if pixels.ndim != 3 or numbers.ndim != 1:
        raise UsageError(f"{images} and {labels} are not images and labels in IDX; fetch them again")
    if len(pixels) != len(numbers):
        raise UsageError(f"{labels} holds {len(numbers)} labels but {images} {len(pixels)} images; fetch both again")
    checked = _checked_labels(numbers, len(classes), str(labels))
    return ArraySet(str(images), pixels, checked, tuple(classes), f"idx:{_stat_digest([images, labels])}")


def _read_idx_file(path: Path) -> NDArray[np.uint8]:
    """IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, each as big-endian int32, then the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"no file {path}; fetch the IDX files and give their folder") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} is not a whole gzip file ({error}); fetch it again") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UsageError(f"{path} is not an IDX file of bytes; fetch it again")
    dimensions = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">i4", dimensions, 4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape)):
        raise UsageError(f"{path} holds {values.size} values but promises {list(shape)}; fetch it again")
    return values.reshape(shape)


def read_cifar_binary(files: Sequence[Path], classes: Sequence[str], label_bytes: int = 1) -> ArraySet:
    """The "binary version" of CIFAR: records of `label_bytes` labels (the last counts) and 3072 pixel bytes."""
    parts = []
    for path in files:
        try:
            raw = np.fromfile(path, dtype=np.uint8)
        except FileNotFoundError:
            raise MissingDataError(f"no file {path}; fetch the binary version of CIFAR") from None
        if raw.size == 0 or raw.size % (label_bytes + 3072):
            raise UsageError(f"{path} is not a whole file of CIFAR's binary version; fetch it again")
        parts.append(raw.reshape(-1, label_bytes + 3072))
    rows = np.concatenate(parts)
    labels = _checked_labels(rows[:, label_bytes - 1], len(classes), str(files[0]))
    pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySet(str(files[0]), pixels, labels, tuple(classes), f"cifar:{_stat_digest(files)}")


@dataclass(frozen=True, eq=False)
class TableSet:
    """Images in a table that `datasets` reads (parquet, arrow, the hub)."""

    where: str
    table: Any = field(repr=False)
    image_column: str
    labels: Labels
    classes: tuple[str, ...]
    key: str
    as_published: bool
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}"

    def read(self, row: int) -> Image.Image:
        value = self._images[row][self.image_column]
        content = value["bytes"]
        if content is None:
            try:
                content = Path(value["path"]).read_bytes()
            except OSError as error:
                raise UsageError(f"{self.name(row)}: {value['path']} cannot be read ({error.strerror})") from None
        return decode(content, self.name(row), as_published=self.as_published)

    @cached_property
    def _images(self) -> Any:
        import datasets

        return self.table.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )


def read_parquet(files: Sequence[Path], label_column: str | None = None, *, as_published: bool = False) -> TableSet:
    """Images of parquet files in the hub's layout (features Image and ClassLabel)."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise MissingDataError(f"no file {missing}; give the parquet files of the data set")
    try:
        table = datasets.load_dataset(
            "parquet", data_files=[str(path) for path in files], split="train", cache_dir=str(tables_dir())
        )
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise UsageError(f"{files[0]} is not a whole parquet file ({_first_line(error)}); fetch it again") from None
    return _table_set(table, str(files[0]), f"parquet:{_stat_digest(files)}", label_column, as_published=as_published)


def read_arrow(folder: Path, label_column: str | None = None, *, as_published: bool = False) -> TableSet:
    """Images of a folder written by `Dataset.save_to_disk`."""
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UsageError(f"{folder} is not a saved data set ({_first_line(error)}); save it again") from None
    if isinstance(table, Mapping):
        raise UsageError(f"{folder} holds the parts {', '.join(table)}; give the folder of one of them")
    files = sorted(folder.glob("*.arrow"))
    return _table_set(table, str(folder), f"arrow:{_stat_digest(files)}", label_column, as_published=as_published)


def read_hub(
    repo: str,
    config: str | None,
    split: str,
    *,
    offline: bool,
    label_column: str | None = None,
    as_published: bool = False,
) -> TableSet:
    """Images of a data set on the hub, downloaded once by `datasets`. Scripts of a repository are never run.

    Raises MissingDataError where it cannot be reached, is private, or `offline` forbids the download.
    """
    import datasets

    name = repo + (f":{config}" if config else "")
    options = datasets.DownloadConfig(local_files_only=offline)
    try:
        table = datasets.load_dataset(repo, config, split=split, download_config=options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        how = "leave --offline out once, or run: " if offline else "check the name and the network, then run: "
        raise MissingDataError(
            f"hf:{name} ({split}) is not here ({_first_line(error)}); {how}bench data fetch hf:{name}"
        ) from None
    return _table_set(
        table, f"hf:{name} {split}", f"hub:{name}:{split}:{table._fingerprint}", label_column, as_published=as_published
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _table_set(table: Any, where: str, key: str, label_column: str | None, *, as_published: bool) -> TableSet:
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        raise UsageError(f"{where} has {len(images)} image columns ({', '.join(features)}); one is needed")
    if label_column is None:
        likely = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        likely = likely or [name for name in ("label", "labels") if name in features]
        if len(likely) != 1:
            found = ", ".join(likely) or "none"
            raise UsageError(f"{where} has no single label column (found: {found}); keep one ClassLabel column in it")
        label_column = likely[0]
    elif label_column not in features:
        raise UsageError(f"{where} has no column {label_column}; it has {', '.join(features)}")
    labels = np.asarray(table[label_column][:])
    kind = features[label_column]
    if isinstance(kind, datasets.ClassLabel):
        classes = tuple(kind.names)
    elif labels.dtype.kind in "iu" and len(labels):
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    else:
        classes = tuple(sorted({str(label) for label in labels}))
        labels = np.array([classes.index(str(label)) for label in labels], dtype=np.int64)
    checked = _checked_labels(labels, len(classes), where)
    return TableSet(where, table, images[0], checked, classes, key, as_published)


def find_set(
    where: Path, classes: Sequence[str] | None = None, *, as_published: bool = False, label_column: str | None = None
) -> ImageSet:
    """What lies at a path, by its looks: parquet file(s), a saved arrow folder, `.npy` pair, or class folders."""
    if where.suffix == ".parquet":
        return read_parquet([where], label_column, as_published=as_published)
    if where.suffix == ".npy":
        return read_npy(where, where.with_name("labels.npy"), classes or _numbered(where.with_name("labels.npy")))
    if where.is_dir():
        if (where / "state.json").is_file() or (where / "dataset_info.json").is_file():
            return read_arrow(where, label_column, as_published=as_published)
        tables = sorted(where.glob("*.parquet"))
        if tables:
            return read_parquet(tables, label_column, as_published=as_published)
    return read_folder(where, classes, as_published=as_published)


def _numbered(labels: Path) -> tuple[str, ...]:
    numbers = _load_npy(labels)
    return tuple(str(label) for label in range(int(numbers.max()) + 1)) if len(numbers) else ()


def tables_dir() -> Path:
    """Where `datasets` keeps what it makes of parquet files."""
    return cache_dir() / "tables"


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder (or of one file)."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
