"""Reading photographs, as their file stores them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.photos import heif
from sfm_matchers.photos.decoding_budget import DECODING

logger = logging.getLogger(__name__)


BYTES_PER_PIXEL = 6  # at most, while a photo is decoded
_FILE_BYTES_PER_PIXEL = 16  # of the least packed files: four channels of 32 bits
_FILE_BYTES = 1 << 28  # of any photo: phones append videos

# Of 16 bits: if the values lie closer together than this, they are stretched to 8 bits.
_NARROW_RANGE = 1 << 15
_OUTLIERS = 0.001  # share of the values at either end that may be cut off by that

# TIFF's orientation -> axes to flip; from 5 on rows and columns change places before.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (0,), 7: (0, 1), 8: (1,)}
# EXIF's orientation -> counter-clockwise quarters to upright; mirrored photos are left as they are.
_QUARTERS_TO_UPRIGHT = {3: 2, 6: 3, 8: 1}
_UNDECODABLE = "cannot be decoded as an image (damaged, or another format)"
_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow's modes of TIFFs whose levels are floating-point numbers or integers of 32 bits.
_WIDE_MODES = ("F", "I")
_MAX_LEVEL = 1e30  # beyond are marks of pixels that were not measured


def warn_of(error: OSError) -> None:
    """Say that a folder is left out, for `os.walk`."""
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
    return _decoded(path, _header(path), gray=gray, least_side=least_side)


def read_image_and_orientation(
    path: Path, *, least_side: int | None = None
) -> tuple[np.ndarray, int]:
    """Return a photo as `read_image` does, in RGB, and its EXIF orientation, 1 where there is none.

    Raises:
        InputError: as `read_image`; damaged EXIF counts as absent.
    """
    header = _header(path, with_orientation=True)
    return _decoded(path, header, least_side=least_side), header.orientation


class _Header(NamedTuple):
    """What a photo's header says: (width, height), (0, 0) of a file without one; 1 to 8."""

    size: tuple[int, int] = (0, 0)
    orientation: int = 1


def _header(path: Path, *, with_orientation: bool = False) -> _Header:
    """Read a header; the orientation only if asked, as for it Pillow decodes some PNG files."""
    try:
        with open_photo(path) as photo:
            return _Header(photo.size, _orientation_of(photo) if with_orientation else 1)
    except InputError:  # the decoder says what it is
        return _Header()


def _decoded(
    path: Path, header: _Header, *, gray: bool = False, least_side: int | None = None
) -> np.ndarray:
    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    if least_side is not None:
        shrink = min(header.size) // max(1, least_side)
        # OpenCV's flags for half the size are 16 and 17, for a quarter 32 and 33, and so on.
        flags |= next((8 * factor for factor in (8, 4, 2) if factor <= shrink), 0)
    with DECODING.share(_decoding_bytes(header)):
        image = decode_pixels(path, flags)
        if image.dtype == np.uint16:
            image = _to_8_bits(image)
        if not gray:
            for rows in np.array_split(image, max(1, image.nbytes >> 24)):  # in place
                rows[...] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
    return image


def decoding_bytes(path: Path) -> int:
    """Return about how many bytes it takes to decode a photo; 0 of a file that is none."""
    return _decoding_bytes(_header(path))


def _decoding_bytes(header: _Header) -> int:
    return BYTES_PER_PIXEL * header.size[0] * header.size[1]


def decode_pixels(path: Path, flags: int) -> np.ndarray:
    """Decode by OpenCV, to its colours and 8 or 16 bits, as the file stores it.

    Raises:
        InputError: it cannot be read or decoded, or is far longer than its pixels need.
    """
    try:
        _check_length(path)
        # Through memory, because OpenCV cannot open every path on Windows.
        encoded = np.fromfile(str(path), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not encoded.size:
        raise InputError(f"{path} is empty")
    if heif.is_heif(encoded[: heif.HEAD_BYTES].tobytes()):
        return _decode_heif(path, flags)
    if not _has_whole_chunks(encoded):
        raise InputError(f"{path} {_UNDECODABLE}")
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
        raise InputError(f"{path} {_UNDECODABLE}")
    return from_upright(image, orientation)


def _check_length(path: Path) -> None:
    """Raise InputError where a file would take gigabytes to read, whatever its picture takes."""
    length = path.stat().st_size
    if length <= _FILE_BYTES:
        return
    width, height = _header(path).size
    if length > max(_FILE_BYTES, _FILE_BYTES_PER_PIXEL * width * height):
        raise InputError(
            f"{path} has {length // 1_000_000} MB for {width} x {height} pixels: it is damaged, "
            "or holds more than a photo"
        )


def _has_whole_chunks(encoded: np.ndarray) -> bool:
    """False of a PNG whose chunks are longer than the file: OpenCV takes memory for them first."""
    if encoded[: len(_PNG_MARK)].tobytes() != _PNG_MARK:
        return True
    at = len(_PNG_MARK)
    while at + 8 <= encoded.size:
        length = int.from_bytes(encoded[at : at + 4].tobytes(), "big")
        if at + 8 + length > encoded.size:
            return False
        if encoded[at + 4 : at + 8].tobytes() == b"IEND":
            break
        at += length + 12  # its length, name and checksum
    return True


def _decode_heif(path: Path, flags: int) -> np.ndarray:
    """Decode what OpenCV does not, to what it would give."""
    is_gray = flags != cv2.IMREAD_UNCHANGED and flags % 2 == cv2.IMREAD_GRAYSCALE
    with open_photo(path) as photo:
        if flags == cv2.IMREAD_UNCHANGED and photo.mode.endswith(("A", "a")):
            return cv2.cvtColor(np.asarray(photo.convert("RGBA")), cv2.COLOR_RGBA2BGRA)
        image = np.asarray(photo.convert("RGB"))
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if is_gray else cv2.COLOR_RGB2BGR)


def _stretched(image: np.ndarray) -> np.ndarray:
    """Return levels of any kind (H, W) in 8 bits, by their own range; what is no number is 0."""
    is_level = np.isfinite(image) & (np.abs(image.astype(np.float64)) < _MAX_LEVEL)
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


def from_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image that was set upright as an EXIF orientation tells, as it was before."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(image, _FLIPS.get(orientation, ())))


def to_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image as stored, set upright as an EXIF orientation tells."""
    image = np.flip(image, _FLIPS.get(orientation, ()))
    return np.ascontiguousarray(image.swapaxes(0, 1) if orientation >= 5 else image)


def points_to_upright(points: np.ndarray, orientation: int) -> np.ndarray:
    """Return where points (N, 2) of an image as stored lie in it set upright by `to_upright`.

    Points are (x, y) as shares of width and height, (0, 0) the image's corner.
    """
    points = np.array(points, dtype=np.float64).reshape(-1, 2)
    for axis in _FLIPS.get(orientation, ()):
        points[:, 1 - axis] = 1 - points[:, 1 - axis]
    return points[:, ::-1] if orientation >= 5 else points


def up_in_camera(orientation: int) -> np.ndarray:
    """Return what was up (3,) in a photo of an EXIF orientation, in the frame of its stored
    pixels."""
    corners = points_to_upright(np.array([[0, 0], [1, 0], [0, 1]]), orientation)
    # How the upright photo's y changes along the stored x and y; up is against it.
    along_x, along_y = corners[1:, 1] - corners[0, 1]
    return np.array([-along_x, -along_y, 0.0])


def quarters_to_upright(orientation: int) -> int:
    """Return by how many quarters `turned` sets a photo of an EXIF orientation upright."""
    return _QUARTERS_TO_UPRIGHT.get(orientation, 0)


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of a photo, 1 to 8; 1 where there is none.

    Raises:
        InputError: as `open_photo`; damaged EXIF counts as absent.
    """
    with open_photo(path) as photo:
        return _orientation_of(photo)


def _orientation_of(photo: Image.Image) -> int:
    try:
        orientation = _exif_orientation(photo)
    except Exception:  # garbage can make Pillow's parser fail in any way
        return 1
    return orientation if 1 <= orientation <= 8 else 1


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
        if not Path(path).stat().st_size:
            raise InputError(f"{path} is empty")
        _prepare_for(path)
        with Image.open(path) as photo:
            yield photo
    except InputError:  # which is a ValueError too
        raise
    except UnidentifiedImageError as error:
        with Path(path).open("rb") as file:
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


def _prepare_for(path: Path) -> None:
    """Let Pillow read a HEIC photo, whatever its name.

    Raises:
        InputError: the extra for them is missing.
    """
    if not heif.is_heif_file(path):
        return
    if not heif.can_read():
        raise InputError(f"{path} is a HEIC photo: to read it {heif.INSTALL}")
    heif.register()


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
            with DECODING.share(decoding_bytes(path)):
                photo.load()
    height, width = read_image(path, gray=True).shape
    return width, height
