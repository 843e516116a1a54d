"""Photos without lens distortion and a PINHOLE model of them, as Inria's 3DGS reads them."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycolmap
from PIL import Image

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.exports.images import link, registered_names, without_images
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.files.space import check_space, disk_is_full
from sfm_matchers.mapping.database import is_undecoded
from sfm_matchers.mapping.models import write_model
from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.masks import read_alpha
from sfm_matchers.photos.orientation import show_as_stored
from sfm_matchers.reports.drawing import write_image

# Pillow's names of them; the latter are those of telephones, with a second picture.
_JPEGS = ("JPEG", "MPO")

# Of what is cropped, which was written once already.
_JPEG_QUALITY = 97

# Of the bytes of photos: COLMAP writes JPEGs of a quality of 98, which cameras do not. Where a disk
# is full then, libjpeg ends the process.
_MOST_GROWTH = 4

# Photos lose twice this share of a side at most where their principal point is put in the middle.
_MOST_OFF_CENTRE = 0.05


def cannot_undistort(model: pycolmap.Reconstruction) -> str:
    """Return why the photos of a model cannot become those of pinhole cameras; "" if they can."""
    for camera in model.cameras.values():
        try:
            with quiet_colmap(pycolmap.logging.FATAL):
                pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
        except ValueError:
            return f"photos of {camera.model.name} cameras have no undistorted form"
    return ""


def flat_names(model: pycolmap.Reconstruction, image_dir: Path) -> dict[str, str]:
    """Return for each registered image its own name without folders.

    Some versions of Inria's 3DGS look for no photos in folders. What COLMAP does not decode
    becomes PNG.
    """
    flat: dict[str, str] = {}
    taken: set[str] = set()
    for name in registered_names(model):
        path = PurePosixPath(name.replace("/", "-"))
        suffix = ".png" if is_undecoded(image_dir / name) else path.suffix
        numbers = ("", *(f"-{number}" for number in range(2, len(taken) + 3)))
        candidates = (f"{path.stem}{number}{suffix}" for number in numbers)
        # Folders of some systems do not tell upper from lower case.
        flat[name] = next(other for other in candidates if other.lower() not in taken)
        taken.add(flat[name].lower())
    return flat


def undistort(
    model: pycolmap.Reconstruction, image_dir: Path, names: Mapping[str, str], folder: Path
) -> None:
    """Write ``images/`` and ``sparse/0`` of undistorted photos into an empty folder.

    Photos that COLMAP cannot decode or write are not in the model.

    Args:
        model: the model, whose photos are all there.
        image_dir: the photos.
        names: their new names, see `flat_names`.
        folder: the folder.

    Raises:
        OSError: the folder cannot be written to, or may not have the space.
    """
    num_bytes = sum((image_dir / name).stat().st_size for name in names)
    check_space(folder / "images", _MOST_GROWTH * num_bytes)
    staged = folder / "staged"
    _stage(model, image_dir, names, staged)
    with quiet_colmap(pycolmap.logging.FATAL):
        try:
            pycolmap.undistort_images(folder, staged / "model", staged / "images")
            flat = pycolmap.Reconstruction(folder / "sparse")
        except (ValueError, RuntimeError, IndexError, MemoryError) as error:  # of files too
            raise OSError(one_line(error)) from error
    if disk_is_full(folder):  # COLMAP goes on without the photos that it cannot write
        raise OSError(errno.ENOSPC, "no space is left")
    (folder / "sparse").rename(folder / "0")
    for other in list(folder.iterdir()):  # what is for COLMAP's dense reconstruction goes too
        if other.name not in ("images", "0"):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    (folder / "sparse").mkdir()
    (folder / "0").rename(folder / "sparse" / "0")
    missing = [name for name in names.values() if not (folder / "images" / name).is_file()]
    if missing:
        flat = without_images(flat, missing)
    for name in set(names.values()).difference(missing):
        # Or some readers turn what poses fit: of TIFF, Pillow too.
        show_as_stored(folder / "images" / name)
    _keep_transparency(model, image_dir, names, folder / "images")
    if _centre(flat, folder / "images") or missing:
        write_model(flat, folder / "sparse" / "0")


def _keep_transparency(
    model: pycolmap.Reconstruction, image_dir: Path, names: Mapping[str, str], folder: Path
) -> None:
    """Make undistorted photos transparent where the photos are: COLMAP reads no alpha channels.

    Args:
        model: the model, with the cameras of the photos.
        image_dir: the photos.
        names: those of the undistorted ones, see `flat_names`.
        folder: of the undistorted ones; without those that COLMAP cannot write.
    """
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        camera = model.camera(image.camera_id)
        target = folder / names[image.name]
        if not target.is_file():
            continue
        alpha = read_alpha(image_dir / image.name)
        if alpha is None:
            continue
        if not camera.is_undistorted():
            bitmap = pycolmap.Bitmap.from_array(alpha)
            options = pycolmap.UndistortCameraOptions()
            alpha = pycolmap.undistort_image(options, bitmap, camera)[0].to_array()
        _write_anew(target, partial(_with_alpha, alpha=alpha))


def _with_alpha(photo: Image.Image, alpha: np.ndarray) -> Image.Image:
    if photo.format in _JPEGS:  # a PNG that is called so; there are no transparent ones
        return photo
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.fromarray(alpha))
    return transparent


def _centre(model: pycolmap.Reconstruction, image_dir: Path) -> bool:
    """Crop photos so that the principal point is in the middle, where Inria's 3DGS takes it to be.

    Args:
        model: of PINHOLE cameras; its cameras and keypoints become those of the crops.
        image_dir: its photos.

    Returns:
        Whether there was anything to crop.
    """
    boxes = {}
    for camera_id, camera in model.cameras.items():
        left, right = _centred(camera.principal_point_x, camera.width)
        top, bottom = _centred(camera.principal_point_y, camera.height)
        if (left, top, right, bottom) != (0, 0, camera.width, camera.height):
            boxes[camera_id] = (left, top, right, bottom)
            camera.width, camera.height = right - left, bottom - top
            camera.principal_point_x -= left
            camera.principal_point_y -= top
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        if image.camera_id not in boxes:
            continue
        box = boxes[image.camera_id]
        _crop(image_dir / image.name, box)
        for point in image.points2D:
            point.xy = point.xy - box[:2]
    return bool(boxes)


def _centred(principal: float, length: int) -> tuple[int, int]:
    """Return first pixel and end of what is left of a side with the principal point in its middle.

    >>> _centred(48.0, 100)
    (0, 96)
    >>> _centred(50.4, 100)  # less than a pixel
    (0, 100)
    >>> _centred(20.0, 100)  # too much would be lost
    (0, 100)
    """
    half = min(principal, length - principal)
    if not 0.5 < length / 2 - half <= _MOST_OFF_CENTRE * length:
        return 0, length
    first = round(principal - int(half))
    return first, first + 2 * int(half)


def _crop(path: Path, box: tuple[int, int, int, int]) -> None:
    """Crop a photo to columns and rows (left, top, right, bottom)."""
    _write_anew(path, lambda photo: photo.crop(box))


def _write_anew(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Write a photo as `change` makes it, with its EXIF as it is."""
    try:
        photo = Image.open(path)
    except Image.DecompressionBombError as error:
        raise OSError(one_line(error)) from error
    with photo:
        kept: dict[str, Any] = {
            key: photo.info[key] for key in ("exif", "icc_profile") if key in photo.info
        }
        kind, changed = photo.format, change(photo)
        changed.load()
    if kind in _JPEGS:
        kind, kept = "JPEG", kept | {"quality": _JPEG_QUALITY, "subsampling": 0}
    path.unlink()  # never into a file that may be another name of the user's photo
    changed.save(path, kind, **kept)


def _stage(
    model: pycolmap.Reconstruction, image_dir: Path, names: Mapping[str, str], folder: Path
) -> None:
    """Write ``model/`` and ``images/`` under the new names, of photos that COLMAP decodes."""
    copy = pycolmap.Reconstruction(model)
    for image_id in copy.reg_image_ids():
        image = copy.image(image_id)
        photo, target = image_dir / image.name, folder / "images" / names[image.name]
        image.name = names[image.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_undecoded(photo):
            link(photo, target)
            continue
        with contextlib.suppress(InputError):
            write_image(target, read_image(photo))
    (folder / "model").mkdir(parents=True)
    write_model(copy, folder / "model")
