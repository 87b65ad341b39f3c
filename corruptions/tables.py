"""The strength of each severity of each corruption, by profile; readable without torch.

The numbers of `imagenet224`, `inception299`, `tiny64` and `cifar32` are those of ImageNet-C, its 299-pixel version,
Tiny-ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common
corruptions and perturbations", arXiv:1903.12261). Their lengths are pixels and are not rescaled for other image sizes.

LAION-C (Li et al. 2025, arXiv:2506.16950) and ImageNet-C-bar (Mintun et al. 2021, arXiv:2102.11273) are defined at 224
pixels: at every size their lengths are 1/224 of the shorter side and their counts those of a square of it.
"""

from __future__ import annotations

import math

Parameters = tuple[float, ...]
Table = dict[str, tuple[float | Parameters, ...]]

# One entry per severity 1 .. 5; what the numbers of an entry are stands above its row.
IMAGENET224: Table = {
    # standard deviation
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    # photons of a white pixel
    "shot_noise": (60, 25, 12, 5, 3),
    # share of replaced values
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    # standard deviation
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    # standard deviation in pixels
    "gaussian_blur": (1, 2, 3, 4, 6),
    # standard deviation of the blurs, furthest jump, sweeps
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    # radius of the disc, standard deviation of its smoothing
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    # half the length of the trail, standard deviation of its weights
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    # end (excluded) and step of the zoom factors, which start at 1
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    # mean, deviation, zoom and threshold of the flakes, half length and deviation of their trail, weight of the image
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    # weight of the image, weight and scale of the texture
    "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    # strength, decay of the plasma's roughness, least side of the plasma
    "fog": ((1.5, 2, 256), (2, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3, 1.4, 256)),
    # added to the HSV value
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    # factor of the distance to the mean
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    # factor and offset of the HSV saturation
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    # Pillow's quality
    "jpeg_compression": (25, 18, 15, 10, 7),
    # share of the side that is kept
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    # displacement, its smoothing, reach of the affine part (pixels)
    "elastic_transform": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    # mean, deviation, smoothing and threshold of the liquid, strength, 0 water or 1 mud
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
}

INCEPTION299: Table = {
    **IMAGENET224,
    "gaussian_noise": (0.09, 0.13, 0.19, 0.27, 0.40),
    "shot_noise": (50, 20, 10, 5, 3),
    "impulse_noise": (0.04, 0.07, 0.10, 0.18, 0.28),
    "speckle_noise": (0.16, 0.21, 0.36, 0.46, 0.61),
    "gaussian_blur": (1.5, 2.5, 3.5, 4.5, 6.5),
    "glass_blur": ((0.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)),
    "defocus_blur": ((4, 0.1), (5, 0.5), (7, 0.5), (10, 0.5), (12, 0.5)),
    "motion_blur": ((12, 4), (17, 6), (17, 9), (17, 13), (22, 16)),
    "fog": ((1.5, 2, 512), (2, 2, 512), (2.5, 1.8, 512), (2.5, 1.6, 512), (3, 1.5, 512)),
    "jpeg_compression": (23, 16, 13, 8, 5),
    "pixelate": (0.5, 0.4, 0.3, 0.25, 0.2),
    "elastic_transform": (
        (720, 252, 36),
        (720, 28.8, 72),
        (18, 3.6, 7.2),
        (25.2, 3.6, 7.2),
        (43.2, 3.6, 7.2),
    ),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.9, 0),
        (0.65, 0.3, 3.5, 0.68, 0.9, 0),
        (0.65, 0.3, 3, 0.68, 0.8, 0),
        (0.65, 0.3, 1.2, 0.65, 1.8, 1),
        (0.67, 0.4, 1.2, 0.65, 1.8, 1),
    ),
}

TINY64: Table = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": (250, 100, 50, 30, 15),
    "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
    "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": (0.5, 0.75, 1, 1.25, 1.5),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    "fog": ((0.4, 3, 64), (0.7, 3, 64), (1, 2.5, 64), (1.5, 2, 64), (2, 1.75, 64)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    "jpeg_compression": (65, 58, 50, 40, 25),
    "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
    "elastic_transform": ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
}

CIFAR32: Table = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "fog": ((0.2, 3, 32), (0.5, 3, 32), (0.75, 2.5, 32), (1, 2, 32), (1.5, 1.75, 32)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "elastic_transform": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
}

# Handwritten digits enlarged from 8 to 32 pixels are smooth, so the numbers of cifar32 hardly hurt them. These are our
# own, not published. Each severity must be harder than the one before.
DIGITS32: Table = {
    "gaussian_noise": (0.1, 0.15, 0.22, 0.32, 0.45),
    "shot_noise": (10, 6, 3.5, 2, 1),
    "impulse_noise": (0.05, 0.08, 0.13, 0.2, 0.3),
    "speckle_noise": (0.3, 0.5, 0.75, 1, 1.4),
    "gaussian_blur": (2, 2.5, 3, 3.5, 4),
    "glass_blur": ((0.5, 1, 2), (0.6, 1, 4), (0.7, 2, 3), (0.8, 3, 3), (1, 4, 4)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (5, 0.5), (6, 0.5), (7, 0.5)),
    "motion_blur": ((8, 4), (10, 6), (12, 8), (14, 12), (16, 15)),
    "zoom_blur": ((1.56, 0.04), (1.8, 0.05), (2.1, 0.07), (2.5, 0.1), (3, 0.1)),
    "snow": (
        (0.1, 0.3, 1.25, 0.6, 6, 3, 0.9),
        (0.15, 0.3, 1.75, 0.55, 8, 4, 0.8),
        (0.25, 0.3, 2.25, 0.55, 10, 4, 0.7),
        (0.3, 0.3, 2, 0.55, 12, 6, 0.6),
        (0.4, 0.3, 1.5, 0.6, 12, 8, 0.5),
    ),
    "frost": ((0.9, 0.4, 0.2), (0.8, 0.5, 0.2), (0.7, 0.6, 0.2), (0.6, 0.7, 0.2), (0.5, 0.75, 0.2)),
    "fog": ((0.4, 2.2, 32), (0.7, 2, 32), (1, 1.8, 32), (1.4, 1.7, 32), (2, 1.6, 32)),
    "brightness": (0.1, 0.17, 0.24, 0.32, 0.42),
    "contrast": (0.8, 0.65, 0.5, 0.4, 0.3),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "jpeg_compression": (7, 5, 4, 3, 2),
    "pixelate": (0.6, 0.5, 0.3, 0.22, 0.13),
    "elastic_transform": ((1.6, 6.4, 3), (3.2, 3, 4), (4.8, 2, 4.5), (6.4, 1.6, 5), (8, 1.6, 5.5)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.68, 0.6, 0),
        (0.65, 0.1, 0.8, 0.68, 0.8, 0),
        (0.65, 0.3, 1, 0.67, 1, 0),
        (0.65, 0.2, 0.8, 0.66, 1, 1),
        (0.67, 0.3, 1, 0.65, 1.5, 1),
    ),
}

# Frost without photographs is no published corruption; it takes the weights of the published one.
for _table in (IMAGENET224, INCEPTION299, TINY64, CIFAR32, DIGITS32):
    _table["frost_procedural"] = _table["frost"]

PROFILES: dict[str, Table] = {
    "imagenet224": IMAGENET224,
    "inception299": INCEPTION299,
    "tiny64": TINY64,
    "cifar32": CIFAR32,
    "digits32": DIGITS32,
}

# LAION-C and ImageNet-C-bar, the same in all profiles but for two in small images.
_BY_SIDE: Table = {
    # side of a tile
    "mosaic": (4, 6, 8, 16, 28),
    # amount of the package glitch_this
    "glitched": (2, 4, 5, 8, 10),
    # lines, height of a step
    "vertical_lines": ((224, 1), (178, 2), (112, 4), (84, 6), (60, 8)),
    # stickers
    "stickers": (100, 200, 400, 600, 1200),
    # shapes
    "geometric_shapes": (150, 300, 600, 800, 1000),
    # least and largest shift in levels
    "luminance_checkerboard": ((0, 50), (50, 100), (100, 125), (125, 150), (150, 255)),
    # level, 10 at most; a tenth of it scales the largest strength of each
    "blue_noise_sample": (0.8, 1.6, 2.4, 4.0, 5.6),
    "brownish_noise": (1, 2, 3, 4, 5),
    "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
    "checkerboard_cutout": (2, 3, 4, 5, 6),
    "cocentric_sine_waves": (3, 5, 8, 9, 10),
    "inverse_sparkles": (1, 2, 4, 9, 10),
    "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
    "plasma_noise": (4.75, 7, 8.5, 9.25, 10),
    "single_frequency_greyscale": (1, 1.5, 2, 4.5, 5),
    "sparkles": (1, 2, 3, 5, 6),
}
# In small images published tiles and lines are thinner than a pixel; these, which are ours, are not.
_TILES_OF_SMALL: dict[str, tuple[float, ...]] = {"tiny64": (7, 10.5, 14, 21, 28), "cifar32": (14, 21, 28, 42, 56)}
_LINES_OF_SMALL: dict[str, tuple[Parameters, ...]] = {
    "tiny64": ((64, 3.5), (48, 3.5), (32, 7), (24, 10.5), (16, 14)),
    "cifar32": ((32, 7), (24, 7), (16, 14), (12, 14), (8, 21)),
}
for _name, _table in PROFILES.items():
    _table.update(_BY_SIDE)
    _small = "cifar32" if _name == "digits32" else _name
    if _small in _TILES_OF_SMALL:
        _table["mosaic"], _table["vertical_lines"] = _TILES_OF_SMALL[_small], _LINES_OF_SMALL[_small]

# Severity 0 for the interpolation of fractional severities (Press et al. 2023, "RDumb", arXiv:2306.05401; ours for
# all other corruptions). None repeats the number of severity 1.
CLEAN: dict[str, tuple[float | None, ...]] = {
    "gaussian_noise": (0,),
    "shot_noise": (math.inf,),
    "impulse_noise": (0,),
    "speckle_noise": (0,),
    "gaussian_blur": (0,),
    "glass_blur": (0, 0, 0),
    "defocus_blur": (0, 0),
    "motion_blur": (0, 0),
    "zoom_blur": (1, 0.01),
    "snow": (0.1, 0.3, 3, 1, 10, 4, 1),
    "frost": (1, 0, None),
    "frost_procedural": (1, 0, None),
    "fog": (0, 2, None),
    "brightness": (0,),
    "contrast": (1,),
    "saturate": (1, 0),
    "jpeg_compression": (85,),
    "pixelate": (1,),
    "elastic_transform": (0, 999, 0),
    "spatter": (None, None, None, None, 0, None),
    "mosaic": (1,),
    "glitched": (0,),
    "vertical_lines": (None, None),
    "stickers": (0,),
    "geometric_shapes": (0,),
    "luminance_checkerboard": (0, 0),
    "blue_noise_sample": (0,),
    "brownish_noise": (0,),
    "caustic_refraction": (0,),
    "checkerboard_cutout": (0,),
    "cocentric_sine_waves": (0,),
    "inverse_sparkles": (0,),
    "perlin_noise": (0,),
    "plasma_noise": (0,),
    "single_frequency_greyscale": (0,),
    "sparkles": (0,),
}
