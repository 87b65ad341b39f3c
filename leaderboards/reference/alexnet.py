"""Errors of AlexNet on ImageNet-C: what mCE is relative to.

Means over the five severities, by name because several code bases list the same numbers in different orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ALEXNET_CLEAN_ERROR = 0.4345
"""Top-1 error on the 50 000 clean validation images; Hendrycks and Dietterich 2019, arXiv:1903.12261."""

ALEXNET_50K: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    }
)
"""On all 50 000 images; the table of Hendrycks and Dietterich 2019, as repeated in several public repositories."""

ALEXNET_5K: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 0.8816,
        "shot_noise": 0.8883,
        "impulse_noise": 0.9172,
        "defocus_blur": 0.8220,
        "glass_blur": 0.8308,
        "motion_blur": 0.7872,
        "zoom_blur": 0.7957,
        "snow": 0.8680,
        "frost": 0.8315,
        "fog": 0.8236,
        "brightness": 0.5585,
        "contrast": 0.8543,
        "elastic_transform": 0.6480,
        "pixelate": 0.7186,
        "jpeg_compression": 0.6068,
    }
)
"""On the 5000 images of RobustBench's subset; the AlexNet row of its ImageNet-C results (unaggregated CSV)."""
