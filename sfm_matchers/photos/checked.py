"""Photographs that must be those with which a run has begun."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import file_fingerprint, fingerprint
from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.masks import mask_path, usable_pixels


def photo_fingerprint(
    content: str,
    mask_dir: str | Path | None,
    name: str,
    image_dir: str | Path | None = None,
) -> str:
    """Return the fingerprint of a photo with its mask.

    Args:
        content: `storage.file_fingerprint` of the photo.
        mask_dir, name, image_dir: see `mask_path`.
    """
    path = mask_path(mask_dir, name, image_dir)
    return fingerprint(revisions.PHOTOS, content, None if path is None else file_fingerprint(path))


def read_photo(
    image_dir: Path, name: str, mask_dir: Path | None, known_fingerprint: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a photo and its mask, which must be those that a run has begun with.

    Returns:
        RGB (H, W, 3) uint8, and booleans (H, W), as `usable_pixels`.

    Raises:
        InputError: one of them cannot be read, or has another `photo_fingerprint`.
    """
    path = Path(image_dir) / name
    image = read_image(path)
    mask = usable_pixels(image_dir, name, mask_dir, (image.shape[1], image.shape[0]))
    if photo_fingerprint(file_fingerprint(path), mask_dir, name, image_dir) != known_fingerprint:
        raise InputError(f"{path} has changed since this run began")
    return image, mask
