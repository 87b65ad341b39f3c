"""Images in tables that `datasets` reads: parquet, arrow, the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.cache import cache_dir
from bench.data.decode import decode
from bench.data.identity import Files, open_files, open_tree, stamps_of
from bench.data.imageset import Labels, checked_labels
from bench.errors import MissingDataError, UsageError


@dataclass(frozen=True, eq=False)
class TableSet:
    """Images in a table that `datasets` reads (parquet, arrow, the hub).

    The table is mapped from `files`. `outside` are image files that some rows only name, `places` where in it each is.
    """

    where: str
    table: Any = field(repr=False)
    image_column: str
    labels: Labels
    classes: tuple[str, ...]
    key: str
    as_published: bool
    skipped: int = 0
    files: Files | None = None
    outside: Files | None = None
    places: Mapping[int, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}"

    def read(self, row: int) -> Image.Image:
        value = self._images[row][self.image_column]
        content = value["bytes"]
        if content is None:
            if self.outside is None or row not in self.places:
                raise UsageError(f"{self.name(row)} holds no image; write the table again with the images in it")
            try:
                content = self.outside.read(self.places[row])
            except OSError as error:
                raise UsageError(f"{self.name(row)}: {value['path']} cannot be read ({error.strerror})") from None
        fix = "write the table again without it"
        return decode(content, self.name(row), fix, as_published=self.as_published)

    def check(self) -> None:
        if self.files is not None:
            self.files.check()

    @cached_property
    def _images(self) -> Any:
        import datasets

        return self.table.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )


def read_parquet(
    files: Sequence[Path],
    label_column: str | None = None,
    *,
    as_published: bool = False,
    classes: Sequence[str] | None = None,
) -> TableSet:
    """Images of parquet files in the hub's layout (features Image and ClassLabel)."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    opened = open_files(files, "give the parquet files of the data set")
    # By itself `datasets` knows a file by its path and time only.
    kept = tables_dir() / opened.digest
    try:
        table = datasets.load_dataset(
            "parquet", data_files=[str(path) for path in files], split="train", cache_dir=str(kept)
        )
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise UsageError(f"{files[0]} is not a whole parquet file ({_first_line(error)}); fetch it again") from None
    opened.check()
    key = f"parquet:{opened.digest}"
    return _table_set(table, str(files[0]), key, label_column, classes, as_published=as_published)


def read_arrow(
    folder: Path,
    label_column: str | None = None,
    *,
    as_published: bool = False,
    classes: Sequence[str] | None = None,
) -> TableSet:
    """Images of a folder written by `Dataset.save_to_disk`."""
    import datasets

    told = [path for path in (folder / "state.json", folder / "dataset_info.json") if path.is_file()]
    files = open_files([*told, *sorted(folder.glob("*.arrow"))])
    try:
        table = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UsageError(f"{folder} is not a saved data set ({_first_line(error)}); save it again") from None
    if isinstance(table, Mapping):
        raise UsageError(f"{folder} holds the parts {', '.join(table)}; give the folder of one of them")
    files.check()
    key = f"arrow:{files.digest}"
    return _table_set(table, str(folder), key, label_column, classes, as_published=as_published, files=files)


def read_hub(
    repo: str,
    config: str | None,
    split: str,
    *,
    offline: bool,
    label_column: str | None = None,
    as_published: bool = False,
    classes: Sequence[str] | None = None,
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
    files = open_files([Path(file["filename"]) for file in table.cache_files])
    key = f"hub:{files.digest}" if table.cache_files else f"hub:{name}:{split}:{table._fingerprint}"
    return _table_set(table, f"hf:{name} {split}", key, label_column, classes, as_published=as_published, files=files)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _table_set(
    table: Any,
    where: str,
    key: str,
    label_column: str | None,
    known: Sequence[str] | None,
    *,
    as_published: bool,
    files: Files | None = None,
) -> TableSet:
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        raise UsageError(f"{where} has {len(images)} image columns ({', '.join(features)}); one is needed")
    if label_column is None:
        label_column = _label_column(table, where, known)
    elif label_column not in features:
        raise UsageError(f"{where} has no column {label_column}; it has {', '.join(features)}")
    classes, labels = _classes_of(table, label_column, where, known)
    key = f"{key}:{as_published:d}"
    outside, places = _outside(table, images[0], where)
    if outside is not None:
        key = f"{key}:{outside.digest}"
    return TableSet(
        where, table, images[0], labels, classes, key, as_published, files=files, outside=outside, places=places
    )


def _outside(table: Any, column: str, where: str) -> tuple[Files | None, dict[int, int]]:
    """The image files that rows name without holding their bytes, and where among them that of each such row is."""
    chunks = table.data.column(column).chunks
    if table._indices is not None or not any(chunk.field("bytes").null_count for chunk in chunks):
        return None, {}
    places: dict[int, int] = {}
    paths: list[str] = []
    first = 0
    for chunk in chunks:
        if chunk.field("bytes").null_count:
            for row, value in enumerate(chunk.to_pylist(), start=first):
                if value["bytes"] is None and value["path"] is not None:
                    places[row] = len(paths)
                    paths.append(str(Path(value["path"]).absolute()))
        first += len(chunk)
    try:
        stamps = stamps_of(Path(path).stat() for path in paths)
    except OSError as error:
        raise UsageError(f"{where}: {error.filename} cannot be read ({error.strerror}); bring it there again") from None
    return open_tree(Path(where) / "outside", paths, stamps), places


def _label_column(table: Any, where: str, known: Sequence[str] | None) -> str:
    """The column of class names that are `known`, else the only one of classes, else one that is called label."""
    import datasets

    features = table.features
    if known is not None and len(table):
        texts = [name for name, kind in features.items() if getattr(kind, "dtype", "") == "string"]
        named = [name for name in texts if not isinstance(features[name], datasets.ClassLabel)]
        fitting = [name for name in named if table[0][name] in known] if named else []
        if len(fitting) == 1:
            return str(fitting[0])
    likely = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    likely = likely or [name for name in ("label", "labels") if name in features]
    if len(likely) != 1:
        found = ", ".join(likely) or "none"
        raise UsageError(f"{where} has no single label column (found: {found}); keep one ClassLabel column in it")
    return str(likely[0])


def _classes_of(table: Any, column: str, where: str, known: Sequence[str] | None) -> tuple[tuple[str, ...], Labels]:
    """Class names and labels of a column; in the order of the `known` classes where it names those."""
    import datasets

    values = np.asarray(table[column][:])
    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
        labels = checked_labels(values, len(names), where)
    elif values.dtype.kind in "iu" and len(values):
        checked_labels(values, int(values.max()) + 1, where)
        names = tuple(str(number) for number in range(int(values.max()) + 1))
        labels = values.astype(np.int64)
    else:
        names = tuple(sorted({str(value) for value in values}))
        places = {name: place for place, name in enumerate(names)}
        labels = np.array([places[str(value)] for value in values], dtype=np.int64)
    if known is None:
        return names, labels
    if set(names) <= set(known):
        order = {name: place for place, name in enumerate(known)}
        return tuple(known), np.array([order[name] for name in names], dtype=np.int64)[labels]
    if len(names) > len(known) or (len(names) < len(known) and isinstance(kind, datasets.ClassLabel)):
        raise UsageError(f"{where} has {len(names)} classes in {column}, not {len(known)}; give another data set")
    return tuple(known), labels


def tables_of(root: Path, split: str) -> list[Path]:
    """All parquet files of a split in a folder as the hub lays it out: below it or below its `data`."""
    return sorted(root.glob(f"{split}*.parquet")) or sorted((root / "data").glob(f"{split}*.parquet"))


def tables_dir() -> Path:
    """Where `datasets` keeps what it makes of parquet files."""
    return cache_dir() / "tables"
