"""Panoramas of whole spheres, as a photo's shape, its XMP and its edges tell."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sfm_matchers.photos.images import open_photo, read_image

_XMP_WITHIN = 1 << 18  # bytes from the beginning of a file
SIZE = (512, 256)  # pixels, at which edges are compared


def may_be_panorama(path: Path) -> bool:
    """Return whether a photo is twice as wide as high, or its XMP says that it is a panorama.

    Raises:
        InputError: as `open_photo`.
    """
    return _is_twice_as_wide(path) or _says_so(path)


def looks_like_panorama(path: Path) -> bool:
    """Return whether a photo is a panorama by its XMP, or one whose left edge goes on at the right.

    Raises:
        InputError: as `read_image`.
    """
    if _says_so(path):
        return True
    return _is_twice_as_wide(path) and wraps_around(read_image(path, gray=True, least_side=SIZE[1]))


def wraps_around(gray: np.ndarray) -> bool:
    """Return whether the first column of an image (H, W) is like one that follows on the last.

    Of seamless panoramas they differ no more than neighbours do elsewhere, of most other photos by
    several times as much; those of one colour all around cannot be told from panoramas.
    """
    small = np.float32(cv2.resize(gray, SIZE, interpolation=cv2.INTER_AREA))
    steps = np.abs(np.diff(small, axis=1)).mean(axis=0)
    return bool(np.abs(small[:, 0] - small[:, -1]).mean() <= steps.max())


def _is_twice_as_wide(path: Path) -> bool:
    with open_photo(path) as photo:
        width, height = photo.size
    return bool(width == 2 * height)


def _says_so(path: Path) -> bool:
    with Path(path).open("rb") as file:
        head = file.read(_XMP_WITHIN)
    return b"GPano:ProjectionType" in head and b"equirectangular" in head
