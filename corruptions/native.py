"""Optional numba and OpenCV: the same pixels on a CPU in less time. Without them, Pillow and torch do everything."""

from __future__ import annotations

import importlib
import io
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]


@cache
def opencv() -> Any | None:
    """Return the module cv2, or None if it is not installed or does not load."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


@cache
def compiled() -> Any | None:
    """Return the module `corruptions.compiled`, or None if numba is not installed or does not load."""
    try:
        return importlib.import_module("corruptions.compiled")
    except ImportError:
        return None


def jpeg_by_pillow(image: Bytes, quality: int) -> Bytes:
    """Return an image [h, w, 3] after a round trip through JPEG of a quality, 4:2:0, uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read)


def jpeg_by_opencv(cv2: Any, planes: Bytes, out: Bytes, quality: int) -> None:
    """Do the same for planes [3, h, w], into `out`."""
    red, green, blue = planes
    _, file = cv2.imencode(".jpg", cv2.merge((blue, green, red)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    cv2.split(cv2.imdecode(file, cv2.IMREAD_COLOR), [out[2], out[1], out[0]])


@cache
def opencv_for_jpeg() -> Any | None:
    """Return OpenCV if its JPEG gives the same pixels here as Pillow's: each brings its own libjpeg."""
    cv2 = opencv()
    if cv2 is None:
        return None
    planes = np.random.default_rng(0).integers(0, 256, (3, 45, 38), dtype=np.uint8)
    planes[:, 10:30] = np.sort(planes[:, 10:30], axis=2)
    found = np.empty_like(planes)
    for quality in (7, 50, 85):
        jpeg_by_opencv(cv2, planes, found, quality)
        if not np.array_equal(found.transpose(1, 2, 0), jpeg_by_pillow(planes.transpose(1, 2, 0).copy(), quality)):
            return None
    return cv2


def into_planes(image: Bytes, planes: Bytes) -> None:
    """Copy an image [h, w, 3] into planes [3, h, w]."""
    cv2 = opencv()
    if cv2 is None:
        np.copyto(planes, image.transpose(2, 0, 1))
    else:
        cv2.split(image, list(planes))


def water_relief(cv2: Any, levels: Bytes, furthest: int, edges: tuple[int, int], relief: Bytes) -> Bytes:
    """Return the shading of water for one plane of levels [h, w], uint8: see `extra.spatter`."""
    distance = cv2.distanceTransform(255 - cv2.Canny(levels, *edges), cv2.DIST_L2, 5)
    np.minimum(distance, furthest, out=distance)
    shade = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    found: Bytes = cv2.blur(cv2.filter2D(shade, cv2.CV_8U, relief), (3, 3))
    return found
