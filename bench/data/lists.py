"""Lists that people keep beside images: text files, one thing a line."""

from __future__ import annotations

import codecs
from pathlib import Path

from bench.core.errors import MissingDataError, UsageError


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Raises MissingDataError without the file, UsageError for any other encoding, which cannot be known from bytes.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"there is no file {path}; give the path of one") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); allow it, or give another file") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not text in UTF-8; save it as that, as with: iconv -f LATIN1 -t UTF-8 FILE > FILE.utf8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of such a file without the white space around them; empty ones are left out. Raises as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
