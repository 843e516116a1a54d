"""Whether a pose is the only one, and so certain that more photos of the map would not change it.

Many inliers do not make a pose certain: all may come from one photo of the map, whose points share
their errors, or from one corner of the query. It is where several photos, each by itself, say the
same: each has enough inliers, and the pose refined on these alone stays where it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import pycolmap

from sfm_matchers.localization.plausibility import implausibility
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Status
from sfm_matchers.localization.resectioning import (
    ALTERNATIVE_TRIALS,
    Matches,
    Solution,
    best_of,
    better_intrinsics,
    solve,
)

AGREEING_PHOTOS = 2
# How far the pose of one photo's inliers may be from that of all: of the solution's scale, and in
# degrees. What is asked of a localized pose.
MAX_MOVE, MAX_TURN = 0.01, 1.0
# Of the inliers of a pose, of its scale, and degrees: another pose with so many of the other
# matches, so far away or turned, is a rival. Of photos of a tower whose sides are the same, wrong
# poses have rivals with 30 % or more; elsewhere the best of what is left has below 10 %.
RIVAL_SHARE, RIVAL_DISTANCE, RIVAL_TURN = 0.25, 0.1, 10.0


def rivalry(solution: Solution) -> np.ndarray | None:
    """Which matches (N,) bool fit a pose elsewhere, where a pose is one of two they support.

    Opposite sides of a building, floors, and what is made in series look alike: a photo then
    matches map photos of both places. So does one that is put together of several, each of which
    has a principal point of its own.
    """
    left = np.flatnonzero(~solution.inliers)
    enough = RIVAL_SHARE * solution.num_inliers
    if len(left) < max(4, enough):
        return None
    others = solution.matches.some(left)
    cameras = solution.camera, _amid(solution.camera, others)
    rival = best_of(_with_own_intrinsics(others, camera) for camera in cameras)
    if rival is None or rival.num_inliers < enough or implausibility(rival, rival.inliers):
        return None
    if not is_elsewhere(rival, solution):
        return None
    fit = np.zeros(len(solution.inliers), dtype=bool)
    fit[left[rival.inliers]] = True
    return fit


def _amid(camera: pycolmap.Camera, matches: Matches) -> pycolmap.Camera:
    """The camera with its principal point amid the matches, as that of a part of a photo is."""
    params = camera.params.copy()
    params[list(camera.principal_point_idxs())] = np.median(matches.keypoints, axis=0)
    amid = copy.copy(camera)
    amid.params = params
    return amid


def _with_own_intrinsics(matches: Matches, camera: pycolmap.Camera) -> Solution | None:
    solution = solve(matches, camera, max_trials=ALTERNATIVE_TRIALS)
    better = better_intrinsics(solution) if solution is not None else None
    return better[0] if better is not None else solution


def is_elsewhere(rival: Solution, solution: Solution) -> bool:
    """Whether two poses are of two places, not one pose and its errors."""
    is_near = rival.moves_from(solution) < RIVAL_DISTANCE
    return not (is_near and rival.turns_from(solution) < RIVAL_TURN)


def is_certain(
    found: LocalizedQuery,
    by_photo: Iterable[tuple[np.ndarray, np.ndarray]],
    extent: float,
    enough_inliers: int,
    options: LocalizationOptions,
) -> bool:
    """Whether several photos of the map agree on a pose.

    Args:
        found: the query with the pose from all of these photos.
        by_photo: its matches with each photo: keypoints (N, 2) in COLMAP's convention and 3D
            points (N, 3).
        extent: of the map's cameras.
        enough_inliers: that the pose must have.
        options: how it was estimated.
    """
    pose = found.cam_from_world
    if found.status is not Status.LOCALIZED or pose is None or found.num_inliers < enough_inliers:
        return False
    # As for poses: numbers far from the origin lose digits.
    origin = np.median(found.points[found.inliers], axis=0)
    pose = pose * pycolmap.Rigid3d(pycolmap.Rotation3d(), origin)
    agreeing = 0
    for keypoints, points in by_photo:
        matches = Matches(keypoints.astype(np.float64), points - origin, options.max_error, extent)
        agreeing += _agrees(Solution(found.camera, pose, matches), options.confident_inliers)
    return agreeing >= AGREEING_PHOTOS


def _agrees(solution: Solution, enough: int) -> bool:
    """Whether a pose stays where it is on one photo's matches alone."""
    inliers = solution.inliers
    if len(np.unique(solution.matches.keypoints[inliers], axis=0)) < enough:
        return False
    refined = pycolmap.refine_absolute_pose(
        solution.cam_from_world,
        solution.matches.keypoints,
        solution.matches.points,
        inliers,
        copy.copy(solution.camera),
    )
    if refined is None:
        return False
    alone = Solution(solution.camera, refined["cam_from_world"], solution.matches)
    return alone.moves_from(solution) <= MAX_MOVE and alone.turns_from(solution) <= MAX_TURN
