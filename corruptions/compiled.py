"""Loops over bytes and random words, compiled by numba for a CPU; imported only where numba is installed.

Each does what a function of torch elsewhere in this package does, in the same floating-point operations and order, so
that not a bit differs: numba neither reorders operations nor fuses products with sums. Callers are in `loops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

_LOW, _HALF, _KEPT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)
_BY_FIRST, _BY_SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEP_OF_FIRST, _STEP_OF_SECOND = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_STEP = np.float32(2.0**-24)
# For each sixth of the circle of hues, two bits from below: 0 for the largest value, 1 for the middle, 2 for the least.
_RED, _GREEN, _BLUE = 0b00_00_01_10_10_01_00, 0b01_10_10_01_00_00_01, 0b10_01_00_00_01_10_10
_ONE, _NONE, _LEVELS = np.float32(1), np.float32(0), np.float32(255)


def _compiled(function: Function) -> Function:
    """Compile at the first call, and keep the machine code on disk for later processes."""
    return cast("Function", numba.njit(cache=True, error_model="numpy", nogil=True)(function))


def _fused_in_llvm(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z of float32 rounded once, as torch adds multiples."""

    def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), code


_fused: Any = intrinsic(_fused_in_llvm)


@_compiled
def _as_byte(level: float, rounded: bool) -> np.uint8:
    return np.uint8(np.int32(np.rint(level) if rounded else level))


@_compiled
def _level(which: Any, top: float, middle: float, bottom: float) -> float:
    value = top if which == 0 else (middle if which == 1 else bottom)
    return min(max(value * 255, 0.0), 255.0)


@_compiled
def _uniforms_of(
    first: np.uint64, second: np.uint64, draw: np.uint64, a: Floats, b: Floats, c: Floats, d: Floats
) -> None:
    for i in range(len(a)):
        c0, c1, c2, c3 = np.uint64(i), draw, np.uint64(0), np.uint64(0)
        k0, k1 = first, second
        for _ in range(10):
            even, odd = c0 * _BY_FIRST, c2 * _BY_SECOND
            c0, c2 = (odd >> _HALF) ^ c1 ^ k0, (even >> _HALF) ^ c3 ^ k1
            c1, c3 = odd & _LOW, even & _LOW
            k0, k1 = (k0 + _STEP_OF_FIRST) & _LOW, (k1 + _STEP_OF_SECOND) & _LOW
        a[i] = np.float32(np.int32(c0 >> _KEPT)) * _STEP
        b[i] = np.float32(np.int32(c1 >> _KEPT)) * _STEP
        c[i] = np.float32(np.int32(c2 >> _KEPT)) * _STEP
        d[i] = np.float32(np.int32(c3 >> _KEPT)) * _STEP


@_compiled
def uniforms(keys: Whole, draw: int, out: Floats) -> None:
    """Fill `out` [n, 4, blocks] with the uniforms of `rng.Stream` for keys int64 [n, 2]: `rng.philox`, then 24 bits."""
    for i in range(len(keys)):
        key, one = keys[i], out[i]
        _uniforms_of(np.uint64(key[0]), np.uint64(key[1]), np.uint64(draw), one[0], one[1], one[2], one[3])


@_compiled
def half_normal(u: Floats, parts: Floats) -> None:
    """Uniforms [n, 2, half] made ready for Box-Muller: 1 - u and angles, into the first two of parts [3, n, half]."""
    turn = np.float32(2.0 * np.pi)
    for i in range(len(u)):
        first, second, opposite, angle = u[i, 0], u[i, 1], parts[0, i], parts[1, i]
        for j in range(len(first)):
            opposite[j] = _ONE - first[j]
            angle[j] = second[j] * turn


@_compiled
def paired(parts: Floats, out: Floats) -> None:
    """Normals [n, 2, half] of Box-Muller from radii, cosines and sines, parts [3, n, half]."""
    for i in range(len(out)):
        radius, cos, sin, one, other = parts[0, i], parts[1, i], parts[2, i], out[i, 0], out[i, 1]
        for j in range(len(one)):
            r = radius[j]
            one[j], other[j] = cos[j] * r, sin[j] * r


@_compiled
def noisy(levels: Bytes, normal: Floats, sigma: np.float32, by_level: bool, rounded: bool, out: Bytes) -> None:
    """Normal noise of a deviation, or of so many times the value `by_level`; flat arrays."""
    for i in range(len(levels)):
        unit = np.float32(levels[i]) / _LEVELS
        scale = sigma * unit if by_level else sigma
        value = _fused(normal[i], scale, unit)
        out[i] = _as_byte(min(max(value, _NONE), _ONE) * _LEVELS, rounded)


@_compiled
def impulse(levels: Bytes, uniform: Floats, hit: np.float32, black: np.float32, out: Bytes) -> None:
    """Black below one limit, else white below another, else unchanged; flat arrays."""
    for i in range(len(levels)):
        u = uniform[i]
        out[i] = 0 if u < black else (255 if u < hit else levels[i])


@_compiled
def counted(levels: Bytes, uniform: Floats, cells: int, threshold: Floats, made: Bytes, out: Bytes) -> None:
    """Poisson noise by the alias table of `noise.shot_noise`; flat arrays.

    `made` holds two bytes for each cell of the table: that of its alias, then its own.
    """
    width, most = np.float32(cells), np.int32(cells - 1)
    for i in range(len(levels)):
        place = uniform[i] * width
        cell = min(np.int32(place), most)
        at = np.uint32(np.int32(levels[i]) * np.int32(cells) + cell)
        # A sum, as a branch that chance decides is slow.
        own = np.uint32(place - np.float32(cell) < threshold[at])
        out[i] = made[np.uint32(2) * at + own]


@_compiled
def histogram(levels: Bytes, counts: Whole) -> None:
    """Add the number of each level of planes [planes, pixels] to counts [planes, 256]."""
    for plane in range(len(levels)):
        row, own = levels[plane], counts[plane]
        for i in range(len(row)):
            own[row[i]] += 1


@_compiled
def looked_up(levels: Bytes, tables: Bytes, out: Bytes) -> None:
    """Levels [planes, pixels] by tables [planes, 256]."""
    for plane in range(len(levels)):
        row, table, made = levels[plane], tables[plane], out[plane]
        for i in range(len(row)):
            made[i] = table[row[i]]


@_compiled
def recoloured(planes: Bytes, factor: float, offset: float, amount: float, rounded: bool, out: Bytes) -> None:
    """`colours.recoloured` of one image [3, pixels]: saturation times factor plus offset, value plus amount.

    Levels are `rounded` or truncated.
    """
    reds, greens, blues = planes[0], planes[1], planes[2]
    red_out, green_out, blue_out = out[0], out[1], out[2]
    for i in range(len(reds)):
        red, green, blue = np.float64(reds[i]) / 255, np.float64(greens[i]) / 255, np.float64(blues[i]) / 255
        value = max(max(red, green), blue)
        spread = value - min(min(red, green), blue)
        coloured = spread > 0
        # Where two channels are the largest, the later one decides.
        by_blue, by_green = blue == value, green == value
        rise = red - green if by_blue else (blue - red if by_green else green - blue)
        start = 4.0 if by_blue else (2.0 if by_green else 0.0)
        hue = (rise / (spread if coloured else 1.0) + start) / 6
        hue = hue + (1.0 if hue < 0 else 0.0)
        saturation = spread / (value if value > 0 else 1.0)
        wanted = min(max(saturation * factor + offset, 0.0), 1.0)
        raised = min(value + amount, 1.0)
        turn = (hue if coloured else 0.0) * 6
        sector = np.int32(turn)
        part = turn - sector
        low = (1 - wanted) * raised
        middle = (1 - (part if sector & 1 else 1 - part) * wanted) * raised
        # A hue may be rounded to a whole turn, the sector 6, which is the sector 0.
        red_out[i] = _as_byte(_level(_RED >> (2 * sector) & 3, raised, middle, low), rounded)
        green_out[i] = _as_byte(_level(_GREEN >> (2 * sector) & 3, raised, middle, low), rounded)
        blue_out[i] = _as_byte(_level(_BLUE >> (2 * sector) & 3, raised, middle, low), rounded)


@_compiled
def foggy(levels: Bytes, layer: Floats, strength: np.float32, rounded: bool, out: Bytes) -> None:
    """`weather.fog` of one image [3, pixels] with a layer [pixels]."""
    largest = 0
    for c in range(3):
        plane = levels[c]
        for i in range(len(plane)):
            largest = max(largest, plane[i])
    brightest = np.float32(largest) / _LEVELS
    share = brightest / (brightest + strength)
    for c in range(3):
        plane, made = levels[c], out[c]
        for i in range(len(plane)):
            value = (np.float32(plane[i]) / _LEVELS + strength * layer[i]) * share
            made[i] = _as_byte(min(max(value, _NONE), _ONE) * _LEVELS, rounded)


@_compiled
def plasma(uniform: Floats, side: int, decay: float, field: Floats, finer: Floats) -> None:
    """`kernels.plasma` of one map before it is scaled: uniforms [side^2 - 1]; both arrays are [side^2].

    The map lies in `field` where log2 of the side is even, else in `finer`.
    """
    field[0] = 0
    size, used, wibble = 1, 0, 100.0
    now, then = field, finer
    two, four = np.float32(2), np.float32(4)
    while size < side:
        scale = np.float32(wibble * wibble)
        count = size * size
        large = 2 * size
        for row in range(size):
            below = row + 1 if row + 1 < size else 0
            for column in range(size):
                after = column + 1 if column + 1 < size else 0
                left = now[row * size + column] + now[below * size + column]
                right = now[row * size + after] + now[below * size + after]
                made = (left + right) / four + (two * uniform[used + row * size + column] - _ONE) * scale
                then[2 * row * large + 2 * column] = now[row * size + column]
                then[(2 * row + 1) * large + 2 * column + 1] = made
        used += count
        for row in range(size):
            before = 2 * row - 1 if row else large - 1
            for column in range(size):
                after = column + 1 if column + 1 < size else 0
                around = then[(2 * row + 1) * large + 2 * column + 1] + then[before * large + 2 * column + 1]
                total = around + now[row * size + column] + now[row * size + after]
                place = 2 * row * large + 2 * column + 1
                then[place] = total / four + (two * uniform[used + row * size + column] - _ONE) * scale
        used += count
        for row in range(size):
            below = row + 1 if row + 1 < size else 0
            for column in range(size):
                before = 2 * column - 1 if column else large - 1
                own = (2 * row + 1) * large
                total = then[own + 2 * column + 1] + then[own + before]
                total = total + now[row * size + column] + now[below * size + column]
                then[own + 2 * column] = total / four + (two * uniform[used + row * size + column] - _ONE) * scale
        used += count
        size, wibble = large, wibble / decay
        now, then = then, now


@_compiled
def frosted(levels: Bytes, ice: Floats, weight: float, share: float, rounded: bool, out: Bytes) -> None:
    """`weather.frost` of one plane [h, w] with a piece of a photograph [h, w]."""
    height, width = levels.shape
    for row in range(height):
        own, above, made = levels[row], ice[row], out[row]
        for column in range(width):
            value = own[column] * weight + above[column] * share
            made[column] = _as_byte(min(max(value, 0.0), 255.0), rounded)


@_compiled
def snowed(levels: Bytes, flakes: Floats, share: np.float32, rest: np.float32, rounded: bool, out: Bytes) -> None:
    """`weather.snow` of one image [3, pixels] with flakes [pixels], whole levels."""
    reds, greens, blues = levels[0], levels[1], levels[2]
    by_red, by_green, by_blue = np.float32(0.299), np.float32(0.587), np.float32(0.114)
    gain, lift = np.float32(1.5), np.float32(0.5)
    count = len(reds)
    paler, fallen = np.empty(count, np.float32), flakes / np.float64(255)
    turned = fallen[::-1].copy()
    for i in range(count):
        red, green = np.float32(reds[i]) / _LEVELS, np.float32(greens[i]) / _LEVELS
        blue = np.float32(blues[i]) / _LEVELS
        paler[i] = ((red * by_red + green * by_green) + blue * by_blue) * gain + lift
    for c in range(3):
        plane, made = levels[c], out[c]
        for i in range(count):
            unit = np.float32(plane[i]) / _LEVELS
            mixed = np.float64(unit * share + max(unit, paler[i]) * rest)
            value = mixed + fallen[i] + turned[i]
            made[i] = _as_byte(min(max(value, 0.0), 1.0) * 255, rounded)


@_compiled
def trailed(planes: Floats, down: Whole, across: Whole, shares: Floats, out: Floats) -> None:
    """Planes [c, h, w] summed at some offsets with weights [taps], in this order; edges repeated."""
    height, width = planes.shape[1:]
    far_down, far_across = np.abs(down).max(), np.abs(across).max()
    padded = np.empty((height + 2 * far_down, width + 2 * far_across), np.float32)
    for c in range(len(planes)):
        for row in range(len(padded)):
            own, wide = planes[c, min(max(row - far_down, 0), height - 1)], padded[row]
            wide[:far_across] = own[0]
            wide[far_across : far_across + width] = own
            wide[far_across + width :] = own[width - 1]
        for row in range(height):
            total = out[c, row]
            total[:] = 0
            for tap in range(len(shares)):
                there, share = padded[row + far_down + down[tap], far_across + across[tap] :], shares[tap]
                for column in range(width):
                    total[column] = _fused(there[column], share, total[column])


@_compiled
def _between(one: np.float32, other: np.float32, share: np.float32) -> np.float32:
    """torch's lerp."""
    near = share < np.float32(0.5)
    found: np.float32 = _fused(share if near else share - _ONE, other - one, one if near else other)
    return found


@_compiled
def zoomed(
    plane: Floats,
    window: tuple[int, int, int],
    columns: tuple[Whole, Whole, Floats],
    rows: tuple[Whole, Whole, Floats],
    work: Floats,
    total: Floats,
) -> None:
    """Add the central window (first row, first column, rows) of a plane [h, w], enlarged, to a total [h, w].

    Two pixels of the window and the share of the second for each column and row; `work` is [h, w].
    """
    top, left, height = window
    left_one, left_other, left_share = columns
    top_one, top_other, top_share = rows
    for row in range(height):
        own, wide = plane[top + row, left:], work[row]
        for column in range(len(left_share)):
            wide[column] = _between(own[left_one[column]], own[left_other[column]], left_share[column])
    for row in range(len(top_share)):
        one, other, share, target = work[top_one[row]], work[top_other[row]], top_share[row], total[row]
        for column in range(len(target)):
            target[column] += _between(one[column], other[column], share)


@_compiled
def valued(levels: Bytes, value: Floats, twice: Floats) -> None:
    """Bytes as float32 in [0, 1], and twice that; planes [h, w]."""
    for row in range(len(levels)):
        for column in range(levels.shape[1]):
            value[row, column] = np.float32(levels[row, column]) / _LEVELS
            twice[row, column] = np.float32(2) * value[row, column]


@_compiled
def averaged(total: Floats, count: np.float32, rounded: bool, out: Bytes) -> None:
    """A total over a count, as bytes; [h, w]."""
    for row in range(len(total)):
        for column in range(total.shape[1]):
            value = total[row, column] / count
            out[row, column] = _as_byte(min(max(value, _NONE), _ONE) * _LEVELS, rounded)


@_compiled
def bent(corners: Floats, reach: np.float32, third: float, out: Floats) -> None:
    """The affine map of `digital.elastic_transform`: moves of three points [n, 3, 2] to positions [n, h, w, 2]."""
    n, height, width = out.shape[:3]
    moved, across, down = np.empty((3, 2)), np.empty((2, width), np.float32), np.empty((2, height), np.float32)
    for i in range(n):
        for axis in range(2):
            middle = (height if axis else width) // 2
            for point in range(3):
                sign = -1 if point == 2 or (point == 1 and axis == 1) else 1
                moved[point, axis] = np.float32(middle + third * sign) + reach * corners[i, point, axis]
        a, c = (moved[1, 0] - moved[2, 0]) / (2 * third), (moved[1, 1] - moved[2, 1]) / (2 * third)
        b, d = (moved[0, 0] - moved[1, 0]) / (2 * third), (moved[0, 1] - moved[1, 1]) / (2 * third)
        whole = a * d - b * c
        for axis in range(2):
            side = height if axis else width
            by_x, by_y = (-c / whole, a / whole) if axis else (d / whole, -b / whole)
            scale, start = 2 / max(side - 1, 1), side // 2 - third
            for column in range(width):
                across[axis, column] = by_x * (column - moved[2, 0]) * scale - 1
            for row in range(height):
                down[axis, row] = (by_y * (row - moved[2, 1]) + start) * scale
        for row in range(height):
            for column in range(width):
                out[i, row, column, 0] = across[0, column] + down[0, row]
                out[i, row, column, 1] = across[1, column] + down[1, row]


@_compiled
def displaced(x: Floats, y: Floats, shift: Floats, by_x: np.float32, by_y: np.float32, out: Floats) -> None:
    """Positions [h, w, 2]: those of columns x [w] and of rows y [h], moved by multiples of a field [2, h, w]."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column, 0] = _fused(shift[0, row, column], by_x, x[column])
            out[row, column, 1] = _fused(shift[1, row, column], by_y, y[row])


@_compiled
def wet(liquid: Floats, threshold: np.float32, out: Bytes) -> None:
    """Levels of the liquid [pixels] where it reaches a threshold, modulo 256."""
    for i in range(len(liquid)):
        level = np.int32(max(liquid[i], _NONE) * _LEVELS) if liquid[i] >= threshold else np.int32(0)
        out[i] = np.uint8(level & 255)


@_compiled
def watered(
    levels: Bytes, wetness: Bytes, shades: Bytes, strength: np.float32, colour: Floats, rounded: bool, out: Bytes
) -> None:
    """Water of `extra.spatter` on one image [3, pixels]: levels of the liquid and its shades [pixels]."""
    count = len(wetness)
    mask = np.empty(count, np.float32)
    most = _ONE
    for i in range(count):
        mask[i] = np.float32(wetness[i]) * np.float32(shades[i])
        most = max(most, mask[i])
    for i in range(count):
        mask[i] = mask[i] / most * strength
    for c in range(3):
        plane, made, tint = levels[c], out[c], colour[c]
        for i in range(count):
            value = np.float32(plane[i]) / _LEVELS + mask[i] * tint
            made[i] = _as_byte(min(max(value, _NONE), _ONE) * _LEVELS, rounded)


@_compiled
def muddied(levels: Bytes, mask: Floats, colour: Floats, rounded: bool, out: Bytes) -> None:
    """Mud of `extra.spatter` on one image [3, pixels]: the share of it [pixels]."""
    for c in range(3):
        plane, made, tint = levels[c], out[c], colour[c]
        for i in range(len(mask)):
            value = np.float32(plane[i]) / _LEVELS * (_ONE - mask[i]) + tint * mask[i]
            made[i] = _as_byte(min(max(value, _NONE), _ONE) * _LEVELS, rounded)


@_compiled
def glass_map(uniform: Floats, reach: int, source: Whole) -> None:
    """`blur.glass_map` of one image: uniforms [sweeps, h, w], and where each pixel comes from, [h * w]."""
    sweeps, height, width = uniform.shape
    cells = 4 * reach * reach
    jumps = np.empty(cells, np.int64)
    for i in range(cells):
        jumps[i] = (i // (2 * reach) - reach) * width + i % (2 * reach) - reach
    scale = np.float32(cells)
    for i in range(height * width):
        source[i] = i
    for sweep in range(sweeps):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                cell = min(int(uniform[sweep, row, column] * scale), cells - 1)
                place = row * width + column
                source[np.uint64(place)] = source[np.uint64(place + jumps[np.uint64(cell)])]


@_compiled
def gathered(levels: Bytes, source: Whole, out: Bytes) -> None:
    """Levels [3, pixels] at flat places [pixels]."""
    for c in range(len(levels)):
        plane, made = levels[c], out[c]
        for i in range(len(source)):
            made[i] = plane[source[i]]


@_compiled
def blurred(
    levels: Bytes, unit: Doubles, taps: Doubles, rounded: bool, rows: Doubles, padded: Doubles, out: Bytes
) -> None:
    """`kernels.blur_in_order` of a plane of bytes [h, w] to bytes; taps from the middle outwards.

    `rows` [h, w] is the plane as values, `padded` [w + 2 radius] is work.
    """
    height, width = levels.shape
    radius = len(taps) - 1
    for row in range(height):
        for column in range(width):
            rows[row, column] = unit[levels[row, column]]
    total = padded[radius : radius + width]
    across = np.empty(width)
    for row in range(height):
        middle = rows[row]
        for column in range(width):
            total[column] = middle[column] * taps[0]
        for reach in range(radius, 0, -1):
            above, below, tap = rows[max(row - reach, 0)], rows[min(row + reach, height - 1)], taps[reach]
            for column in range(width):
                total[column] += (above[column] + below[column]) * tap
        padded[:radius] = total[0]
        padded[radius + width :] = total[width - 1]
        for column in range(width):
            across[column] = total[column] * taps[0]
        for reach in range(radius, 0, -1):
            left, right, tap = padded[radius - reach :], padded[radius + reach :], taps[reach]
            for column in range(width):
                across[column] += (left[column] + right[column]) * tap
        made = out[row]
        for column in range(width):
            made[column] = _as_byte(min(max(across[column], 0.0), 1.0) * 255, rounded)


@_compiled
def pixelated(
    planes: Bytes,
    across: tuple[Whole, Whole, Whole],
    down: tuple[Whole, Whole, Whole],
    columns: Whole,
    rows: Whole,
    out: Bytes,
) -> None:
    """Planes [n, h, w] through Pillow's BOX filter and large again by copying the pixels at some columns and rows.

    A filter is windows of pixels, first and the one after the last, and the share of one times 2^22.
    """
    height, width = planes.shape[1:]
    first, last, share = across
    top, end, part = down
    sums = np.empty(width + 1, np.int32)
    narrow, small = np.empty((height, len(first)), np.uint8), np.empty(len(first), np.uint8)
    wide, total = np.empty(width, np.uint8), np.empty(len(first), np.int32)
    for i in range(len(planes)):
        for row in range(height):
            own, made = planes[i, row], narrow[row]
            sums[0] = 0
            for column in range(width):
                sums[column + 1] = sums[column] + np.int32(own[column])
            for column in range(len(first)):
                inside = np.int64(sums[last[column]] - sums[first[column]])
                made[column] = np.uint8((inside * share[column] + (1 << 21)) >> 22)
        made_row = -1
        for row in range(height):
            if rows[row] != made_row:
                made_row = rows[row]
                total[:] = 0
                for source in range(top[made_row], end[made_row]):
                    one = narrow[source]
                    for column in range(len(total)):
                        total[column] += one[column]
                weight = np.int32(part[made_row])
                for column in range(len(total)):
                    small[column] = np.uint8((total[column] * weight + np.int32(1 << 21)) >> np.int32(22))
                for column in range(width):
                    wide[column] = small[columns[column]]
            target = out[i, row]
            for column in range(width):
                target[column] = wide[column]


@_compiled
def blurred_nearly(planes: Floats, taps: Floats, out: Floats) -> None:
    """`kernels.blur` of planes [n, h, w] with few taps, from the middle outwards; edges repeated."""
    height, width = planes.shape[1:]
    radius = len(taps) - 1
    padded = np.empty(width + 2 * radius, np.float32)
    for i in range(len(planes)):
        plane = planes[i]
        for row in range(height):
            middle, total, across = plane[row], padded[radius : radius + width], out[i, row]
            for column in range(width):
                total[column] = middle[column] * taps[0]
            for reach in range(1, radius + 1):
                above, below, tap = plane[max(row - reach, 0)], plane[min(row + reach, height - 1)], taps[reach]
                for column in range(width):
                    total[column] = _fused(above[column] + below[column], tap, total[column])
            padded[:radius] = total[0]
            padded[radius + width :] = total[width - 1]
            for column in range(width):
                across[column] = total[column] * taps[0]
            for reach in range(1, radius + 1):
                left, right, tap = padded[radius - reach :], padded[radius + reach :], taps[reach]
                for column in range(width):
                    across[column] = _fused(left[column] + right[column], tap, across[column])
