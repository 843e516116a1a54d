"""What the intrinsics of a query may be, where the user does not give them all."""

from __future__ import annotations

import logging
from pathlib import Path

import pycolmap

from sfm_matchers.localization.poses import Query
from sfm_matchers.photos.given_cameras import GivenCamera
from sfm_matchers.photos.intrinsics import (
    GUESSED_FOCAL_LENGTH,
    Intrinsics,
    Size,
    camera_of_exif,
    camera_with,
    intrinsics_of_map,
    may_be_of_exif,
)

logger = logging.getLogger(__name__)


def query_of_given_camera(name: str, size: Size, given: GivenCamera) -> Query:
    """A query whose intrinsics, or their model, the user gives."""
    if given.params:
        return Query(name, given.camera(size), source=given.where, may_change=given.is_start)
    camera = camera_with(given.model, GUESSED_FOCAL_LENGTH * max(size), size)
    return Query(name, camera, focal_length_is_guess=True, source=given.where, may_change=True)


def query_of_map(
    name: str,
    size: Size,
    path: Path | None,
    model: pycolmap.Reconstruction,
    *,
    camera_from_map: bool = False,
) -> Query:
    """A query with the cameras of the map of its size or shape, and with EXIF's focal length.

    Where there is none of them, the focal length is a guess, to be estimated with the pose.

    Args:
        name: of the photo.
        size: its (width, height).
        path: of its file, for EXIF; None if there is no file.
        model: the map.
        camera_from_map: where the map has such a camera, the user expects it to be the query's. It
            is no longer where the photo was zoomed or cropped, which keeps its size or shape.
    """
    candidates = intrinsics_of_map(model, size)
    if not (camera_from_map and candidates):
        if camera_from_map:
            logger.warning("%s: no camera of the map has the shape %d x %d", name, *size)
        candidates += intrinsics_of_exif(path) if path is not None else []
    if not candidates:
        camera = camera_with("SIMPLE_RADIAL", GUESSED_FOCAL_LENGTH * max(size), size)
        return Query(name, camera, focal_length_is_guess=True, source="no EXIF", may_change=True)
    first, *others = candidates
    return Query(
        name,
        first.camera,
        source=first.source,
        alternatives=others,
        may_change=True,
        is_expected=camera_from_map,
    )


def intrinsics_of_exif(path: Path) -> list[Intrinsics]:
    """Those that COLMAP infers from a focal length in EXIF; none without one that may be."""
    camera = camera_of_exif(path)
    return [Intrinsics(camera, "EXIF")] if camera is not None and may_be_of_exif(camera) else []


def size_fault(query: Query, size: Size) -> str:
    """Why a photo of `size` cannot have the intrinsics of its query, or ""."""
    camera_size = (query.camera.width, query.camera.height)
    if size == camera_size:
        return ""
    return (
        f"its photo has {size[0]} x {size[1]} pixels, its intrinsics are for "
        f"{camera_size[0]} x {camera_size[1]}"
    )
