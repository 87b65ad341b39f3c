"""Data sets as small copies of the published layouts, and a web server that breaks off."""

from __future__ import annotations

import http.server
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def picture(number: int, size: tuple[int, int] = (224, 224)) -> np.ndarray:
    """A smooth picture of its own for each number, uint8 [height, width, 3]."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray, **how: Any) -> None:
    """Write an image with the folders it needs; JPEG as the published sets were, unless `how` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    how = how or ({"format": "JPEG", "quality": 85} if path.suffix.upper() in (".JPEG", ".JPG") else {})
    Image.fromarray(pixels).save(path, **how)


def as_stored(pixels: np.ndarray, quality: int = 85, **how: Any) -> np.ndarray:
    """What a JPEG of these pixels decodes to, by Pillow alone."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **how)
    return np.asarray(Image.open(buffer).convert("RGB"))


def write_tree(
    root: Path, folders: list[str], conditions: list[str], each: int = 2, side: int = 224, start: int = 0
) -> None:
    """CONDITION/FOLDER/N.JPEG with a picture of its own for each condition, folder and N."""
    for place, condition in enumerate(conditions):
        for number, folder in enumerate(folders):
            for image in range(each):
                code = start + place * 1000 + number * 10 + image
                save(root / condition / folder / f"ILSVRC2012_val_{number * each + image + 1:08d}.JPEG",
                     picture(code, (side, side)))  # fmt: skip


@dataclass
class Web:
    """A folder served on 127.0.0.1, with ranges. `break_after` bytes the next answer is cut off, once."""

    root: Path
    url: str = ""
    break_after: int | None = None
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "web")
    made.root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            made.asked.append((self.path, asked))
            file = made.root / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            start = 0
            if asked and made.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if asked and made.ranges else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content)
            if made.break_after is not None:
                end, made.break_after = start + made.break_after, None
            self.wfile.write(content[start:end])

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()
