"""Relative poses of two photos, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.evaluation.models import rotation_angle
from sfm_matchers.evaluation.pair_lists import PosedPair
from sfm_matchers.geometry.epipolar import (
    FloatArray,
    normalised_points,
    symmetric_epipolar_distance,
)
from sfm_matchers.geometry.robust_estimation import estimate_robustly

MIN_MATCHES = 5  # of the five-point algorithm
CONFIDENCE = 0.99999  # of RANSAC, as in the papers
MAX_ITERATIONS = 10_000  # of RANSAC


class RelativePose(NamedTuple):
    """An estimated pose of camera 1 from camera 0.

    Attributes:
        rotation: (3, 3).
        translation: (3,) of unit length.
        inliers: (N,) bool, the matches that agree.
    """

    rotation: FloatArray
    translation: FloatArray
    inliers: NDArray[np.bool_]


def pose_error(
    cam1_from_cam0: ArrayLike, rotation: ArrayLike, translation: ArrayLike
) -> tuple[float, float]:
    """Angles between a true relative pose and an estimated one.

    The scale and the sign of a translation cannot be told from two images, so only its direction
    counts, and the opposite direction counts as the same.

    Args:
        cam1_from_cam0: (4, 4) true transformation.
        rotation: (3, 3) estimated.
        translation: (3,) estimated, of any length.

    Returns:
        Rotation error and translation error in degrees; the latter is 0 where the true
        translation is zero.
    """
    truth = np.asarray(cam1_from_cam0, dtype=np.float64)
    rotation = np.asarray(rotation, dtype=np.float64)
    translation = np.asarray(translation, dtype=np.float64)
    rotation_error = rotation_angle(truth[:3, :3].T @ rotation)
    lengths = np.linalg.norm(truth[:3, 3]) * np.linalg.norm(translation)
    if lengths < 1e-12:
        return rotation_error, 0.0
    cosine = abs(truth[:3, 3] @ translation) / lengths
    return rotation_error, float(np.rad2deg(np.arccos(np.clip(cosine, 0, 1))))


def pose_auc(errors: ArrayLike, thresholds: Sequence[float] = (5.0, 10.0, 20.0)) -> list[float]:
    """Area under the recall curve up to each threshold, as a share of the perfect area.

    Args:
        errors: (N,) one error per pair: the larger of rotation and translation error in degrees, or
            the corner error of a homography in pixels; infinite for a pair without an estimate.
        thresholds: in the unit of the errors.

    Returns:
        One value in 0..1 per threshold.

    Raises:
        InputError: if there are no errors.
    """
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    if ordered.size == 0:
        raise InputError("pose_auc needs at least one error: no pair was evaluated")
    ordered = np.concatenate([[0.0], ordered])
    recall = np.arange(len(ordered)) / (len(ordered) - 1)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return areas


def estimate_relative_pose(
    points0: ArrayLike,
    points1: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
    *,
    max_error: float = 0.5,
    method: int = cv2.USAC_MAGSAC,
) -> RelativePose | None:
    """Essential matrix by OpenCV, then the pose in front of both cameras.

    The same matches in the same order always give the same pose: OpenCV's generator starts anew in
    every call.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        intrinsics0: (3, 3).
        intrinsics1: (3, 3).
        max_error: inlier threshold in pixels of a camera with the mean focal length of the two.
        method: `cv2.USAC_MAGSAC` (MAGSAC++, refined on the inliers) or `cv2.RANSAC` (the best of
            the minimal samples as it is, what the papers of the networks measure with).

    Returns:
        The pose, or None if there is none.
    """
    focal = np.mean([np.asarray(k)[i, i] for k in (intrinsics0, intrinsics1) for i in (0, 1)])
    # Pixels of one camera for both: on rays, whose unit is the focal length, MAGSAC++ is far off,
    # because the largest scale of noise it considers is a fixed number of pixels.
    shared = np.diag([focal, focal, 1.0])
    pixels0 = focal * normalised_points(points0, intrinsics0)[:, :2]
    pixels1 = focal * normalised_points(points1, intrinsics1)[:, :2]
    if len(pixels0) < MIN_MATCHES:
        return None
    essentials, mask = estimate_robustly(
        lambda method: cv2.findEssentialMat(
            pixels0,
            pixels1,
            shared,
            method=method,
            prob=CONFIDENCE,
            threshold=max_error,
            maxIters=MAX_ITERATIONS,
        ),
        method,
    )
    return None if essentials is None else _best_pose(essentials, pixels0, pixels1, shared, mask)


def _best_pose(
    essentials: np.ndarray,
    pixels0: np.ndarray,
    pixels1: np.ndarray,
    intrinsics: np.ndarray,
    mask: np.ndarray,
) -> RelativePose | None:
    """The pose that puts most inliers in front of both cameras.

    Args:
        essentials: (3 E, 3), E solutions below each other.
        pixels0: (N, 2).
        pixels1: (N, 2).
        intrinsics: (3, 3), of both.
        mask: (N, 1), nonzero for inliers.
    """
    best: RelativePose | None = None
    most = 0
    for start in range(0, len(essentials) - 2, 3):
        count, rotation, translation, _ = cv2.recoverPose(
            essentials[start : start + 3], pixels0, pixels1, intrinsics, 1e9, mask=mask.copy()
        )[:4]
        if count > most:
            most = count
            best = RelativePose(
                np.asarray(rotation, dtype=np.float64),
                np.asarray(translation, dtype=np.float64)[:, 0],
                np.asarray(mask).ravel() > 0,
            )
    return best


def estimate_relative_pose_poselib(
    points0: ArrayLike,
    points1: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
    *,
    max_error: float = 0.5,
) -> RelativePose | None:
    """The same as `estimate_relative_pose` by PoseLib's LO-RANSAC; intrinsics without skew.

    Raises:
        MissingExtraError: poselib is not installed.
    """
    poselib = import_poselib()
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < MIN_MATCHES:
        return None
    cameras = []
    for matrix in (np.asarray(intrinsics0, float), np.asarray(intrinsics1, float)):
        focal_and_centre = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
        width, height = (round(2 * centre) for centre in focal_and_centre[2:])
        cameras.append(
            {"model": "PINHOLE", "width": width, "height": height, "params": focal_and_centre}
        )
    pose, info = poselib.estimate_relative_pose(
        points0, points1, *cameras, {"max_epipolar_error": max_error, "seed": 0}, {}
    )
    inliers = np.asarray(info["inliers"], dtype=bool)
    if not inliers.any():
        return None
    return RelativePose(np.asarray(pose.R), np.asarray(pose.t), inliers)


POSE_ESTIMATORS: dict[str, Callable[..., RelativePose | None]] = {
    "OpenCV RANSAC": partial(estimate_relative_pose, method=cv2.RANSAC),
    "OpenCV MAGSAC++": estimate_relative_pose,
    "PoseLib LO-RANSAC": estimate_relative_pose_poselib,
}


def import_poselib() -> ModuleType:
    """Return PoseLib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import poselib
    except ImportError as error:
        raise MissingExtraError(
            "poselib is missing: pip install 'sfm-matchers[evaluation]'"
        ) from error
    return poselib


def matching_precision(
    points0: ArrayLike, points1: ArrayLike, pair: PosedPair, max_distance: float = 1e-4
) -> float:
    """Share of matches whose squared `symmetric_epipolar_distance` is small; 0 without matches."""
    distances = symmetric_epipolar_distance(
        points0, points1, pair.essential, pair.intrinsics0, pair.intrinsics1
    )
    return float((distances < max_distance).mean()) if len(distances) else 0.0
