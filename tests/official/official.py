"""The official scripts of ImageNet-C, LAION-C, ImageNet-C-bar and CCC, run with our draws.

`SOUPBENCH_OFFICIAL` names a folder with checkouts of their repositories, each under the repository's own name. A script
is read there and its functions are run; nothing of it is kept here. What has moved in numpy, scipy and scikit-image
since it was written is put back in its place, and its random numbers are those that `corruptions.sample` gives.
"""

from __future__ import annotations

import ast
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.interpolate
import scipy.ndimage
import torch
from PIL import Image

import corruptions
from corruptions.blur import glass_jumps
from corruptions.catalog import parameters
from corruptions.tiles import TilePool, tensor_pool

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
Draws = dict[str, Array]

CREATE_C = "robustness/ImageNet-C/create_c"
# The scripts of ImageNet-C by our profile, and the one side in pixels that each takes.
SCRIPTS = {
    "imagenet224": ("make_imagenet_c.py", 224),
    "inception299": ("make_imagenet_c_inception.py", 299),
    "tiny64": ("make_tinyimagenet_c.py", 64),
    "cifar32": ("make_cifar_c.py", 32),
}
LAION_SCRIPT = "LAION-C/distortions/apply_distortions.py"
BAR_FOLDER = "augmentation-corruption/imagenet_c_bar"
CCC_SCRIPT = "CCC/make_imagenet_c.py"


class Absent(Exception):
    """What a run of official code lacks here."""


def folder() -> Path:
    """Where the checkouts are. Raises Absent where there are none."""
    named = os.environ.get("SOUPBENCH_OFFICIAL")
    if not named:
        raise Absent("SOUPBENCH_OFFICIAL names no folder with checkouts of the official repositories")
    return Path(named)


class Given:
    """A numpy generator whose numbers are given: each kind is used up in order, so many as are asked for."""

    def __init__(
        self,
        uniform: Any = (),
        normal: Any = (),
        integers: Sequence[Any] = (),
        choices: Sequence[Any] = (),
        counts: Array | None = None,
        seeded: Given | None = None,
    ) -> None:
        self._uniform = np.asarray(uniform, dtype=float).ravel()
        self._normal = np.asarray(normal, dtype=float).ravel()
        self._integers, self._choices = iter(integers), iter(choices)
        self._counts, self._seeded = counts, seeded
        self._used = {"uniform": 0, "normal": 0}

    def _next(self, kind: str, size: Any) -> Any:
        values = self._uniform if kind == "uniform" else self._normal
        count = 1 if size is None else int(np.prod(size))
        start = self._used[kind]
        self._used[kind] = start + count
        found = values[start : start + count]
        assert len(found) == count, f"{kind}: {count} wanted, {len(found)} left"
        return float(found[0]) if size is None else found.reshape(size)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        return low + (high - low) * self._next("uniform", size)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any:
        return loc + scale * self._next("normal", size)

    def randn(self) -> Any:
        return self._next("normal", None)

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        if high == 2**32:
            return 0  # a seed, whose generator is given too
        value = next(self._integers)
        if size is None and isinstance(value, float):
            return (0 if high is None else low) + int(value * (low if high is None else high - low))
        return value

    def choice(self, _: Any, size: Any = None, replace: bool = True) -> Any:
        return next(self._choices)

    def permutation(self, _: int) -> Any:
        return next(self._choices)

    def poisson(self, _: Any) -> Any:
        return self._counts

    def RandomState(self, seed: int) -> Any:
        assert seed == 0
        return self._seeded


class Standing:
    """A module of which some names are others."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _gaussian(image: Any, sigma: float, *, multichannel: bool = False, **options: Any) -> Any:
    from skimage.filters import gaussian

    return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)


def _interpolated(*given: Any, **options: Any) -> Callable[[float], Any]:
    """scipy's interpolation that gives Python's numbers, with which float32 arrays stay float32 as in numpy 1."""
    function = scipy.interpolate.interp1d(*given, **options)

    def numbers(at: float) -> Any:
        found = function(at)
        return found if found.ndim == 0 else found.tolist()

    return numbers


@cache
def script(path: str) -> dict[str, Any]:
    """The functions and classes of a script by name, not what it does when it is run. Raises Absent."""
    file = folder() / path
    if not file.is_file():
        raise Absent(f"{file} is missing")
    # Two functions of one script are indented by three blanks in their first line.
    text = file.read_text().replace('\n   """\n', '\n    """\n')
    made: dict[str, Any] = {"__name__": f"official:{path}"}
    lacking: set[str] = set()
    loaded = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    try:
        for node in ast.parse(text).body:
            whole = compile(ast.Module([node], []), str(file), "exec")
            match node:
                case ast.Import() | ast.ImportFrom():
                    try:
                        exec(whole, made)
                    except ImportError:
                        lacking |= {name.asname or name.name.partition(".")[0] for name in node.names}
                case ast.FunctionDef():
                    if "numba" in made:
                        made["numba"] = types.SimpleNamespace(jit=lambda: lambda function: function)
                    exec(whole, made)
                case ast.ClassDef() if not any(
                    isinstance(base, ast.Name) and base.id in lacking for base in node.bases
                ):
                    exec(whole, made)
                case ast.Assign(targets=[ast.Name()], value=ast.List() | ast.Call(func=ast.Name(id="dict"))):
                    exec(whole, made)
    finally:
        sys.path.remove(str(file.parent))
        # The scripts' neighbours have names like "utils" and "base", which are free again.
        for name in set(sys.modules) - loaded:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(file.parent)):
                del sys.modules[name]
    if "gaussian" in made:
        made["gaussian"] = _gaussian
    made["map_coordinates"] = scipy.ndimage.map_coordinates
    if "interpolate" in made:
        made["interpolate"] = types.SimpleNamespace(interp1d=_interpolated)
    if made.get("cv2") is not None:
        frost = folder() / CREATE_C
        read = made["cv2"].imread
        made["cv2"] = Standing(made["cv2"], imread=lambda name: read(str(frost / Path(name).name)))
    return made


def with_draws(made: dict[str, Any], given: Given) -> dict[str, Any]:
    """The same names, whose numpy takes random numbers from `given`."""
    older = {"float_": np.float64, "int": int, "uint": np.uint64, "fromstring": np.frombuffer}
    made["np"] = Standing(np, random=given, **older)
    return made


def in_bytes(found: Any) -> Bytes:
    """As the scripts do before they save: uint8 by truncation."""
    return np.uint8(np.asarray(found))


def _salt(uniform: Array, amount: float) -> Any:
    """A stand-in for scikit-image's module whose impulses are where ours are."""
    import skimage

    class Generator(np.random.Generator):
        """First which values are hit, then which of them turn white."""

        def __init__(self) -> None:
            super().__init__(np.random.PCG64(0))
            self.asked = 0

        def random(self, size: Any = None, *_: Any, **__: Any) -> Any:
            self.asked += 1
            # The second asks whether a number is at most one half.
            return uniform if self.asked == 1 else np.where(uniform >= amount / 2, 0.0, 1.0)

    def noisy(image: Any, mode: str, amount: float) -> Any:
        return skimage.util.random_noise(image, mode=mode, amount=amount, rng=Generator())

    return Standing(skimage, util=Standing(skimage.util, random_noise=noisy))


def imagenet_c(
    name: str, picture: Bytes, draws: Draws, severity: float, profile: str, path: str | None = None
) -> Bytes:
    """What the script of a profile (or another of the same kind) makes of a picture [side, side, 3]."""
    made = script(path or f"{CREATE_C}/{SCRIPTS[profile][0]}")
    settings = parameters(name, severity, profile)
    hwc = {key: value.transpose(1, 2, 0) if value.ndim == 3 else value for key, value in draws.items()}
    given = Given()
    match name:
        case "gaussian_noise" | "speckle_noise":
            given = Given(normal=hwc["normal"])
        case "shot_noise":
            given = Given(counts=_counts(picture, draws["uniform"], settings))
        case "impulse_noise":
            made["sk"] = _salt(hwc["uniform"], settings[0])
        case "glass_blur":
            reach = max(1, round(settings[1]))
            down, right = (
                jump[0].numpy() for jump in glass_jumps(torch.from_numpy(draws["uniform"][None]).float(), reach)
            )
            given = Given(integers=list(_sweeps(down, right, reach)))
        case "motion_blur":
            given = Given(uniform=[draws["angle"] / (math.pi / 2) + 0.5])
        case "snow":
            given = Given(normal=draws["normal"], uniform=[draws["angle"] / (math.pi / 2) + 1.5])
        case "frost":
            given = Given(integers=[float(value) for value in draws["uniform"]])
        case "fog":
            given = Given(uniform=draws["uniform"])
        case "elastic_transform":
            given = Given(uniform=np.concatenate([draws["corners"].ravel(), draws["field"].ravel()]) / 2 + 0.5)
        case "spatter":
            given = Given(normal=draws["normal"])
    if name in ("motion_blur", "snow") and "MotionImage" not in made:
        raise Absent("this needs the package wand and ImageMagick")
    found = with_draws(made, given)[name](Image.fromarray(picture), severity)
    if "sk" in made:
        import skimage

        made["sk"] = skimage
    return in_bytes(found)


def _counts(picture: Bytes, uniform: Array, settings: tuple[float, ...]) -> Array:
    """The photons that our sampler counts for these uniforms, [h, w, 3]: with chance alone, before truncation."""
    from corruptions.noise import shot_noise

    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = shot_noise(images, {"uniform": torch.from_numpy(uniform)[None].float()}, settings)
    share = found[0].permute(1, 2, 0).double().numpy()
    # White is any count of at least so many photons.
    counted: Array = np.where(share >= 1, math.ceil(settings[0]), np.rint(share * settings[0]))
    return counted


def _sweeps(down: Any, right: Any, reach: int) -> Iterator[tuple[int, int]]:
    for sweep in range(len(down)):
        for row in range(down.shape[1] - reach, reach, -1):
            for column in range(down.shape[2] - reach, reach, -1):
                yield int(right[sweep, row, column]), int(down[sweep, row, column])


def ccc(name: str, picture: Bytes, draws: Draws, severity: float, profile: str = "imagenet224") -> Bytes:
    """What CCC's functions make of a picture [224, 224, 3] at any severity."""
    return imagenet_c(name, picture, draws, severity, profile, CCC_SCRIPT)


def laion_c(name: str, picture: Bytes, draws: Draws, severity: int, pool: TilePool) -> Bytes:
    """What the script of LAION-C makes of a picture, before it is saved as JPEG of quality 100."""
    made = script(LAION_SCRIPT)
    height, width = picture.shape[:2]
    unit = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255).numpy()
    uniform = draws.get("uniform", np.zeros(0))

    def kept(x: Any) -> Bytes:
        found: Bytes = (x.transpose((0, 2, 3, 1)) * 255).clip(0, 255).astype(np.uint8)[0]
        return found

    match name:
        case "glitched":
            if "ImageGlitcher" not in made:
                raise Absent("this needs the package glitch-this")
            return kept(made["glitched"](unit.copy(), severity, "glitched")[1])
        case "vertical_lines":
            return np.asarray(made["draw_vertical_lines"](Image.fromarray(picture), severity))
        case "luminance_checkerboard":
            names = with_draws(made, Given(uniform=uniform))
            return kept(names["luminance_augmentation"](unit.copy(), severity, "luminance")[1])
        case "geometric_shapes":
            count = int(parameters(name, severity, "imagenet224")[0])
            kinds, integers = [], []
            for kind, row, column, size, red, green, blue, turn in uniform[:, :count].T:
                kinds.append(("triangle", "square", "circle", "star")[int(kind * 4)])
                colour = [int(value * 256) for value in (red, green, blue)]
                integers += [float(column), float(row), float(size), colour, float(turn)]
            names = with_draws(made, Given(integers=integers, choices=kinds))
            return np.asarray(names["paste_shapes"](Image.fromarray(picture), count))
        case "stickers":
            count = int(parameters(name, severity, "imagenet224")[0])
            tiles = pool.tiles(16, torch.device("cpu")).float().div(255).numpy()
            row, column, which = uniform[:, :count]
            places = (row * (height - 16)).astype(int) * (width - 16) + (column * (width - 16)).astype(int)
            chosen = (which * len(tiles)).astype(int)[None]
            names = with_draws(made, Given(integers=places.tolist(), choices=[chosen, None]))
            names["print"] = lambda *_: None
            return kept(names["sticker_augmentations"](unit.copy(), "sticker", tiles, 1, severity)[1])
    return _mosaic(made, picture, severity, pool)


def _mosaic(made: dict[str, Any], picture: Bytes, severity: int, pool: TilePool) -> Bytes:
    """The script writes files; what it would write is caught."""
    from scipy import spatial

    side = int(parameters("mosaic", severity, "imagenet224")[0])
    tiles = pool.tiles(side, torch.device("cpu")).float().div(255).double().numpy()
    written: list[Bytes] = []

    class Caught:
        def __init__(self, image: Image.Image) -> None:
            self.image, self.size = image, image.size

        def crop(self, box: Any) -> Caught:
            return Caught(self.image.crop(box))

        def save(self, *_: Any, **__: Any) -> None:
            written.append(np.asarray(self.image))

    with_draws(made, Given())
    made["Image"] = Standing(Image, fromarray=lambda array: Caught(Image.fromarray(array)))
    made["os"] = Standing(os, makedirs=lambda *_, **__: None)
    made |= {"print": lambda *_: None, "tqdm": lambda batches: batches}
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255)
    tree = spatial.KDTree(tiles.mean((-2, -1)))
    made["process_data_mosaic"]([(batch, ["x.jpg"])], side, tree, tiles, "", severity, "mosaic")
    made["Image"] = Image
    return written[0]


def bar(name: str, picture: Bytes, draws: Draws, severity: int) -> Bytes:
    """What the script of ImageNet-C-bar makes of a picture [side, side, 3]."""
    made = script(f"{BAR_FOLDER}/corrupt.py")
    side = len(picture)
    (level,) = parameters(name, severity, "imagenet224")
    given = Given(**_bar_draws(name, draws, side))
    classes = {getattr(value, "name", None): value for value in with_draws(made, given).values()}
    found: Bytes = classes[name](severity=level, im_size=side)(picture)
    return found


def _bar_draws(name: str, draws: Draws, side: int) -> dict[str, Any]:
    u = draws.get("uniform", np.zeros(0))
    match name:
        case "single_frequency_greyscale":
            return {"uniform": u[:3], "choices": [[0, 1] if u[3] < 0.5 else [1, 0]]}
        case "cocentric_sine_waves":
            return {"uniform": u[[1, 0, 2, 3, 4]]}
        case "plasma_noise":
            return {"uniform": u[[0, 2, 3]], "integers": [float(u[1])]}
        case "caustic_refraction":
            return {"uniform": u}
        case "sparkles" | "inverse_sparkles":
            rays = 50 + (150 * u[:, 2]).astype(int)
            lengths = np.concatenate([normal[:count] for normal, count in zip(draws["normal"], rays, strict=True)])
            wanted = [rays] if name == "sparkles" else [int(rays[0])]
            return {"uniform": u[:, :2], "integers": wanted, "seeded": Given(normal=lengths)}
        case "checkerboard_cutout":
            # Rounded towards zero and counted from the end where negative.
            scale = max((0.1 + 0.15 * u[1]) * side, 1)
            count, middle = int(4 * side // scale), len(draws["cell"]) // 2
            place = [middle + (i if i < count / 2 else i - count) for i in range(count)]
            grid = draws["cell"][np.ix_(np.clip(place, 0, 2 * middle - 1), np.clip(place, 0, 2 * middle - 1))]
            return {"uniform": u, "seeded": Given(uniform=grid)}
        case "perlin_noise":
            slopes = [np.floor(512 * pair).astype(np.int64) for pair in draws["slope"]]
            order = np.argsort(draws["order"], kind="stable").tolist()
            return {"seeded": Given(integers=[*slopes, *[slopes[0]] * (514 - 256), *_shuffling(order)])}
    phases = draws["phase"].reshape(-1, side, side // 2)
    middles = draws["middle"].reshape(len(phases), -1)
    return {
        "seeded": Given(uniform=np.concatenate([np.r_[p.ravel(), m] for p, m in zip(phases, middles, strict=True)]))
    }


def _shuffling(order: list[int]) -> list[int]:
    """The places to change with, from the last one down, that turn 0, 1, ... into an order."""
    now, swaps = list(range(len(order))), []
    for i in range(len(order) - 1, -1, -1):
        j = now.index(order[i])
        swaps.append(j)
        now[i], now[j] = now[j], now[i]
    return swaps


def pool() -> TilePool:
    """Three hundred plain tiles with a little pattern, always the same."""
    base = torch.randint(0, 256, (300, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    pattern = torch.randint(0, 40, (300, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return tensor_pool((base * 0.8 + pattern).clamp(0, 255).to(torch.uint8), "made-up")


def picture(side: int) -> Bytes:
    """A made-up picture with structure, texture, and a black, a white and a grey corner: uint8 [side, side, 3]."""
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(1, 3, max(side // 8, 2), max(side // 8, 2), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[0]
    levels = (255 * (0.85 * smooth + 0.15 * torch.rand(3, side, side, generator=generator))).round()
    corner = side // 6
    levels[:, :corner, :corner] = 0
    levels[:, :corner, -corner:] = 255
    levels[:, -corner:, :corner] = 128
    return levels.permute(1, 2, 0).to(torch.uint8).numpy().copy()


def drawn(name: str, severity: float, side: int, profile: str) -> Draws:
    """Our draws for the image 0, float64."""
    found = corruptions.sample(name, severity, (side, side), ids=[0], profile=profile)
    return {key: value[0].double().numpy() for key, value in found.items()}


def ours(name: str, picture: Bytes, severity: float, profile: str, tiles: TilePool | None = None) -> Bytes:
    """What `corrupt` makes of the picture, as image 0."""
    image = torch.from_numpy(picture).permute(2, 0, 1)
    out = corruptions.corrupt(image, name, severity, ids=[0], profile=profile, pool=tiles)
    return out.permute(1, 2, 0).numpy()


Case = tuple[str, str, float, int]


def cases() -> list[Case]:
    """(suite, corruption, severity, side) of everything that is compared."""
    found: list[Case] = []
    for profile, (_, side) in SCRIPTS.items():
        names = (*corruptions.names("imagenet_c"), *corruptions.names("imagenet_c_extra"))
        found += [(profile, name, severity, side) for name in names for severity in range(1, 6)]
    found += [("laion_c", name, severity, 224) for name in corruptions.names("laion_c") for severity in range(1, 6)]
    found += [
        ("imagenet_c_bar", name, severity, side)
        for name in corruptions.names("imagenet_c_bar")
        for severity in range(1, 6)
        for side in (32, 45)
    ]
    found += [("imagenet_c_bar", name, 3, 224) for name in corruptions.names("imagenet_c_bar")]
    found += [("ccc", name, severity, 224) for name in corruptions.names("imagenet_c") for severity in CCC_SEVERITIES]
    return found


CCC_SEVERITIES = (0.25, 1.75, 4.25, 4.5)


def official(suite: str, name: str, severity: float, side: int) -> Bytes:
    """The official output of a case. Raises Absent where something for it is missing."""
    profile = suite if suite in SCRIPTS else "imagenet224"
    draws = drawn(name, severity, side, profile)
    if suite == "laion_c":
        return laion_c(name, picture(_laion_side(name, severity)), draws, int(severity), pool())
    if suite == "imagenet_c_bar":
        return bar(name, picture(side), draws, int(severity))
    run: Callable[..., Bytes] = ccc if suite == "ccc" else partial(imagenet_c)
    return run(name, picture(side), draws, severity if suite == "ccc" else int(severity), profile)


def _laion_side(name: str, severity: float) -> int:
    """Mosaic of tiles of 6 pixels is made of 252 pixels, of which the centre is kept."""
    return 252 if name == "mosaic" and severity == 2 else 224


def our_output(suite: str, name: str, severity: float, side: int) -> Bytes:
    """Ours of the same case."""
    profile = suite if suite in SCRIPTS else "imagenet224"
    if name == "mosaic":
        from corruptions.laion import published_mosaic

        image = torch.from_numpy(picture(_laion_side(name, severity))).permute(2, 0, 1)[None]
        return published_mosaic(image, int(severity), pool())[0].permute(1, 2, 0).numpy()
    tiles = pool() if corruptions.describe(name).pool else None
    return ours(name, picture(side), severity, profile, tiles)


# Of the values of a picture so many may be a level off, where ours are made in other arithmetic: rounding decides what
# mathematically is a whole level, above all in flat parts, of which the made-up pictures have many.
_SHARES = {"defocus_blur": 0.05, "gaussian_blur": 0.045, "elastic_transform": 0.004}
_SHARES_OF_SMALL = _SHARES | {
    "frost": 0.07,
    "glass_blur": 0.025,
    "motion_blur": 0.02,
    "brightness": 0.06,
    "saturate": 0.2,
}


def tolerance(suite: str, name: str, severity: float) -> tuple[int, float]:
    """The largest difference in levels, and the share of values that may differ."""
    if name == "geometric_shapes":
        return 255, 0.001  # Pillow cuts the corners of stars that lie outside of a picture towards zero
    if suite == "ccc" and name == "defocus_blur" and severity < 1:
        return 1, 0.4  # a kernel of one pixel, by way of OpenCV's Fourier transform
    shares = _SHARES_OF_SMALL if suite == "cifar32" else _SHARES
    return 1, shares.get(name, 1e-3 if suite == "cifar32" else 1e-4)


GOLDENS = Path(__file__).with_name("goldens.npz")
_SAMPLE = 192


def sampled(found: Bytes) -> Bytes:
    """Pixels of a picture, the same ones for every picture of its size, many at its borders: uint8 [192, 3]."""
    side = len(found)
    rng = np.random.default_rng(side)
    rows, columns = rng.integers(0, side, (2, _SAMPLE))
    rows[:16], rows[16:32], columns[32:48], columns[48:64] = 0, side - 1, 0, side - 1
    rows[64:68], columns[64:68] = (0, 0, side - 1, side - 1), (0, side - 1, 0, side - 1)
    return found[rows, columns]


def name_of(case: Case) -> str:
    return "-".join(map(str, case))


def write_goldens() -> None:
    """Run everything official and keep the sampled pixels. Raises Absent where anything for it is missing."""
    found = {name_of(case): sampled(official(*case)) for case in cases()}
    np.savez_compressed(GOLDENS, names=np.array(list(found)), pixels=np.stack(list(found.values())))


if __name__ == "__main__":
    write_goldens()
