"""Photos without lens distortion and a PINHOLE model of them, as Inria's 3DGS reads them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pycolmap

from sfm_matchers.errors import one_line
from sfm_matchers.mapping import quiet_colmap
from sfm_matchers.storage import disk_is_full

from .images import registered_names, without_images


def cannot_undistort(model: pycolmap.Reconstruction) -> str:
    """Return why the photos of a model cannot become those of pinhole cameras; "" if they can."""
    for camera in model.cameras.values():
        try:
            with quiet_colmap(pycolmap.logging.FATAL):
                pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
        except ValueError:
            return f"photos of {camera.model.name} cameras have no undistorted form"
    return ""


def undistort(model_dir: Path, image_dir: Path, folder: Path) -> None:
    """Write ``images/`` and ``sparse/0`` of undistorted photos into an empty folder.

    Images whose photo COLMAP cannot decode or write are not in the model.

    Args:
        model_dir: the model, whose photos are all there.
        image_dir: the photos.
        folder: the folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    with quiet_colmap(pycolmap.logging.FATAL):
        try:
            pycolmap.undistort_images(folder, model_dir, image_dir)
        except ValueError as error:  # COLMAP's, of files too
            raise OSError(one_line(error)) from error
    if disk_is_full(folder):  # COLMAP goes on without the photos that it cannot write
        raise OSError(errno.ENOSPC, "no space is left")
    (folder / "sparse").rename(folder / "0")
    (folder / "sparse").mkdir()
    (folder / "0").rename(folder / "sparse" / "0")
    for other in folder.iterdir():  # of COLMAP's dense reconstruction
        if other.name == "stereo":
            shutil.rmtree(other)
        elif other.is_file():
            other.unlink()
    _leave_out_missing(folder)


def _leave_out_missing(folder: Path) -> None:
    model_dir = folder / "sparse" / "0"
    model = pycolmap.Reconstruction(model_dir)
    missing = [name for name in registered_names(model) if not (folder / "images" / name).is_file()]
    if missing:
        without_images(model, missing).write(model_dir)
