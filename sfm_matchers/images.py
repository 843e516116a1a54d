"""Photos: finding, decoding, masks, resizing, and the change between pixel frames.

A photo is decoded as its file stores it: an EXIF rotation is not applied, since COLMAP does not
apply it either. In every array of points, (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .errors import InputError
from .storage import file_fingerprint, fingerprint

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def find_images(image_dir: Path) -> list[str]:
    """Return the names of all photos below a folder: sorted POSIX paths relative to it.

    Linked folders are followed once. Names that no text file of pairs can hold (a line break) are
    refused.

    Raises:
        InputError: the folder does not exist, or a name is refused.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise InputError(f"{image_dir} is not a folder of photos")
    names = []
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(image_dir, followlinks=True):
        real_folder = Path(folder).resolve()
        if real_folder in visited:
            subfolders.clear()
            continue
        visited.add(real_folder)
        for file in files:
            if Path(file).suffix.lower() in IMAGE_EXTENSIONS:
                names.append((Path(folder) / file).relative_to(image_dir).as_posix())
    for name in names:
        if "\n" in name or "\r" in name:
            raise InputError(f"the name {name!r} contains a line break: rename the file")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the name {name!r} is not valid UTF-8: rename the file") from error
    return sorted(names)


def read_image(path: Path, *, gray: bool = False) -> np.ndarray:
    """Decode a photo to 8 bits: RGB (H, W, 3), or (H, W) if `gray`. EXIF rotation is ignored.

    Raises:
        InputError: the file is missing, or no decoder reads it.
    """
    colour = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    try:
        # Through memory, because OpenCV cannot open every path on Windows.
        encoded = np.fromfile(str(path), dtype=np.uint8)
        image = cv2.imdecode(encoded, colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, cv2.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if image is None:
        raise InputError(
            f"{path} cannot be decoded as an image (damaged, empty, or another format)"
        )
    return image if gray else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def mask_path(mask_dir: Path | None, name: str) -> Path | None:
    """Return where the mask of a photo lies, None if it has none: ``mask_dir/name.png``."""
    if mask_dir is None:
        return None
    path = Path(mask_dir) / f"{name}.png"
    return path if path.exists() else None


def read_mask(mask_dir: Path | None, name: str, size: tuple[int, int]) -> np.ndarray | None:
    """Return the mask of a photo as booleans (H, W), True where the photo may be used.

    COLMAP's convention: black pixels are ignored. None if there is no mask, see `mask_path`.

    Raises:
        InputError: the mask cannot be decoded, or its size is not the photo's `size` (W, H).
    """
    path = mask_path(mask_dir, name)
    if path is None:
        return None
    mask = read_image(path, gray=True)
    if mask.shape != (size[1], size[0]):
        raise InputError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]}, but its photo is {size[0]}x{size[1]}"
        )
    return mask > 0


def photo_fingerprint(content: str, mask_dir: Path | None, name: str) -> str:
    """Return the fingerprint of a photo with its mask.

    Args:
        content: `storage.file_fingerprint` of the photo.
        mask_dir: COLMAP-style masks.
        name: of the photo.
    """
    path = mask_path(mask_dir, name)
    return fingerprint(content, None if path is None else file_fingerprint(path))


def read_photo(
    image_dir: Path, name: str, mask_dir: Path | None, known_fingerprint: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a photo and its mask, which must be those that a run has begun with.

    Returns:
        RGB (H, W, 3) uint8, and booleans (H, W) or None, as `read_mask`.

    Raises:
        InputError: one of them cannot be read, or has another `photo_fingerprint`.
    """
    path = Path(image_dir) / name
    image = read_image(path)
    mask = read_mask(mask_dir, name, (image.shape[1], image.shape[0]))
    if photo_fingerprint(file_fingerprint(path), mask_dir, name) != known_fingerprint:
        raise InputError(f"{path} has changed since this run began")
    return image, mask


def inside_mask(keypoints: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return booleans (N,): whether each keypoint (x, y) lies on a usable pixel of the mask."""
    if mask is None or len(keypoints) == 0:
        return np.ones(len(keypoints), dtype=bool)
    height, width = mask.shape
    columns = np.clip(np.rint(keypoints[:, 0]).astype(np.int64), 0, width - 1)
    rows = np.clip(np.rint(keypoints[:, 1]).astype(np.int64), 0, height - 1)
    return mask[rows, columns]


@dataclass(frozen=True)
class ResizedImage:
    """A photo at the size a network sees it.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, or (h, w) gray.
        scale: (original width / w, original height / h); the two differ slightly in general.
    """

    pixels: np.ndarray
    scale: tuple[float, float]


def to_original(points: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Map points (N, 2) of a resized image to pixels of the photo, as float32.

    Centres of top-left pixels are (0, 0) in both: ``(p + 0.5) * scale - 0.5``.
    """
    factors = np.asarray(scale, dtype=np.float64)
    return ((np.asarray(points, dtype=np.float64) + 0.5) * factors - 0.5).astype(np.float32)


def unturned(points: np.ndarray, quarter_turns: int, size: tuple[int, int]) -> np.ndarray:
    """Map points of an image turned by `np.rot90` back to the image as it was.

    Args:
        points: (N, 2) pixels (x, y) of the turned image.
        quarter_turns: counter-clockwise.
        size: (width, height) of the image as it was.

    Returns:
        (N, 2) float32.
    """
    x, y = np.asarray(points, dtype=np.float32).reshape(-1, 2).T
    right, bottom = size[0] - 1, size[1] - 1
    columns = {0: (x, y), 1: (right - y, x), 2: (right - x, bottom - y), 3: (y, bottom - x)}
    return np.stack(columns[quarter_turns % 4], axis=1)


def network_size(
    size: tuple[int, int], resize_max: int, multiple: int, *, enlarge: bool = False
) -> tuple[int, int]:
    """Return the (width, height) at which a network sees a photo of `size` (width, height).

    The longer side becomes `resize_max`, of a smaller photo only if `enlarge`; then each side is
    cut to a multiple of `multiple`, and is never less than one multiple.
    """
    factor = resize_max / max(size)
    if not enlarge:
        factor = min(1.0, factor)
    width, height = (max(multiple, round(side * factor) // multiple * multiple) for side in size)
    return width, height


def resize_image(image: np.ndarray, size: tuple[int, int]) -> ResizedImage:
    """Resize a photo (H, W[, 3]) uint8 to `size` (width, height), antialiased bicubic."""
    import torch
    from torch.nn.functional import interpolate

    height, width = image.shape[:2]
    if (width, height) == size:
        return ResizedImage(image, (1.0, 1.0))
    planes = torch.from_numpy(image).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    resized = interpolate(planes, (size[1], size[0]), mode="bicubic", antialias=True)
    pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
    shape = (size[1], size[0]) if image.ndim == 2 else (size[1], size[0], 3)
    return ResizedImage(pixels.reshape(shape), (width / size[0], height / size[1]))
