"""Whether a pose that matches support can be: seen from the right side, and by more than chance.

A mirrored photo of a wall is what the wall would look like from behind, through itself: a pose
there fits many matches well, of a wall, or of anything that is far away. And among enough wrong
matches some fit some pose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycolmap

from sfm_matchers.localization.resectioning import Matches, Solution, centre_uncertainty

Observers = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Indices of matches (N,) -> by whom their points were seen: rows of that array (M,), and camera
centres (M, 3) in the world."""

# Degrees between the directions from which a point is seen. No surface is seen from the other side,
# and hardly a detector finds a point again that has turned by half of it.
MAX_TURN = 90.0
# A camera is on one side of points, not among them, where its distance from their plane is so many
# times theirs (the standard deviation).
MIN_SIDE_DEVIATIONS = 5.0
# Of inliers, up to which they may be seen from the wrong side without the pose being wrong.
MAX_UNSEEN = 0.5
# Different keypoints. Fewer hold on to a pose in photos of another place.
MIN_KEYPOINTS = 8
# Of a photo's longer side: median errors of inliers are below 0.15 % where the photo is of the map,
# and above 0.55 % where learned matchers bring two places of one kind into a rough agreement.
MAX_MEDIAN_ERROR = 0.005
# Inliers in one plane that is seen from the front fit a camera of any focal length, such as that of
# a zoomed photo, and few ones do elsewhere. The centre's standard deviation with a free one, by the
# scale of errors, above which they tell none.
ANY_FOCAL_LENGTH = 0.1
# Poses as good that wrong matches would give, on average.
MAX_BY_CHANCE = 0.01
MIN_ERROR = 0.1  # pixels: keypoints are not more exact


def is_seen(
    points: np.ndarray, centre: np.ndarray, rows: np.ndarray, observers: np.ndarray
) -> np.ndarray:
    """Whether a camera sees points from a side from which others saw them.

    Args:
        points: (N, 3) that support the camera's pose.
        centre: (3,) of the camera.
        rows: (M,) which of the points each observer saw.
        observers: (M, 3) camera centres.

    Returns:
        Bool (N,); True for points without an observer.
    """
    to_camera, to_observer = _unit(centre - points)[rows], _unit(observers - points[rows])
    is_same_side = (to_camera * to_observer).sum(axis=1) > np.cos(np.deg2rad(MAX_TURN))
    # Obliquely, the two sides of a wall are less than 90 degrees apart.
    middle = points.mean(axis=0)
    _, deviations, axes = np.linalg.svd(points - middle, full_matrices=False)
    beside = MIN_SIDE_DEVIATIONS * deviations[-1] / np.sqrt(len(points))
    height, heights = (centre - middle) @ axes[-1], (observers - middle) @ axes[-1]
    if len(points) > 3 and abs(height) > beside:
        is_same_side &= (heights * np.sign(height)) > -beside
    seen = np.ones(len(points), dtype=bool)
    seen[rows] = False
    seen[rows[is_same_side]] = True
    return seen


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(float).tiny))


def expected_by_chance(
    matches: Matches, camera: pycolmap.Camera, num_inliers: int, error: float
) -> float:
    """How many poses with so many inliers wrong matches would give, all samples of three tried.

    `error` in pixels is that within which the inliers lie.

    As Moisan and Stival, "A probabilistic criterion to detect rigid point matches" (IJCV 2004):
    keypoints count once, and each lies anywhere in the photo.
    """
    count = len(np.unique(matches.keypoints, axis=0))
    area = np.pi * error**2 / (camera.width * camera.height)
    chance = min(1.0, area * len(matches.keypoints) / count)
    samples = count * (count - 1) * (count - 2) / 6
    return samples * binomial_tail(num_inliers - 3, count - 3, chance)


def binomial_tail(least: int, count: int, chance: float) -> float:
    """Chernoff's bound of the probability of `least` or more successes among `count`."""
    share = least / max(1, count)
    if share <= chance:
        return 1.0
    rest = (1 - share) * np.log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return float(np.exp(-count * (share * np.log(share / chance) + rest)))


def implausibility(solution: Solution, inliers: np.ndarray) -> str:
    """Why a pose is none, or "".

    Args:
        solution: the pose.
        inliers: (N,) bool: its inliers that are seen from the right side.
    """
    keypoints = solution.matches.keypoints
    every, with_unseen, count = (
        len(np.unique(keypoints[some], axis=0)) for some in (slice(None), solution.inliers, inliers)
    )
    if with_unseen < MIN_KEYPOINTS:
        return (
            f"{with_unseen} of its {every} matched keypoints fit a pose, at least "
            f"{MIN_KEYPOINTS} are needed"
        )
    if count < MIN_KEYPOINTS or count < (1 - MAX_UNSEEN) * with_unseen:
        return (
            f"{with_unseen - count} of the {with_unseen} keypoints that fit its pose show what the "
            "map saw from the other side: is the photo mirrored?"
        )
    # All within the largest error, or half of them within the median one, if that says more.
    errors = {
        count: solution.matches.max_error,
        count // 2: max(solution.median_error, MIN_ERROR),
    }
    expected = min(
        expected_by_chance(solution.matches, solution.camera, few, error)
        for few, error in errors.items()
    )
    if len(errors) * expected > MAX_BY_CHANCE:
        return f"{count} of its {every} matched keypoints fit a pose, as many as would by chance"
    return ""


def imprecision(solution: Solution) -> str:
    """Why a pose is of low confidence however many matches support it: their errors; or ""."""
    longer = max(solution.camera.width, solution.camera.height)
    if solution.median_error <= MAX_MEDIAN_ERROR * longer:
        return ""
    return (
        f"its inliers are inexact, {solution.median_error:.1f} px in a photo of {longer}: is it of "
        "this place?"
    )


def unverified(solution: Solution) -> str:
    """Why the inliers do not tell whether intrinsics that nobody gave are right; or "".

    Those of the map's cameras are not given: zoomed and cropped photos keep their size or shape.
    """
    if centre_uncertainty(solution, 1) <= ANY_FOCAL_LENGTH * solution.scale:
        return ""
    return (
        f"its {solution.num_inliers} inliers fit any focal length, not only the assumed "
        f"{solution.camera.mean_focal_length():.0f} px: where it is known, give it, --camera_params"
    )
