"""Which pixels of a photograph count."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.photos.images import (
    decode_pixels,
    exif_orientation,
    from_upright,
    open_photo,
)


def mask_names(name: str) -> tuple[str, str]:
    """Return what the mask of a photo may be called: COLMAP's ``a.jpg.png``, and ``a.png``."""
    return f"{name}.png", f"{PurePosixPath(name).with_suffix('')}.png"


def check_mask_dir(mask_dir: str | Path) -> None:
    """Raise InputError if there is nothing where masks should be."""
    if not Path(mask_dir).exists():
        raise InputError(
            f"{mask_dir} is neither a folder of masks nor a mask{nearest_path(mask_dir)}"
        )


def mask_path(
    mask_dir: str | Path | None, name: str, image_dir: str | Path | None = None
) -> Path | None:
    """Return where the mask of a photo lies, None if it has none.

    Args:
        mask_dir: a folder with files named as `mask_names`, or a file, the mask of every photo.
        name: of the photo.
        image_dir: the photos, where that may be the same folder: no photo is its own mask.
    """
    if mask_dir is None:
        return None
    if Path(mask_dir).is_file():
        return Path(mask_dir)
    photo = None if image_dir is None else Path(image_dir) / name
    for candidate in mask_names(name):
        path = Path(mask_dir) / candidate
        # Unlike pathlib's, False for a name that is too long.
        is_file = os.path.isfile(path)  # noqa: PTH113
        if is_file and not (photo and photo.exists() and path.samefile(photo)):
            return path
    return None


class WayUp(str, Enum):
    """What a mask was made from, as far as its size and the photo's EXIF orientation tell."""

    STORED = "the photo as stored"
    UPRIGHT = "the photo set upright"
    EITHER = "either"  # both have its size
    SAME = "not turned"  # the photo is not turned by EXIF


class Mask(NamedTuple):
    """A mask of a photo: booleans (H, W), True where it may be used, and how it came to lie so."""

    usable: np.ndarray
    way_up: WayUp


def read_mask(
    mask_dir: str | Path | None,
    name: str,
    size: tuple[int, int],
    image_dir: str | Path | None = None,
) -> np.ndarray | None:
    """Return the mask of a photo as booleans (H, W), True where the photo may be used.

    COLMAP's convention: black pixels are ignored, transparent ones too. None if there is no mask,
    see `mask_path`. Viewers and many tools show a photo set upright as its EXIF tells: a mask that
    fits that is turned with it. One that fits either way, as with an orientation of 3, counts as
    made from the upright photo.

    Args:
        mask_dir: see `mask_path`.
        name: of the photo.
        size: its (width, height) as stored.
        image_dir: the photos, for their EXIF.

    Raises:
        InputError: the mask cannot be decoded, or its size is not that of the photo.
    """
    mask = read_mask_and_way_up(mask_dir, name, size, image_dir)
    return None if mask is None else mask.usable


def read_mask_and_way_up(
    mask_dir: str | Path | None,
    name: str,
    size: tuple[int, int],
    image_dir: str | Path | None = None,
) -> Mask | None:
    """As `read_mask`, with what the mask was made from."""
    path = mask_path(mask_dir, name, image_dir)
    if path is None:
        return None
    usable = _not_black(path)
    opaque = read_opacity(path)
    if opaque is not None:
        usable &= opaque
    orientation = 1 if image_dir is None else exif_orientation(Path(image_dir) / name)
    stored = tuple(size)
    upright = stored[::-1] if orientation >= 5 else stored
    found = (usable.shape[1], usable.shape[0])
    if found not in (stored, upright):
        turned_size = f", {size[1]}x{size[0]} set upright by EXIF" if upright != stored else ""
        raise InputError(
            f"{path} is {found[0]}x{found[1]}, but its photo {name} is "
            f"{size[0]}x{size[1]}{turned_size}: a mask has the size of its photo"
        )
    if orientation == 1:
        return Mask(usable, WayUp.SAME)
    if found != upright:
        return Mask(usable, WayUp.STORED)
    way_up = WayUp.EITHER if upright == stored else WayUp.UPRIGHT
    return Mask(from_upright(usable, orientation), way_up)


def _not_black(path: Path) -> np.ndarray:
    """Where an image is not black, (H, W) bool.

    Whatever is above 0, as COLMAP has it, and as masks of 0 and 1 need it. JPEG leaves a noise of
    low levels beside edges, where black is all that is nearer to it than to the brightest level.
    """
    levels = decode_pixels(path, cv2.IMREAD_GRAYSCALE)
    with open_photo(path) as photo:
        is_jpeg = photo.format in ("JPEG", "MPO")
    return np.asarray(levels > (levels.max() // 2 if is_jpeg else 0))


def read_alpha(path: Path) -> np.ndarray | None:
    """Return how opaque an image is, (H, W) uint8; None if it is wholly so everywhere.

    Raises:
        InputError: as `read_image`.
    """
    with open_photo(path) as photo:
        if not (photo.mode.endswith(("A", "a")) or "transparency" in photo.info):
            return None
        image = decode_pixels(path, cv2.IMREAD_UNCHANGED)
        if image.ndim == 3 and image.shape[2] == 4:
            num_bits = np.iinfo(image.dtype).bits
            alpha = (image[..., 3] >> (num_bits - 8)).astype(np.uint8)
        else:  # of gray images with a transparent level, which OpenCV does not look at
            alpha = np.asarray(photo.convert("RGBA").getchannel("A"))
    return None if (alpha == 255).all() else alpha


def read_opacity(path: Path) -> np.ndarray | None:
    """Return where an image is opaque by half at least, (H, W) bool; None if it is everywhere.

    Raises:
        InputError: as `read_image`.
    """
    alpha = read_alpha(path)
    if alpha is None or (alpha > 127).all():
        return None
    return alpha > 127


def usable_pixels(
    image_dir: Path, name: str, mask_dir: Path | None, size: tuple[int, int]
) -> np.ndarray | None:
    """Return which pixels of a photo may be used, (H, W) bool: opaque ones inside its mask.

    None where that is all of them. The `size` (W, H) is the photo's.

    Raises:
        InputError: as `read_mask` and `read_opacity`.
    """
    mask, opaque = read_mask(mask_dir, name, size, image_dir), read_opacity(Path(image_dir) / name)
    if mask is None or opaque is None:
        return mask if opaque is None else opaque
    return mask & opaque


def inside_mask(keypoints: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return booleans (N,): whether each keypoint (x, y) lies on a usable pixel of the mask."""
    if mask is None or len(keypoints) == 0:
        return np.ones(len(keypoints), dtype=bool)
    height, width = mask.shape
    columns = np.clip(np.rint(keypoints[:, 0]).astype(np.int64), 0, width - 1)
    rows = np.clip(np.rint(keypoints[:, 1]).astype(np.int64), 0, height - 1)
    return mask[rows, columns]
