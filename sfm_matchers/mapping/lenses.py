"""Lenses that can be, their likeness between camera models, and what observations tell of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.photos.intrinsics import (
    NOT_MONOTONIC,
    copy_intrinsics,
    impossibility,
    improbability,
    improbable_focal_length,
    is_monotonic,
)

FloatArray = NDArray[np.float64]

# From few parameters to many. Each begins with the distortion of the one before.
PERSPECTIVE = ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
FISHEYE = ("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE", "THIN_PRISM_FISHEYE")
LADDERS = {name: ladder for ladder in (PERSPECTIVE, FISHEYE) for name in ladder}

# Of cameras of fewer photos only radial distortion is looked for: what shifts the picture (the
# principal point, tangential distortion, another focal length along y) their poses take up as
# well, and then it predicts their observations and is wrong.
MIN_PHOTOS_BEYOND_RADIAL = 5

# A lens is tried as a fisheye if it sees further from its axis than this (degrees), or moves the
# corners by this share.
WIDE_ANGLE, STRONG_DISTORTION = 40.0, 0.08
# Of the half diagonal: beyond lies the border of the photo. Of a camera's observations, and of the
# four quadrants: what must lie there.
BORDER, MIN_BORDER_SHARE, MIN_QUADRANTS = 0.6, 0.01, 3
# Of the longer side: how far principal points of lenses lie from the middle at most.
MAX_CENTRE_OFFSET = 0.06
# Of the two focal lengths: pixels are square, but for those of stretched photos.
MAX_ANISOTROPY = 1.03


def num_refined(camera: pycolmap.Camera) -> int:
    """How many intrinsics are adjusted while the principal point is not."""
    return len(camera.focal_length_idxs()) + len(camera.extra_params_idxs())


def implausibility(
    camera: pycolmap.Camera, *, is_cropped: bool = False, is_stretched: bool = False
) -> str:
    """Why no lens is like that; "" where one may be.

    Args:
        camera: of whole photos, or of parts of them.
        is_cropped: of parts, whose principal point may be anywhere.
        is_stretched: of photos whose pixels may be no squares, as of anamorphic video.
    """
    problem = improbable_focal_length(camera) if is_cropped else improbability(camera)
    if problem or (problem := impossibility(camera)):
        return problem
    if not is_stretched and _has_two_focal_lengths(camera):
        return "the focal lengths of the two axes are far apart"
    if not is_cropped and is_off_centre(camera):
        return "the principal point is far from the middle of the photo"
    return "" if is_monotonic(camera) else NOT_MONOTONIC


def _has_two_focal_lengths(camera: pycolmap.Camera) -> bool:
    focal_lengths = camera.params[list(camera.focal_length_idxs())]
    return bool(focal_lengths.max() > MAX_ANISOTROPY * focal_lengths.min())


def is_rare(camera: pycolmap.Camera) -> bool:
    """True if a camera is one of photos that were stretched or cropped."""
    return _has_two_focal_lengths(camera) or is_off_centre(camera)


def is_off_centre(camera: pycolmap.Camera) -> bool:
    """True if the principal point is further from the middle than those of lenses are."""
    centre = camera.params[list(camera.principal_point_idxs())]
    offset = np.abs(centre - np.array([camera.width, camera.height]) / 2).max()
    return bool(offset > MAX_CENTRE_OFFSET * max(camera.width, camera.height))


def reaches_border(pixels: FloatArray, camera: pycolmap.Camera) -> bool:
    """True if observations (N, 2) tell the distortion near the border, not only in the middle."""
    half = np.array([camera.width, camera.height]) / 2
    offsets = pixels - half
    far = offsets[np.linalg.norm(offsets, axis=1) > BORDER * np.linalg.norm(half)]
    counts = Counter((bool(x > 0), bool(y > 0)) for x, y in far)
    enough = [count >= MIN_BORDER_SHARE * len(pixels) for count in counts.values()]
    return sum(enough) >= MIN_QUADRANTS


def may_be_fisheye(camera: pycolmap.Camera) -> bool:
    """True if a lens sees far from its axis, or distorts strongly."""
    size = np.array([camera.width, camera.height], dtype=np.float64)
    ray = camera.cam_ray_from_img(np.zeros(2))
    if camera.is_perspective_fisheye() or ray is None or not np.isfinite(ray).all():
        return True
    angle = np.arccos(np.clip(np.asarray(ray).ravel()[2], -1, 1))
    undistorted = camera.mean_focal_length() * np.tan(angle)
    radius = float(np.linalg.norm(size) / 2)
    is_wide = np.degrees(angle) > WIDE_ANGLE
    return bool(is_wide or abs(undistorted / radius - 1) > STRONG_DISTORTION)


def converted(camera: pycolmap.Camera, model: str) -> pycolmap.Camera:
    """The camera of another model with the most similar rays; the principal point stays."""
    ladder, own = LADDERS[model], camera.model.name
    if own in ladder[: ladder.index(model) + 1] and model != "THIN_PRISM_FISHEYE":
        other = copy_intrinsics(camera, model)  # its distortion begins with the same coefficients
        other.camera_id = camera.camera_id
        return other
    size = (camera.width, camera.height)
    other = pycolmap.Camera.create_from_model_name(
        camera.camera_id, model, camera.mean_focal_length(), *size
    )
    params = other.params.copy()
    params[list(other.principal_point_idxs())] = camera.params[list(camera.principal_point_idxs())]
    other.params = params
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 20), np.linspace(0, 1, 20)), axis=-1)
    pixels = grid.reshape(-1, 2) * size
    rays = np.asarray(camera.cam_ray_from_img(pixels))
    seen = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 0)
    return _fitted(other, rays[seen], pixels[seen])


def _fitted(camera: pycolmap.Camera, rays: FloatArray, pixels: FloatArray) -> pycolmap.Camera:
    """Change focal lengths and distortion until rays (N, 3) fall on pixels (N, 2)."""
    variable = [*camera.focal_length_idxs(), *camera.extra_params_idxs()]
    steps = np.where(np.arange(len(variable)) < len(camera.focal_length_idxs()), 1e-2, 1e-5)
    for _ in range(10):  # of Gauss and Newton
        start = camera.params.copy()
        residuals = (pixels - np.asarray(camera.img_from_cam(rays))).ravel()
        columns = []
        for index, step in zip(variable, steps, strict=True):
            moved = start.copy()
            moved[index] += step
            camera.params = moved
            difference = pixels - np.asarray(camera.img_from_cam(rays))
            columns.append((residuals - difference.ravel()) / step)
        known = np.isfinite(residuals)
        jacobian = np.stack(columns, axis=1)[known]
        start[variable] += np.linalg.lstsq(jacobian, residuals[known], rcond=None)[0]
        camera.params = start
    return camera
