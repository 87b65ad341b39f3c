"""The gallery: its cells are the pixels of `corrupt`, in the order of its labels; invalid input is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quick_processes
import torch
from PIL import Image

from bench.cli import gallery_image as drawing
from bench.cli.gallery_image import gallery
from bench.core.errors import MissingDataError, UsageError
from corruptions import corrupt, names, weather
from corruptions.catalog import group


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(small).resize((340, 256), Image.Resampling.BICUBIC).save(path)
    return path


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_every_cell_holds_the_pixels_of_its_corruption(photograph: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    gallery(out, photograph, "jpeg,fog", "1,2.5,5", "auto", None, 3)
    pixels = drawn(out)
    clean = np.asarray(Image.open(photograph))[16:240, 58:282]
    planes = torch.from_numpy(clean.copy()).permute(2, 0, 1)
    pitch, left, top = 224 + drawing._GAP, drawing._LEFT, drawing._TOP
    assert pixels.shape == (top + 2 * pitch, left + 4 * pitch, 3)
    for i, name in enumerate(("jpeg_compression", "fog")):
        for j, severity in enumerate((0, 1, 2.5, 5)):
            cell = pixels[top + i * pitch :, left + j * pitch :][:224, :224]
            expected = corrupt(planes, name, severity, seed=3).permute(1, 2, 0).numpy()
            assert (cell == expected).all()
        assert (pixels[top + i * pitch :, :left][:224] < 100).any(), "a row without its name"
    for j in range(4):
        assert (pixels[: top - 4, left + j * pitch :][:, :224] < 100).any(), "a column without its severity"


def test_small_pictures_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.png", tmp_path / "grid.png"
    tiny = np.random.default_rng(1).integers(0, 256, (32, 40), dtype=np.uint8)
    Image.fromarray(tiny).save(path)
    gallery(out, path, "contrast", "5", "auto", None, 0)
    left, top = drawing._LEFT, drawing._TOP
    cell = drawn(out)[top : top + 160, left : left + 160]
    assert (cell[1::5, 2::5] == tiny[:, 4:36, None]).all()
    assert (cell == cell[::5, ::5].repeat(5, 0).repeat(5, 1)).all()


def test_suites_and_formats(photograph: Path, tmp_path: Path) -> None:
    assert drawing._chosen("imagenet_c_extra, fog,elastic,fog") == (
        *names("imagenet_c_extra"),
        "fog",
        "elastic_transform",
    )
    assert drawing._chosen("noise,fog") == (*group("noise"), "fog")
    assert {"shot_noise", "plasma_noise"} < set(group("noise"))
    for kind, start in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        gallery(tmp_path / f"grid.{kind}", photograph, "contrast", "1-2", "cifar32", 64, 0)
        assert (tmp_path / f"grid.{kind}").read_bytes().startswith(start)


def test_the_default_needs_no_files_and_never_hides_that_frost_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weather, "frost_folder", lambda: None)
    gallery(tmp_path / "grid.png", None, None, "3", "auto", 48, 0)
    assert "frost_procedural is shown in place of frost" in capsys.readouterr().err
    weather._frost_photographs.cache_clear()
    weather._frost_texture.cache_clear()
    with pytest.raises(MissingDataError, match="pip install"):
        gallery(tmp_path / "other.png", None, "frost", "3", "auto", 48, 0)
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": Path("grid.gif")}, "must end in .png, .pdf, .svg"),
        ({"corruption": "foggy"}, "did you mean 'fog'"),
        ({"corruption": " , "}, "--corruption is empty"),
        ({"severity": "0-5"}, "--severity takes numbers above 0 and up to 5"),
        ({"severity": "strong"}, "takes numbers"),
        ({"profile": "cifar"}, "did you mean 'cifar32'"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    changed: dict[str, object], message: str, photograph: Path, tmp_path: Path
) -> None:
    arguments = {"out": tmp_path / "grid.png", "image": photograph, "corruption": "fog", "severity": "5"}
    arguments |= {"profile": "auto", "size": 32, "seed": 0, **changed}
    with pytest.raises(UsageError, match=message):
        gallery(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "grid.png").exists()


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="there is no file"):
        gallery(tmp_path / "grid.png", tmp_path / "none.jpg", "fog", "5", "auto", None, 0)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UsageError, match="not an image that Pillow reads"):
        gallery(tmp_path / "grid.png", tmp_path / "text.jpg", "fog", "5", "auto", None, 0)


def test_the_command(photograph: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "grid.png"
    command = ["-m", "bench", "gallery", "--image", photograph, "-o", out]
    done = quick_processes.run([*command, "--corruption", "snow", "--severity", "5"])
    assert done.returncode == 0
    assert "1 corruptions at 1 severities" in done.stdout
    assert out.is_file()
