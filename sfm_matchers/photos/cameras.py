"""Which photos share a camera."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import ExifTags

from sfm_matchers.choices import CAMERA_MODES
from sfm_matchers.errors import InputError
from sfm_matchers.photos.images import open_photo
from sfm_matchers.photos.intrinsics import GUESSED_FOCAL_LENGTH

# Photos without EXIF are taken for one camera's if at least this share of them has one size.
# Internet collections, of many cameras, lie far below; photos of one camera lie at 1.
SAME_SIZE_SHARE = 0.6
# So are those of a few sizes, each of which has so many photos at least.
MIN_PHOTOS_OF_A_SIZE = 3

FILM_DIAGONAL = math.hypot(36, 24)  # millimetres
_MILLIMETRES = {2: 25.4, 3: 10.0}  # of EXIF's units of resolution: inch, centimetre


@dataclass(frozen=True)
class PhotoHeader:
    """What the file of a photo says without decoding its pixels.

    Attributes:
        size: (width, height) in pixels as stored.
        make, model, lens: EXIF texts, "" where absent.
        focal_length: EXIF focal length in millimetres, that on film where there is no other, or
            None.
    """

    size: tuple[int, int]
    make: str = ""
    model: str = ""
    lens: str = ""
    focal_length: float | None = None

    @property
    def has_exif_camera(self) -> bool:
        """True if EXIF names the camera or its focal length."""
        return bool(self.make or self.model or self.focal_length)


@dataclass(frozen=True)
class CameraGroups:
    """Photos that share a camera.

    Attributes:
        groups: lists of image names; each list gets one camera. Photos of one group have one size.
        reason: one line for the user: what was decided, and why.
        without_exif: photos whose focal length in EXIF is not believed.
        guess: of the longer side, the focal length that mapping starts from where none is known.
    """

    groups: list[list[str]]
    reason: str = field(default="")
    without_exif: list[str] = field(default_factory=list)
    guess: float = GUESSED_FOCAL_LENGTH


def read_photo_header(path: Path) -> PhotoHeader:
    """Read size and EXIF of a photo.

    Damaged EXIF counts as absent.

    Raises:
        InputError: as `open_photo`.
    """
    with open_photo(path) as photo:
        size = photo.size
        try:
            exif = photo.getexif()
            if photo.format == "TIFF":  # Pillow's size is that of the photo turned upright
                size = exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength]
            details = exif.get_ifd(ExifTags.IFD.Exif)
            make, model, lens = (
                str(tags.get(tag) or "").strip().strip("\0")
                for tags, tag in (
                    (exif, ExifTags.Base.Make),
                    (exif, ExifTags.Base.Model),
                    (details, ExifTags.Base.LensModel),
                )
            )
            focal_length = _focal_length(details.get(ExifTags.Base.FocalLength)) or _focal_length(
                details.get(ExifTags.Base.FocalLengthIn35mmFilm)
            )
        except Exception:  # garbage can make the reader fail in any way
            return PhotoHeader(size)
    return PhotoHeader(size, make, model, lens, focal_length)


def exif_pixel_size(path: Path) -> float | None:
    """Return the width of a pixel on the sensor in millimetres, where EXIF tells the sensor's size.

    By focal length and its equivalent on film of 36 x 24 mm, which is that of the diagonals, or by
    the resolution in the focal plane, where the photo still has the size that EXIF states.

    Raises:
        InputError: as `open_photo`; damaged EXIF counts as absent.
    """
    with open_photo(path) as photo:
        try:
            tags = photo.getexif().get_ifd(ExifTags.IFD.Exif)
            focal_length = _focal_length(tags.get(ExifTags.Base.FocalLength))
            on_film = _focal_length(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
            if focal_length and on_film:
                return FILM_DIAGONAL * focal_length / on_film / math.hypot(*photo.size)
            resolution = _focal_length(tags.get(ExifTags.Base.FocalPlaneXResolution))
            unit = _MILLIMETRES.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
            if resolution and unit and tags.get(ExifTags.Base.ExifImageWidth) in photo.size:
                return unit / resolution
        except Exception:  # garbage can make the reader fail in any way
            return None
    return None


def _focal_length(value: Any) -> float | None:
    try:
        millimetres = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return millimetres if 0 < millimetres < math.inf else None


def group_photos(headers: Mapping[str, PhotoHeader], mode: str = "auto") -> CameraGroups:
    """Decide which photos share a camera.

    Args:
        headers: image name -> header.
        mode: ``single``, ``per_folder``, ``per_image`` as in COLMAP; ``auto`` gives one camera to
            photos that share EXIF make, model, lens, focal length and size, and, among photos
            without EXIF, to those of one size if most have that size, or several have each.

    Raises:
        InputError: unknown mode, or ``single`` for photos of different sizes.
    """
    names = sorted(headers)
    if mode == "per_image":
        return CameraGroups([[name] for name in names], "one camera per photo, as asked")
    if mode == "single":
        sizes = {headers[name].size for name in names}
        if len(sizes) > 1:
            raise InputError(
                f"--camera_mode single: the photos have {len(sizes)} different sizes, "
                "use auto, per_folder or per_image"
            )
        return CameraGroups([names], "one camera for all photos, as asked")
    if mode == "per_folder":
        groups = _grouped(names, lambda name: (PurePosixPath(name).parent, headers[name].size))
        return CameraGroups(groups, "one camera per folder and size, as asked")
    if mode != "auto":
        raise InputError(f"unknown camera mode {mode!r}, expected one of {', '.join(CAMERA_MODES)}")
    return _group_automatically(names, headers)


def _group_automatically(names: Sequence[str], headers: Mapping[str, PhotoHeader]) -> CameraGroups:
    with_exif = [name for name in names if headers[name].has_exif_camera]
    without_exif = [name for name in names if not headers[name].has_exif_camera]
    groups = _grouped(with_exif, lambda name: headers[name])
    reasons = []
    if with_exif:
        reasons.append(f"{len(with_exif)} photos with EXIF: {len(groups)} camera(s)")
    if without_exif:
        # A camera held upright swaps the sides: still the same camera.
        sizes = Counter(tuple(sorted(headers[name].size)) for name in without_exif)
        share = sizes.most_common(1)[0][1] / len(without_exif)
        is_common = share >= SAME_SIZE_SHARE or min(sizes.values()) >= MIN_PHOTOS_OF_A_SIZE
        if len(without_exif) > 1 and is_common:
            shared = _grouped(without_exif, lambda name: headers[name].size)
            reasons.append(
                f"{len(without_exif)} photos without EXIF, {share:.0%} of one size: taken for one "
                f"camera per size, {len(shared)} camera(s) (otherwise: --camera_mode per_image)"
            )
        else:
            shared = [[name] for name in without_exif]
            reasons.append(
                f"{len(without_exif)} photo(s) without EXIF and of mixed sizes: one each"
            )
        groups += shared
    return CameraGroups(groups, "; ".join(reasons))


def _grouped(names: Sequence[str], key) -> list[list[str]]:  # type: ignore[no-untyped-def]
    groups = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return list(groups.values())
