"""Whether intrinsics that users give are those of the photos.

A wrong focal length or distortion bends a model. A wrong principal point hardly does: turned by as
much all photos fit nearly as well, with rotations some degrees off. On rendered and real photos the
errors of observations that were held out tell it: they gain 2 to 60 % by a principal point that is
free where the given one is 3 to 12 % of a side off, and 0.2 % at most where it is right.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_matchers.mapping.adjustment import (
    adjust_robustly,
    median_error,
    robust_adjustment,
    robust_scale,
    solve_robustly,
)
from sfm_matchers.mapping.camera_models import TOLERANCE
from sfm_matchers.mapping.held_out import is_clearly_better, split_observations
from sfm_matchers.mapping.shared_cameras import MAX_ERROR_RATIO, split_cameras

# Of the longer side: up to this principal points are a lens's own, and turn photos by two degrees.
MIN_CENTRE_OFFSET = 0.03


@dataclass(frozen=True)
class FreeCameras:
    """A model adjusted with intrinsics free that were given: the camera whose photos gain most.

    Attributes:
        photos: its registered photos whose intrinsics were given.
        given_error: their median reprojection error in pixels before.
        free_error: afterwards.
        given: the camera before.
        found: the same afterwards.
        has_other_centre: held-out observations deny the given principal point.
    """

    photos: list[str]
    given_error: float
    free_error: float
    given: pycolmap.Camera
    found: pycolmap.Camera
    has_other_centre: bool

    @property
    def error_ratio(self) -> float:
        """The error afterwards over the one before."""
        return self.free_error / max(self.given_error, 1e-9)

    @property
    def contradicts(self) -> bool:
        """True if the given intrinsics are not those of the photos."""
        return self.has_other_centre or self.error_ratio < MAX_ERROR_RATIO

    @property
    def centre_offset(self) -> float:
        """Pixels from the given principal point to the one that was found."""
        return _centre_offset(self.given, self.found)


def try_free_cameras(model: pycolmap.Reconstruction, names: Collection[str]) -> FreeCameras:
    """Adjust a copy of a model in which no intrinsics are kept.

    Args:
        model: it is left as it is.
        names: photos whose intrinsics were given; some of them are registered.
    """
    free = split_cameras(model, ())
    photos: dict[int, list[str]] = {}
    for image in free.images.values():
        if image.name in names:
            photos.setdefault(image.camera_id, []).append(image.name)
    errors = {i: median_error(free, mine) for i, mine in photos.items()}
    adjust_robustly(free, robust_adjustment(1, refines_principal_point=True))
    # Cameras whose photos all fell out of the model on the way tell nothing.
    cameras = {i: copy.copy((free if i in free.cameras else model).cameras[i]) for i in photos}
    off_centre = _off_centre(model, cameras)
    found = [
        FreeCameras(
            sorted(mine),
            errors[i],
            median_error(free, mine),
            copy.copy(model.cameras[i]),
            cameras[i],
            i in off_centre,
        )
        for i, mine in sorted(photos.items())
    ]
    return min(found, key=lambda one: (not one.contradicts, one.error_ratio))


def _centre_offset(given: pycolmap.Camera, found: pycolmap.Camera) -> float:
    indices = list(given.principal_point_idxs())
    return float(np.linalg.norm(found.params[indices] - given.params[indices]))


def _off_centre(model: pycolmap.Reconstruction, found: Mapping[int, pycolmap.Camera]) -> set[int]:
    """Cameras of a model whose principal point lies elsewhere, beyond what chance explains.

    Args:
        model: with the given cameras.
        found: the same after an adjustment that was free to move their principal points.
    """
    moved = {i for i, camera in found.items() if _is_far(model.cameras[i], camera)}
    if not moved:  # as of those that are right: the rest is not needed
        return set()
    part, held_out = split_observations(model)
    scale = robust_scale(model)
    adjustment = robust_adjustment(1, refines_principal_point=True)
    adjustment.refine_focal_length = adjustment.refine_extra_params = False
    every, losses, trial = set(model.cameras), [], part
    for fixed in (every, every - moved):
        trial = copy.deepcopy(part)
        solve_robustly(trial, adjustment, fixed, scale, TOLERANCE)
        losses.append(held_out.losses(trial, scale))
    denied = set()
    for i in moved:
        before, after = (loss[held_out.camera_ids == i] for loss in losses)
        if is_clearly_better(after, before, 2) and _is_far(model.cameras[i], trial.cameras[i]):
            denied.add(i)
    return denied


def _is_far(given: pycolmap.Camera, found: pycolmap.Camera) -> bool:
    return _centre_offset(given, found) > MIN_CENTRE_OFFSET * max(given.width, given.height)
