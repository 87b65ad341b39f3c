"""Small copies of published layouts of data sets, and a web server that cuts connections."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.runs.run import Outcome, run
from bench.settings.run_spec import make_spec

from .greys import FACTORIES, Listener


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


@dataclass
class Hub:
    """A hub on 127.0.0.1 with data sets of parquet files; `private` ones ask for a login."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    break_after: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


def table(
    pixels: list[np.ndarray], labels: list[int], names: list[str], columns: dict[str, Any] | None = None
) -> bytes:
    """A parquet file with the features of the hub: `image` and `label`, and more columns if given."""
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows: dict[str, Any] = {"image": [Image.fromarray(each) for each in pixels], "label": labels}
    for name, (kind, values) in (columns or {}).items():
        features[name], rows[name] = kind, values
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    buffer = io.BytesIO()
    made.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    sha = "a" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            path = self.path.split("?")[0]
            made.asked.append((f"{self.command} {path}", self.headers.get("Range")))
            repo, files = next(((name, files) for name, files in made.repos.items() if f"/{name}" in path), ("", {}))
            if repo in made.private:
                self.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted."})
            elif match := re.fullmatch(rf"/datasets/{repo}/resolve/[^/]+/(.+)", path):
                self.send_file(files.get(match[1]))
            elif path == f"/api/datasets/{repo}" or path.startswith(f"/api/datasets/{repo}/revision/"):
                facts = {"id": repo, "sha": sha, "private": False, "gated": False, "disabled": False, "tags": [],
                         "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in files]}  # fmt: skip
                self.send(200, json.dumps(facts).encode(), {})
            elif path == f"/api/datasets/{repo}/tree/{sha}":
                listed = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                          for name, content in files.items()]  # fmt: skip
                self.send(200, json.dumps(listed).encode(), {})
            else:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

        do_GET = do_HEAD = do_POST = answer

        def send_file(self, content: bytes | None) -> None:
            if content is None:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            asked = self.headers.get("Range")
            start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
            facts = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
            self.send(206 if asked else 200, content[start:], facts)

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                cut, made.break_after = (made.break_after, None) if len(content) > 9000 else (None, made.break_after)
                self.wfile.write(content[:cut])

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def knower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the model that knows on a shift; gives accuracies by condition, and the notes."""
    monkeypatch.setenv("SOUPBENCH_DATA", str(tmp_path / "nothing"))
    (tmp_path / "greys.py").write_text(Path(__file__).with_name("greys.py").read_text())
    factories = tmp_path / "knows.py"
    factories.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n" + FACTORIES.format(module="greys"))
    count = iter(range(100))

    def go(shift: str, n: int, side: int = 32, corruption: str = "natural", **more: Any) -> tuple[Any, list[str]]:
        settings = {
            "method": "source", "shift": shift, "model": f"{factories}:of{n}s{side}", "corruption": corruption,
            "split": "transductive", "jobs": 1, "launch": "serial", "out": tmp_path / f"out{next(count)}", **more,
        }  # fmt: skip
        heard = Listener()
        outcome: Outcome = run(make_spec(settings), heard)
        assert outcome.exit_code == 0, outcome.errors
        found = {r.corruption or "clean": (r.metrics.accuracy, r.n) for r in outcome.records() if r.metrics is not None}
        return found, heard.notes

    return go
