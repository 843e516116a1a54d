"""Photos: finding, decoding, masks, resizing, and the change between pixel frames.

A photo is decoded as its file stores it: an EXIF rotation is not applied, since COLMAP does not
apply it either. In every array of points, (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import InputError, one_line
from .storage import file_fingerprint, fingerprint, name_faults

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")

# Photos too, which OpenCV or COLMAP do not read everywhere.
OTHER_EXTENSIONS = (".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".nef")

# TIFF's orientation -> axes to flip; from 5 on rows and columns change places before.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (0,), 7: (0, 1), 8: (1,)}
# EXIF's orientation -> counter-clockwise quarters to upright; mirrored photos are left as they are.
_QUARTERS_TO_UPRIGHT = {3: 2, 6: 3, 8: 1}
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def find_images(image_dir: Path) -> list[str]:
    """Return the names of all photos below a folder: sorted POSIX paths relative to it.

    Linked folders are followed once, after the others beside them. What is left out is named in
    the log: photos of other formats, folders that cannot be read, and names that files of pairs
    and matches cannot hold, see `storage.name_faults`.

    Raises:
        InputError: the folder does not exist.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise InputError(f"{image_dir} is not a folder of photos")
    names = []
    others: Counter[str] = Counter()
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(image_dir, onerror=_warn, followlinks=True):
        real_folder = Path(folder).resolve()
        if real_folder in visited:
            subfolders.clear()
            continue
        visited.add(real_folder)
        links = {name for name in subfolders if os.path.islink(os.path.join(folder, name))}
        subfolders.sort(key=lambda name: (name in links, name))
        for file in files:
            extension = Path(file).suffix.lower()
            if extension in IMAGE_EXTENSIONS:
                names.append((Path(folder) / file).relative_to(image_dir).as_posix())
            elif extension in OTHER_EXTENSIONS:
                others[extension] += 1
    for extension, count in sorted(others.items()):
        logger.warning("left out: %d files %s: convert them to JPEG or PNG", count, extension)
    faults = name_faults(names)
    for name, fault in faults.items():
        logger.warning("left out: %r: %s: rename it", name, fault)
    return sorted(name for name in names if name not in faults)


def _warn(error: OSError) -> None:
    logger.warning("left out: %s: %s", error.filename, error.strerror)


def read_image(path: Path, *, gray: bool = False, least_side: int | None = None) -> np.ndarray:
    """Decode a photo to 8 bits: RGB (H, W, 3), or (H, W) if `gray`. EXIF rotation is ignored.

    Of an animation this is the first picture; transparency is dropped; of 16 bits the upper 8 stay.
    With a `least_side` the photo may come at a half, a quarter or an eighth of its size, as long as
    both sides have that length, which for JPEG is quicker and takes less memory.

    Raises:
        InputError: the file is missing or empty, or no decoder reads it.
    """
    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    if least_side is not None:
        with open_photo(path) as photo:
            shrink = min(photo.size) // max(1, least_side)
        # OpenCV's flags for half the size are 16 and 17, for a quarter 32 and 33, and so on.
        flags |= next((8 * factor for factor in (8, 4, 2) if factor <= shrink), 0)
    try:
        # Through memory, because OpenCV cannot open every path on Windows.
        encoded = np.fromfile(str(path), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not encoded.size:
        raise InputError(f"{path} is empty")
    try:
        image = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise InputError(f"{path} cannot be decoded: {one_line(error)}") from error
    if image is None:
        raise InputError(f"{path} cannot be decoded as an image (damaged, or another format)")
    if encoded[:4].tobytes() in _TIFF_MARKS:
        image = _as_stored(image, path)
    return image if gray else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _as_stored(image: np.ndarray, path: Path) -> np.ndarray:
    """Turn the image of a TIFF back, which OpenCV turns upright whatever it is asked."""
    with open_photo(path) as photo:
        orientation = _exif_orientation(photo)
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(image, _FLIPS.get(orientation, ())))


def quarters_to_upright(path: Path) -> int:
    """Return by how many quarters `turned` sets a photo upright, which its EXIF orientation tells.

    Raises:
        InputError: as `open_photo`; damaged EXIF counts as absent.
    """
    with open_photo(path) as photo:
        try:
            return _QUARTERS_TO_UPRIGHT.get(_exif_orientation(photo), 0)
        except Exception:  # garbage can make Pillow's parser fail in any way
            return 0


def _exif_orientation(photo: Image.Image) -> int:
    return int(photo.getexif().get(ExifTags.Base.Orientation, 1))


@contextlib.contextmanager
def open_photo(path: Path) -> Iterator[Image.Image]:
    """Open a photo by Pillow, which reads its header now, and its pixels when asked.

    Raises:
        InputError: the file is missing, empty, damaged, not an image, or has too many pixels; what
            Pillow says inside the ``with`` block too.
    """
    try:
        if not os.stat(path).st_size:
            raise InputError(f"{path} is empty")
        with Image.open(path) as photo:
            yield photo
    except InputError:  # which is a ValueError too
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image") from error
    except Image.DecompressionBombError as error:
        megapixels = 2 * cast(int, Image.MAX_IMAGE_PIXELS) // 1_000_000
        raise InputError(f"{path} has more than {megapixels} megapixels: reduce it") from error
    except Exception as error:  # garbage can make a decoder fail in any way
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def decoded_size(path: Path) -> tuple[int, int]:
    """Decode a photo to see that all of it is there; return its (width, height) as stored.

    Raises:
        InputError: the file is missing, empty, cut off, or no decoder reads it.
    """
    with open_photo(path) as photo:
        if photo.format in ("JPEG", "MPO"):  # of phones: several JPEGs in one file
            # OpenCV before 5 fills what is missing with gray. Pillow refuses it, and is quick at
            # an eighth of the size.
            photo.draft("L", (1, 1))
            photo.load()
    height, width = read_image(path, gray=True).shape
    return width, height


def mask_path(mask_dir: Path | None, name: str) -> Path | None:
    """Return where the mask of a photo lies, None if it has none: ``mask_dir/name.png``."""
    if mask_dir is None:
        return None
    path = Path(mask_dir) / f"{name}.png"
    # Unlike pathlib's, False for a name that is too long.
    return path if os.path.exists(path) else None


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


def turned(image: np.ndarray, quarters: int) -> np.ndarray:
    """Turn an image (H, W[, C]) counter-clockwise by quarters."""
    return np.ascontiguousarray(np.rot90(image, quarters))


def unturned(points: np.ndarray, quarter_turns: int, size: tuple[int, int]) -> np.ndarray:
    """Map points of an image turned by `turned` back to the image as it was.

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
    height, width = image.shape[:2]
    if (width, height) == size:
        return ResizedImage(image, (1.0, 1.0))

    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(image).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    resized = interpolate(planes, (size[1], size[0]), mode="bicubic", antialias=True)
    pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
    shape = (size[1], size[0]) if image.ndim == 2 else (size[1], size[0], 3)
    return ResizedImage(pixels.reshape(shape), (width / size[0], height / size[1]))
