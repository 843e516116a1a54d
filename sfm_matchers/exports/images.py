"""Photos of a model: which of its images have one, and links to them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.photos.cameras import read_photo_header


def registered_names(model: pycolmap.Reconstruction) -> list[str]:
    """Return the names of the images that have a pose, sorted."""
    return sorted(model.image(image_id).name for image_id in model.reg_image_ids())


def photo_faults(model: pycolmap.Reconstruction, image_dir: Path) -> dict[str, str]:
    """Return the registered images whose photo cannot be exported, and why."""
    faults = {}
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        if fault := _fault(image_dir, image.name, model.camera(image.camera_id)):
            faults[image.name] = fault
    return faults


def _fault(image_dir: Path, name: str, camera: pycolmap.Camera) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return f"the name leads out of {image_dir}"
    if not (image_dir / name).is_file():
        return f"it is not in {image_dir}"
    try:
        width, height = read_photo_header(image_dir / name).size
    except InputError as error:
        return str(error)
    if (width, height) != (camera.width, camera.height):
        return f"it has {width} x {height} pixels, its camera {camera.width} x {camera.height}"
    return ""


def without_images(model: pycolmap.Reconstruction, names: Iterable[str]) -> pycolmap.Reconstruction:
    """Return a copy of a model in which some images, and what was taken with them, have no pose."""
    copy = pycolmap.Reconstruction(model)
    unwanted = set(names)
    images = (copy.image(image_id) for image_id in copy.reg_image_ids())
    for frame_id in {image.frame_id for image in images if image.name in unwanted}:
        copy.deregister_frame(frame_id)
    return copy


def link_photos(names: Iterable[str], image_dir: Path, folder: Path) -> None:
    """Put photos into a folder under the same names, see `link`.

    Raises:
        OSError: it cannot be written to.
    """
    for name in names:
        link(image_dir / name, folder / name)


def link(photo: Path, target: Path) -> None:
    """Make a hard link to a photo, else a symbolic one, else a copy.

    Raises:
        OSError: none of these works.
    """
    photo = Path(os.path.realpath(photo))  # a hard link to a symbolic one would be symbolic too
    target.parent.mkdir(parents=True, exist_ok=True)
    for way in (os.link, os.symlink):
        with contextlib.suppress(OSError):
            way(photo, target)
            return
    shutil.copy2(photo, target)
