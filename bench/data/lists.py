"""Read text files with one entry per line, such as lists of classes or images."""

from __future__ import annotations

import codecs
from pathlib import Path

from bench.core.errors import MissingDataError, UsageError


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises MissingDataError if there is no file, UsageError for any other encoding, which cannot be detected.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"there is no file {path}; give the path of one") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); allow reading or give another file") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not text in UTF-8; convert it, for example with: iconv -f LATIN1 -t UTF-8 FILE > FILE.utf8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """Return the stripped, non-empty lines of a text file. Raises the errors of `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
