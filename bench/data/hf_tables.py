"""Read images in tables through `datasets`: parquet, arrow, the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.core.cache_dir import cache_dir
from bench.core.errors import MissingDataError, UsageError, first_line
from bench.core.offline import go_offline, is_offline, is_reachable
from bench.core.private_apis import fingerprint_of, is_selection
from bench.data.classes import KnownClasses, in_order, match, natural_order, places_of
from bench.data.content_hash import Files, open_files, open_tree, stamps_of
from bench.data.decode import decode
from bench.data.imageset import Labels, checked_labels

_TRIES = 3


@dataclass(frozen=True, eq=False)
class TableSet:
    """Images in a table that `datasets` reads (parquet, arrow, the hub).

    The table is memory-mapped from `files`. `image_files` are the images that rows refer to by path, `places` maps
    such a row to its position among them.
    """

    where: str
    table: Any = field(repr=False)
    image_column: str
    labels: Labels
    classes: tuple[str, ...]
    key: str
    as_published: bool
    skipped: int = 0
    label_column: str = ""
    notes: tuple[str, ...] = ()
    files: Files | None = None
    image_files: Files | None = None
    places: Mapping[int, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}"

    def read(self, row: int) -> Image.Image:
        value = self._images[row][self.image_column]
        if value is None:
            raise UsageError(f"{self.name(row)} has no image; write the table again without that row")
        content = value["bytes"]
        if content is None:
            if not value["path"]:
                raise UsageError(f"{self.name(row)} has no image; write the table again without that row")
            if self.image_files is None or row not in self.places:
                raise UsageError(f"{self.name(row)} holds no image; write the table again with the images in it")
            try:
                content = self.image_files.read(self.places[row])
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
    classes: Sequence[str] | KnownClasses | None = None,
) -> TableSet:
    """Read images of parquet files in the hub's layout (features Image and ClassLabel).

    Raises MissingDataError or UsageError with the name of the file.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    opened = open_files(files, "give the parquet files of the data set")
    # The cache of `datasets` identifies a file by its path and time only.
    kept = tables_dir() / opened.digest
    try:
        table = datasets.load_dataset(
            "parquet", data_files=[str(path) for path in files], split="train", cache_dir=str(kept)
        )
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise UsageError(f"{files[0]} is not a whole parquet file ({first_line(error)}); fetch it again") from None
    opened.check()
    key = f"parquet:{opened.digest}"
    return _table_set(table, str(files[0]), key, label_column, KnownClasses.of(classes), as_published=as_published)


def read_arrow(
    folder: Path,
    label_column: str | None = None,
    *,
    as_published: bool = False,
    classes: Sequence[str] | KnownClasses | None = None,
) -> TableSet:
    """Read images of a folder written by `Dataset.save_to_disk`. Raises UsageError if it is not one."""
    import datasets

    metadata = [path for path in (folder / "state.json", folder / "dataset_info.json") if path.is_file()]
    files = open_files([*metadata, *sorted(folder.glob("*.arrow"), key=lambda table: table.name)])
    try:
        table = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UsageError(f"{folder} is not a saved data set ({first_line(error)}); save it again") from None
    if isinstance(table, Mapping):
        raise UsageError(f"{folder} holds the parts {', '.join(table)}; give the folder of one of them")
    files.check()
    key = f"arrow:{files.digest}"
    known = KnownClasses.of(classes)
    return _table_set(table, str(folder), key, label_column, known, as_published=as_published, files=files)


def read_hub(
    repo: str,
    config: str | None,
    split: str,
    *,
    offline: bool,
    label_column: str | None = None,
    as_published: bool = False,
    classes: Sequence[str] | KnownClasses | None = None,
) -> TableSet:
    """Read images of a data set on the hub, downloaded once by `datasets`. Scripts of a repository are never run.

    Raises MissingDataError if it cannot be reached, is private, or `offline` forbids the download.
    """
    import datasets

    name = repo + (f":{config}" if config else "")
    unreachable = not (offline or is_offline() or is_reachable())
    if unreachable:
        go_offline()
    options = datasets.DownloadConfig(local_files_only=offline or unreachable)
    try:
        table = _loaded(repo, config, split, options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, *_broken_transfers()) as error:
        how = "leave --offline out once, or run: " if offline else "check the name and the network, then run: "
        why = "the hub does not answer" if unreachable else first_line(error)
        raise MissingDataError(f"hf:{name} ({split}) is not here ({why}); {how}bench data fetch hf:{name}") from None
    files = open_files([Path(file["filename"]) for file in table.cache_files])
    key = f"hub:{files.digest}" if table.cache_files else f"hub:{name}:{split}:{fingerprint_of(table)}"
    known = KnownClasses.of(classes)
    return _table_set(table, f"hf:{name} {split}", key, label_column, known, as_published=as_published, files=files)


class UnlabelledError(UsageError):
    """A part has images but no labels, like the test parts of some data sets."""


def _loaded(repo: str, config: str | None, split: str, options: Any) -> Any:
    """Load a table from the hub. A transfer that breaks off is tried again, which not every release of the hub does."""
    import datasets

    for _ in range(_TRIES - 1):
        try:
            return datasets.load_dataset(repo, config, split=split, download_config=options)
        except _broken_transfers():
            continue
    return datasets.load_dataset(repo, config, split=split, download_config=options)


def _broken_transfers() -> tuple[type[Exception], ...]:
    """Return the errors of a broken connection; releases of the hub client from 1.0 on use httpx."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError

    httpx = sys.modules.get("httpx")
    return ChunkedEncodingError, ConnectionError, *([httpx.TransportError] if httpx else [])


def _table_set(
    table: Any,
    where: str,
    key: str,
    label_column: str | None,
    known: KnownClasses | None,
    *,
    as_published: bool,
    files: Files | None = None,
) -> TableSet:
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _is_plain_image(kind)]
    if len(images) != 1:
        raise UsageError(f"{where} has {len(images)} image columns ({', '.join(features)}); one is needed")
    if known is not None and known.unlabelled:
        labels = np.zeros(len(table), dtype=np.int64)
        return TableSet(where, table, images[0], labels, ("image",), key, as_published)
    if label_column is None:
        label_column = _label_column(table, where, known)
    elif label_column not in features:
        raise UsageError(f"{where} has no column {label_column}; choose one of {', '.join(features)} with --label")
    classes, labels = _classes_of(table, label_column, where, known)
    key = f"{key}:{as_published:d}"
    image_files, places = _image_files(table, images[0], where)
    if image_files is not None:
        key = f"{key}:{image_files.digest}"
    return TableSet(
        where,
        table,
        images[0],
        labels,
        classes,
        key,
        as_published,
        label_column=label_column,
        files=files,
        image_files=image_files,
        places=places,
    )


def _image_files(table: Any, column: str, where: str) -> tuple[Files | None, dict[int, int]]:
    """Open the image files that rows refer to by path, and return them with the position of each such row's file."""
    chunks = table.data.column(column).chunks
    if is_selection(table) or not any(chunk.field("bytes").null_count for chunk in chunks):
        return None, {}
    places: dict[int, int] = {}
    paths: list[str] = []
    first = 0
    for chunk in chunks:
        if chunk.field("bytes").null_count:
            for row, value in enumerate(chunk.to_pylist(), start=first):
                if value is not None and value["bytes"] is None and value["path"]:
                    places[row] = len(paths)
                    paths.append(str(Path(value["path"]).absolute()))
        first += len(chunk)
    try:
        stamps = stamps_of(Path(path).stat() for path in paths)
    except OSError as error:
        raise UsageError(f"{where}: {error.filename} cannot be read ({error.strerror}); bring it there again") from None
    return open_tree(Path(where) / "outside", paths, stamps), places


def _label_column(table: Any, where: str, known: KnownClasses | None) -> str:
    """Return the label column: that of the other part, else the only ClassLabel, else one with a usual name.

    If classes are known, a column that names them takes precedence. Raises UnlabelledError if there is no candidate,
    UsageError if there are several.
    """
    import datasets

    features = table.features
    if known is not None and known.column in features:
        return str(known.column)
    usual = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = usual or [name for name in _LABELS if name in features]
    if known is not None and len(table):
        texts = [name for name, kind in features.items() if getattr(kind, "dtype", "") == "string"]
        ranks = {name: _fit(table, name, known) for name in dict.fromkeys((*usual, *texts))}
        best = min(ranks.values(), default=_NO_FIT)
        fitting = [name for name, rank in ranks.items() if rank == best] if best < _NO_FIT else []
        fitting = [name for name in fitting if name in usual] or fitting
        if len(fitting) == 1:
            return str(fitting[0])
    if not usual:
        raise UnlabelledError(
            f"{where} has no single label column (found: none in {', '.join(features)}); name one with --label COLUMN"
        )
    if len(usual) > 1:
        raise UsageError(
            f"{where} has no single label column (found: {', '.join(usual)}); name one with --label COLUMN"
        )
    return str(usual[0])


def _is_plain_image(kind: Any) -> bool:
    """Whether a column has the structure of an Image column, as other programs write it."""
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


_LABELS = ("label", "labels", "cls")
_NO_FIT = 3


def _fit(table: Any, column: str, known: KnownClasses) -> int:
    """Rank how a column names known classes: 0 by equal names, 1 by synonyms, 2 by their numbers, 3 not at all."""
    values = table.unique(column)
    if None in values or len(values) > 4 * len(known.classes):
        return _NO_FIT
    kind = table.features[column]
    if hasattr(kind, "names"):
        if min(values, default=0) < 0:
            return _NO_FIT
        values = [kind.names[value] for value in values]
    names = [str(value) for value in values]
    if set(names) <= set(known.classes):
        return 0
    if None not in match(names, known.classes):
        return 1
    return 2 if None not in match(names, known.classes, published=known.published) else _NO_FIT


def _classes_of(table: Any, column: str, where: str, known: KnownClasses | None) -> tuple[tuple[str, ...], Labels]:
    """Return class names and labels of a column, in the order of the known classes if there are any."""
    names, labels = _named(table, column, where)
    if known is None:
        return names, labels
    if known.order is not None and not known.classes:
        ordered = in_order(names, known.order, where)
        return ordered, np.array(places_of(names, ordered, where), dtype=np.int64)[labels]
    used = np.unique(labels)
    wanted = known.classes
    found = [names[label] for label in used]
    named = hasattr(table.features[column], "names")
    if named and len(names) > len(wanted) and set(match(found, wanted, published=known.published)) == {None}:
        raise UsageError(f"{where} has {len(names)} classes in {column}, not {len(wanted)}; give another data set")
    places = np.zeros(len(names), dtype=np.int64)
    places[used] = places_of(found, wanted, f"{column} of {where}", published=known.published)
    return wanted, places[labels]


def _named(table: Any, column: str, where: str) -> tuple[tuple[str, ...], Labels]:
    """Return the class names of a column, and the labels as positions among them."""
    import datasets

    kind = table.features[column]
    listed = list(table[column][:])
    empty = [row for row, value in enumerate(listed) if value in (None, -1, "") or value != value]
    if empty and len(empty) == len(listed):
        raise UnlabelledError(f"{where} has no labels in {column}; choose another part with --part, or another column")
    if empty:
        what = "the label -1" if listed[empty[0]] == -1 else "no label"
        raise UsageError(
            f"{where}, row {empty[0]} has {what} in {column}; write the table again without the {len(empty)} such rows"
        )
    values = np.asarray(listed)
    if values.ndim != 1:
        raise UsageError(f"{where} has lists in {column}, not one label an image; name another column with --label")
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names), checked_labels(values, len(kind.names), where)
    if values.dtype.kind == "f" and bool((values == values.round()).all()):
        values = values.astype(np.int64)
    if values.dtype.kind in "iu" and len(values):
        checked_labels(values, int(values.max()) + 1, where)
        return tuple(str(number) for number in range(int(values.max()) + 1)), values.astype(np.int64)
    if values.dtype.kind == "f":
        raise UsageError(f"{where} has fractions in {column}, not classes; name another column with --label")
    texts = [str(value) for value in listed]
    names = natural_order(set(texts))
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[text] for text in texts], dtype=np.int64)


def tables_dir() -> Path:
    """Return the folder in which `datasets` stores converted parquet files."""
    return cache_dir() / "tables"


def named_in(files: Sequence[Path], column: str) -> tuple[str, ...] | None:
    """Return the class names in a column of parquet files without reading images, None if they cannot be read."""
    from pyarrow import ArrowException, parquet

    try:
        schema = parquet.read_schema(files[0])
        if column not in schema.names:
            return None
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        kind = metadata.get("info", {}).get("features", {}).get(column, {})
        if isinstance(kind, dict) and isinstance(kind.get("names"), list):
            return tuple(map(str, kind["names"]))
        values = {
            value for file in files for value in set(parquet.read_table(file, columns=[column])[column].to_pylist())
        }
    except (ArrowException, OSError, ValueError, TypeError, AttributeError):
        return None  # reading the table later reports the error
    values.discard(None)
    if values and all(isinstance(value, int | float) and value == int(value) for value in values):
        return tuple(str(number) for number in range(int(max(values)) + 1))
    return natural_order(str(value) for value in values)
