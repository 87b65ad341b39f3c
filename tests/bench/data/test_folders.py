"""Class folders: valid layouts, and a clear error for every invalid one."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.data.decode import Preprocessing, decode
from bench.data.decoded_store import PixelStore
from bench.data.folders import read_folder

from .conftest import picture, save


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of two pictures each, written in an order that is not the sorted one."""
    root = tmp_path / "photos"
    for number, name in enumerate(["dog/b.png", "cat/2.PNG", "dog/a.Png", "cat/1.png"]):
        save(root / name, picture(number, (40, 30)), format="PNG")
    return root


def test_images_come_sorted_by_class_and_name_whatever_the_disk_says(photos: Path) -> None:
    found = read_folder(photos)
    assert found.files == ("cat/1.png", "cat/2.PNG", "dog/a.Png", "dog/b.png")
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(np.asarray(found.read(1)), picture(1, (40, 30)))


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "0"):
        save(tmp_path / name / "x.png", picture(0))
    assert read_folder(tmp_path).classes == ("0", "9", "10")


def test_given_classes_fix_the_labels_of_a_subset(photos: Path) -> None:
    found = read_folder(photos, ["ant", "cat", "cow", "dog"])
    assert found.labels.tolist() == [1, 1, 3, 3]


def test_links_are_followed(photos: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "cat").mkdir(parents=True)
    (linked / "dog").symlink_to(photos / "dog")
    (linked / "cat" / "1.png").symlink_to(photos / "cat" / "1.png")
    found = read_folder(linked)
    assert found.files == ("cat/1.png", "dog/a.Png", "dog/b.png")
    assert np.array_equal(np.asarray(found.read(0)), picture(3, (40, 30)))


def test_hidden_files_are_no_images(photos: Path) -> None:
    (photos / "cat" / ".DS_Store").write_bytes(b"x")
    (photos / ".cache").mkdir()
    assert len(read_folder(photos)) == 4


def test_the_key_changes_with_the_files_only(photos: Path, tmp_path: Path) -> None:
    before = read_folder(photos)
    assert read_folder(photos).key == before.key
    moved = photos.rename(tmp_path / "elsewhere")
    assert read_folder(moved).key == before.key
    save(moved / "cat" / "1.png", picture(9, (40, 30)), format="PNG")
    assert read_folder(moved).key != before.key


def _truncate(root: Path) -> None:
    save(root / "cat" / "1.jpg", picture(0))
    content = (root / "cat" / "1.jpg").read_bytes()
    (root / "cat" / "1.jpg").write_bytes(content[: len(content) // 2])


def _rotate(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "cat" / "1.jpg", picture(0), format="JPEG", exif=exif)


def _cmyk(root: Path) -> None:
    Image.fromarray(picture(0)).convert("CMYK").save(root / "cat" / "1.jpg")


def _deep(root: Path) -> None:
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(root / "cat" / "1.png")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, r"cat/1\.jpg is damaged .* replace it, or list it in .*photos/skipped\.txt"),
    "empty": (lambda r: (r / "cat/1.png").write_bytes(b""), r"cat/1\.png is an empty file of 0 bytes; replace it"),
    "text": (lambda r: (r / "cat/1.png").write_text("hello"), r"cat/1\.png is not an image that Pillow reads"),
    "cmyk": (_cmyk, r"cat/1\.jpg is a CMYK image; save it as RGB: mogrify -colorspace sRGB"),
    "16 bit": (_deep, r"cat/1\.png is an image of mode I;16, not 8-bit RGB; save it as RGB: mogrify .*-depth 8"),
    "rotated": (_rotate, r"cat/1\.jpg is rotated by its EXIF tag only; turn its pixels: mogrify -auto-orient"),
    "broken link": (lambda r: (r / "cat/9.png").symlink_to("nowhere"), r"cat/9\.png is a broken link"),
    "link to itself": (lambda r: (r / "cat/9.png").symlink_to("9.png"), r"cat/9\.png is a broken link"),
    "nested": (lambda r: (r / "cat/more").mkdir(), r"cat/more is a folder inside a class folder; move its images"),
    "not an image": (lambda r: (r / "cat/notes.txt").write_text("x"), r"notes\.txt is not an image file; move it out"),
    "a pipe": (lambda r: os.mkfifo(r / "cat/9.png"), r"9\.png is not an image file"),
    "loose": (lambda r: save(r / "loose.png", picture(0)), r"loose\.png is outside of a class folder"),
    "a class too many": (lambda r: save(r / "cow/1.png", picture(0)), r"cow is not one of the 2 classes \(cat, dog"),
    "unknown skip": (lambda r: (r / "skipped.txt").write_text("cat/7.png\n"), r"skipped\.txt lists cat/7\.png, which"),
}  # fmt: skip


def _read_all(root: Path) -> None:
    found = read_folder(root, ["cat", "dog"])
    PixelStore(found, Preprocessing(16, 20)).read(np.arange(len(found)))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_layout_is_one_sentence_with_the_file_and_the_fix(case: str, photos: Path) -> None:
    (photos / "cat" / "1.png").unlink(missing_ok=True)
    save(photos / "cat" / "1.png", picture(3, (40, 30)))
    change, sentence = WRONG[case]
    change(photos)
    with pytest.raises(UsageError, match=sentence) as caught:
        _read_all(photos)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no class folders; put the images into"):
        read_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match="has class folders but no images"):
        read_folder(tmp_path)


def test_published_oddities_are_read_as_the_reference_code_reads_them(photos: Path) -> None:
    _cmyk(photos)
    _rotate(photos)
    found = read_folder(photos, as_published=True)
    expected = Image.open(photos / "cat" / "1.jpg").convert("RGB")
    assert np.array_equal(np.asarray(found.read(found.files.index("cat/1.jpg"))), np.asarray(expected))


def test_a_skipped_image_is_left_out_and_counted(photos: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"")
    (photos / "skipped.txt").write_text("cat/1.png\n\n")
    found = read_folder(photos)
    assert found.skipped == 1
    assert found.files == ("cat/2.PNG", "dog/a.Png", "dog/b.png")


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (257, 300), (225, 224), (1000, 230)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_is_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    image = Image.fromarray(picture(1, size))
    filters = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
    reference = v2.Compose([v2.Resize(256, interpolation=filters[interpolation]), v2.CenterCrop(224), v2.PILToTensor()])
    made = Preprocessing(224, 256, interpolation)(image, "x")
    assert np.array_equal(made, reference(image).numpy())


def test_published_files_are_never_resized() -> None:
    image = Image.fromarray(picture(0))
    assert np.array_equal(Preprocessing(224)(image, "x"), picture(0).transpose(2, 0, 1))
    with pytest.raises(UsageError, match=r"x is 224 x 224 px .* never resized; choose a model for 224 px"):
        Preprocessing(299)(image, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bytes_end_a_run(kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0, (24, 20))).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(BenchError):
        assert decode(bytes(content), "x", "mend it", as_published=False).mode == "RGB"
