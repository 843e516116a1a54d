"""Photos: finding, decoding, masks, resizing, and the change between pixel frames.

A photo is decoded as its file stores it: an EXIF rotation is not applied, since COLMAP does not
apply it either. In every array of points, (0, 0) is the centre of the top-left pixel.

A mask says which pixels of a photo may be used: COLMAP's, an image whose black pixels are ignored,
and the photo's own transparency, where it has any.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sfm_matchers import revisions
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.storage import file_fingerprint, fingerprint, name_faults

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")

# Photos too, which OpenCV or COLMAP do not read everywhere.
OTHER_EXTENSIONS = (".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".nef")

# Folders with these files are the outputs of a run, and what lies in them is no photo.
OUTPUT_MARKS = ("photos.json", "steps.json")

# What a run draws into its outputs.
REPORT_PICTURES = ("model.png", "match_graph.png", "strongest_pair.png", "weakest_pair.png")

BYTES_PER_PIXEL = 6  # at most, while a photo is decoded
DECODING_BYTES = 1 << 30  # of all photos that are decoded at once; a larger one is decoded alone

# Of 16 bits: if the values lie closer together than this, they are stretched to 8 bits.
_NARROW_RANGE = 1 << 15
_OUTLIERS = 0.001  # share of the values at either end that may be cut off by that

_XMP_WITHIN = 1 << 18  # bytes from the beginning of a file

# TIFF's orientation -> axes to flip; from 5 on rows and columns change places before.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (0,), 7: (0, 1), 8: (1,)}
# EXIF's orientation -> counter-clockwise quarters to upright; mirrored photos are left as they are.
_QUARTERS_TO_UPRIGHT = {3: 2, 6: 3, 8: 1}
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow's modes of TIFFs whose levels are floating-point numbers or integers of 32 bits.
_WIDE_MODES = ("F", "I")
_LARGEST_LEVEL = 1e30  # beyond are marks of pixels that were not measured


def find_images(
    image_dir: str | Path,
    *,
    outputs: str | Path | None = None,
    mask_dir: str | Path | None = None,
) -> list[str]:
    """Return the names of all photos below a folder: sorted POSIX paths relative to it.

    Linked folders are followed once, after the others beside them. What is left out is named in
    the log: photos of other formats, folders that cannot be read, names that files of pairs and
    matches cannot hold, see `storage.name_faults`, and pictures that are no photos: those in the
    outputs of this or another run, and masks.

    Args:
        image_dir: the folder.
        outputs: of this run.
        mask_dir: the folder of the masks, or the one mask of all photos.

    Raises:
        InputError: the folder does not exist.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise InputError(f"{image_dir} is not a folder of photos")
    names = []
    others: Counter[str] = Counter()
    for folder, files in _photo_folders(image_dir, outputs, mask_dir):
        for file in files:
            extension = Path(file).suffix.lower()
            if extension in IMAGE_EXTENSIONS:
                names.append((folder / file).relative_to(image_dir).as_posix())
            elif extension in OTHER_EXTENSIONS:
                others[extension] += 1
    for extension, count in sorted(others.items()):
        logger.warning("left out: %d files %s: convert them to JPEG or PNG", count, extension)
    masks = _masks_among(names, image_dir, mask_dir)
    names = [name for name in names if name not in masks]
    faults = name_faults(names)
    for name, fault in faults.items():
        logger.warning("left out: %r: %s: rename it", name, fault)
    return sorted(name for name in names if name not in faults)


def _photo_folders(
    image_dir: Path, outputs: str | Path | None, mask_dir: str | Path | None
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below one that may hold photos, with their files; tell of the others."""
    root = image_dir.resolve()
    no_photos = {
        Path(path).resolve(): what
        for path, what in ((mask_dir, "masks"), (outputs, "the outputs of this run"))
        if path is not None
    }
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(image_dir, onerror=_warn, followlinks=True):
        real_folder = Path(folder).resolve()
        if real_folder in visited:
            subfolders.clear()
            continue
        visited.add(real_folder)
        what = no_photos.get(real_folder, "the outputs of a run" if is_output(folder) else "")
        if what and real_folder != root:
            _tell_left_out(_count_images(folder), folder, what)
            subfolders.clear()
            continue
        if is_output(folder):
            pictures = [file for file in files if file in REPORT_PICTURES]
            _tell_left_out(len(pictures), folder, "pictures of the run whose outputs they are")
            files = [file for file in files if file not in REPORT_PICTURES]
        links = {name for name in subfolders if os.path.islink(os.path.join(folder, name))}
        subfolders.sort(key=lambda name: (name in links, name))
        yield Path(folder), files


def is_output(folder: str | Path) -> bool:
    """Return whether a run has put its outputs into a folder."""
    return all(os.path.isfile(os.path.join(folder, mark)) for mark in OUTPUT_MARKS)


def _count_images(folder: str) -> int:
    return sum(
        Path(file).suffix.lower() in IMAGE_EXTENSIONS
        for _, _, files in os.walk(folder)
        for file in files
    )


def _tell_left_out(count: int, where: str | Path, what: str) -> None:
    if count:
        logger.warning("left out: %d image(s) in %s: %s, no photos", count, where, what)


def _masks_among(names: list[str], image_dir: Path, mask_dir: str | Path | None) -> set[str]:
    """Return which of the images found are masks of others, and say so.

    They are those of `mask_dir`, where that is the folder of the photos itself or a file in it,
    and those that are named as only masks are, ``NAME.jpg.png`` beside another folder's or the
    same folder's ``NAME.jpg``.
    """
    masks: set[str] = set()
    if mask_dir is not None and (
        os.path.isfile(mask_dir) or os.path.realpath(mask_dir) == os.path.realpath(image_dir)
    ):
        found = {os.path.realpath(image_dir / name): name for name in names}
        paths = (mask_path(mask_dir, name, image_dir) for name in names)
        used = {os.path.realpath(path) for path in paths if path is not None}
        masks = {found[path] for path in used if path in found}
        _tell_left_out(len(masks), image_dir, "masks")
    files = {PurePosixPath(name).name for name in names}
    named = {
        name
        for name in names
        if name not in masks
        and name.endswith(".png")
        and (owner := PurePosixPath(name).name.removesuffix(".png")) in files
        and Path(owner).suffix.lower() in IMAGE_EXTENSIONS
    }
    if named:
        logger.warning(
            "left out: %d image(s) named as masks of others, such as %s: to use them, give their "
            "folder as --mask_dir",
            len(named),
            min(named),
        )
    return masks | named


def _warn(error: OSError) -> None:
    logger.warning("left out: %s: %s", error.filename, error.strerror)


def read_image(path: Path, *, gray: bool = False, least_side: int | None = None) -> np.ndarray:
    """Decode a photo to 8 bits: RGB (H, W, 3), or (H, W) if `gray`. EXIF rotation is ignored.

    Of an animation this is the first picture; transparency is dropped, see `read_opacity`. Of 16
    bits the upper 8 stay, or, where less than half of their range is used, as 12-bit and thermal
    cameras do, the values are stretched by their own range, as those of floating-point TIFFs are.
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
    with _DECODING.share(decoding_bytes(path)):
        image = _decode(path, flags)
        if image.dtype == np.uint16:
            image = _to_8_bits(image)
        if not gray:
            for rows in np.array_split(image, max(1, image.nbytes >> 24)):  # in place
                rows[...] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
    return image


class _Budget:
    """Bytes that threads share: who would go beyond the total waits, unless alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def share(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes inside the ``with`` block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + num_bytes <= self._total)
            self._used += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used -= num_bytes
                self._changed.notify_all()


_DECODING = _Budget(DECODING_BYTES)


def decoding_bytes(path: Path) -> int:
    """Return about how many bytes it takes to decode a photo; 0 of a file that is none."""
    try:
        with open_photo(path) as photo:
            return BYTES_PER_PIXEL * photo.size[0] * photo.size[1]
    except InputError:
        return 0


def _decode(path: Path, flags: int) -> np.ndarray:
    """Decode by OpenCV, to its colours and 8 or 16 bits, as the file stores it."""
    try:
        # Through memory, because OpenCV cannot open every path on Windows.
        encoded = np.fromfile(str(path), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not encoded.size:
        raise InputError(f"{path} is empty")
    orientation, is_colour = 1, flags != cv2.IMREAD_UNCHANGED and flags % 2 == cv2.IMREAD_COLOR
    if encoded[:4].tobytes() in _TIFF_MARKS:
        with open_photo(path) as photo:
            # OpenCV turns these upright, whatever it is asked.
            orientation = _exif_orientation(photo)
            flags = cv2.IMREAD_GRAYSCALE if photo.mode in _WIDE_MODES else flags
    try:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        raise InputError(f"{path} cannot be decoded: {one_line(error)}") from error
    if image is not None and image.ndim == 2 and image.dtype not in (np.uint8, np.uint16):
        image = _stretched(image)
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if is_colour else image
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path} cannot be decoded as an image (damaged, or another format)")
    return _from_upright(image, orientation)


def _stretched(image: np.ndarray) -> np.ndarray:
    """Return levels of any kind (H, W) in 8 bits, by their own range; what is no number is 0."""
    is_level = np.isfinite(image) & (np.abs(image.astype(np.float64)) < _LARGEST_LEVEL)
    if not is_level.any():
        return np.zeros(image.shape, dtype=np.uint8)
    levels = np.where(is_level, image, 0).astype(np.float64)
    low, high = np.quantile(levels[is_level], (_OUTLIERS, 1 - _OUTLIERS))
    if high <= low:  # one level
        low, high = 0.0, max(high, 1.0)
    stretched = ((levels - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)
    return np.where(is_level, stretched, 0).astype(np.uint8)


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    """Return an image of 16 bits in 8; all channels alike."""
    counts = np.zeros(1 << 16)
    for channel in cv2.split(image):
        counts += cv2.calcHist([channel], [0], None, [1 << 16], [0, 1 << 16]).ravel()
    counts[[0, -1]] = 0  # no data, saturated
    share = np.cumsum(counts) / max(1, counts.sum())
    low, high = np.searchsorted(share, (_OUTLIERS, 1 - _OUTLIERS))
    if not counts.any() or high - low >= _NARROW_RANGE:
        return (image >> 8).astype(np.uint8)
    # Not beyond one level a step, or the noise of a blank photo would have features.
    levels = (np.arange(1 << 16) - low) * (255 / max(high - low, 255))
    return levels.clip(0, 255).round().astype(np.uint8)[image]


def _from_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image that was set upright as an EXIF orientation tells, as it was before."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(image, _FLIPS.get(orientation, ())))


def quarters_to_upright(path: Path) -> int:
    """Return by how many quarters `turned` sets a photo upright, which its EXIF orientation tells.

    Raises:
        InputError: as `open_photo`; damaged EXIF counts as absent.
    """
    return _QUARTERS_TO_UPRIGHT.get(exif_orientation(path), 0)


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of a photo, 1 to 8; 1 where there is none.

    Raises:
        InputError: as `open_photo`; damaged EXIF counts as absent.
    """
    with open_photo(path) as photo:
        try:
            orientation = _exif_orientation(photo)
        except Exception:  # garbage can make Pillow's parser fail in any way
            return 1
    return orientation if 1 <= orientation <= 8 else 1


def _exif_orientation(photo: Image.Image) -> int:
    return int(photo.getexif().get(ExifTags.Base.Orientation, 1))


def looks_like_panorama(path: Path) -> bool:
    """Return whether a photo may be a whole sphere: twice as wide as high, or so says its XMP.

    Raises:
        InputError: as `open_photo`.
    """
    with open_photo(path) as photo:
        width, height = photo.size
    if width == 2 * height:
        return True
    with open(path, "rb") as file:
        head = file.read(_XMP_WITHIN)
    return b"GPano:ProjectionType" in head and b"equirectangular" in head


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
        with open(path, "rb") as file:
            is_tiff = file.read(4) in _TIFF_MARKS
        advice = (
            ", or a TIFF of colours, or of 64 bits, in floating point: convert it to 8 or 16 bits"
        )
        raise InputError(f"{path} is not an image{advice if is_tiff else ''}") from error
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
            with _DECODING.share(decoding_bytes(path)):
                photo.load()
    height, width = read_image(path, gray=True).shape
    return width, height


def mask_names(name: str) -> tuple[str, str]:
    """Return what the mask of a photo may be called: COLMAP's ``a.jpg.png``, and ``a.png``."""
    return f"{name}.png", f"{PurePosixPath(name).with_suffix('')}.png"


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
    if os.path.isfile(mask_dir):
        return Path(mask_dir)
    photo = None if image_dir is None else Path(image_dir) / name
    for candidate in mask_names(name):
        path = Path(mask_dir) / candidate
        # Unlike pathlib's, False for a name that is too long.
        if os.path.isfile(path) and not (photo and photo.exists() and path.samefile(photo)):
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
    usable = _decode(path, cv2.IMREAD_GRAYSCALE) > 0
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
            f"{size[0]}x{size[1]}{turned_size}"
        )
    if orientation == 1:
        return Mask(usable, WayUp.SAME)
    if found != upright:
        return Mask(usable, WayUp.STORED)
    way_up = WayUp.EITHER if upright == stored else WayUp.UPRIGHT
    return Mask(_from_upright(usable, orientation), way_up)


def read_opacity(path: Path) -> np.ndarray | None:
    """Return where an image is opaque by half at least, (H, W) bool; None if it is everywhere.

    Raises:
        InputError: as `read_image`.
    """
    with open_photo(path) as photo:
        if not (photo.mode.endswith(("A", "a")) or "transparency" in photo.info):
            return None
        image = _decode(path, cv2.IMREAD_UNCHANGED)
        if image.ndim == 3 and image.shape[2] == 4:
            opaque = image[..., 3] >= np.iinfo(image.dtype).max / 2
        else:  # of gray images with a transparent level, which OpenCV does not look at
            opaque = np.asarray(photo.convert("RGBA").getchannel("A")) > 127
    return None if opaque.all() else opaque


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
