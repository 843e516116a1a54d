"""Pictures within a report."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import cv2
import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.photos.images import (
    exif_orientation,
    points_to_upright,
    read_image_and_orientation,
    to_upright,
)
from sfm_matchers.reports.drawing import encode_image

logger = logging.getLogger(__name__)

JPEG_QUALITY = 82
MAX_ASPECT = 6  # of a picture of a photo; wider ones are drawn less high


def read_picture(path: Path, least_side: int | None = None) -> np.ndarray | None:
    """Return a photo (H, W, 3) upright; None and a warning where it cannot be read."""
    try:
        return to_upright(*read_image_and_orientation(path, least_side=least_side))
    except InputError as error:
        logger.warning("the report goes without a picture: %s", error)
        return None


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation of a photo; 1 where there is none, or no photo."""
    try:
        return exif_orientation(path)
    except InputError:
        return 1


def resize_to_height(image: np.ndarray, height: int) -> tuple[np.ndarray, float]:
    """Return a photo of that height, less where it is very wide, and the scale."""
    scale = min(height / image.shape[0], MAX_ASPECT * height / image.shape[1])
    size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def in_picture(points: np.ndarray, path: Path, picture: np.ndarray, scale: float) -> np.ndarray:
    """Return where points of a photo as stored lie in its upright picture, resized.

    Args:
        points: (N, 2) pixels of the photo as stored, in COLMAP's convention.
        path: of the photo.
        picture: as `read_picture` gives it.
        scale: by which it was resized then.

    Returns:
        (N, 2) pixels; (0, 0) is the centre of the top-left one.
    """
    orientation = orientation_of(path)
    height, width = picture.shape[:2]
    stored = (height, width) if orientation >= 5 else (width, height)
    shares = points_to_upright(points / stored, orientation)
    return shares * (width, height) * scale - 0.5


def jpeg_url(image: np.ndarray) -> str:
    """Return a picture (H, W, 3) as an address that a page can hold."""
    return (
        "data:image/jpeg;base64,"
        + base64.b64encode(encode_image(image, ".jpg", JPEG_QUALITY)).decode()
    )
