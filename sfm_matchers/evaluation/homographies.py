"""Homographies, and their errors."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike

from sfm_matchers.evaluation.two_view import CONFIDENCE, MAX_ITERATIONS, import_poselib
from sfm_matchers.geometry.epipolar import FloatArray, homogeneous


def estimate_homography(
    points0: ArrayLike, points1: ArrayLike, *, max_error: float = 3.0
) -> FloatArray | None:
    """Homography (3, 3) from image 0 to image 1 by OpenCV's RANSAC; None if there is none.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        max_error: largest distance of an inlier in image 1, in pixels.
    """
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < 4:
        return None
    homography, _ = cv2.findHomography(
        points0,
        points1,
        cv2.RANSAC,
        max_error,
        maxIters=MAX_ITERATIONS,
        confidence=CONFIDENCE,
    )
    return None if homography is None else np.asarray(homography, dtype=np.float64)


def estimate_homography_poselib(
    points0: ArrayLike, points1: ArrayLike, *, max_error: float = 3.0
) -> FloatArray | None:
    """The same as `estimate_homography` by PoseLib's LO-RANSAC.

    Raises:
        MissingExtraError: poselib is not installed.
    """
    poselib = import_poselib()
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < 4:
        return None
    homography, info = poselib.estimate_homography(
        points0, points1, {"max_reproj_error": max_error, "seed": 0}, {}
    )
    return np.asarray(homography) if info["num_inliers"] >= 4 else None


HOMOGRAPHY_ESTIMATORS: dict[str, Callable[..., FloatArray | None]] = {
    "OpenCV RANSAC": estimate_homography,
    "PoseLib LO-RANSAC": estimate_homography_poselib,
}


def apply_homography(homography: ArrayLike, points: ArrayLike) -> FloatArray:
    """Map points (N, 2); infinite where a point goes to or through infinity."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    mapped = homogeneous(points) @ np.asarray(homography, dtype=np.float64).T
    in_front = mapped[:, 2:] > 1e-12
    return np.where(in_front, mapped[:, :2] / np.where(in_front, mapped[:, 2:], 1.0), np.inf)


def homography_error(
    homography: ArrayLike | None, truth: ArrayLike, size: tuple[int, int]
) -> float:
    """Mean distance between the corners of image 0 carried over by two homographies.

    The measure of SuperGlue (CVPR 2020, section 5.1), LoFTR and LightGlue.

    Args:
        homography: (3, 3) estimated, from image 0 to image 1; None if the estimation failed.
        truth: (3, 3).
        size: (width, height) of image 0; corners are the centres of its corner pixels.

    Returns:
        Pixels of image 1; infinite without a homography.
    """
    if homography is None:
        return np.inf
    right, bottom = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=np.float64)
    # A homography has no sign: take the one that keeps the middle of the image in front.
    middle = np.array([right / 2, bottom / 2, 1.0])
    signed = [
        matrix * np.sign(matrix[2] @ middle)
        for matrix in (np.asarray(h, dtype=np.float64) for h in (homography, truth))
    ]
    mapped, expected = (apply_homography(matrix, corners) for matrix in signed)
    if not np.isfinite(mapped).all():
        return np.inf
    return float(np.linalg.norm(mapped - expected, axis=1).mean())


def coarse_precision_recall(
    points0: ArrayLike,
    points1: ArrayLike,
    homography: ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    cell: int = 8,
) -> tuple[float, float]:
    """How many matches reach the true coarse cell, and how many cells have such a match.

    A match is right if the true position lies in the cell centred on its point in image 1: within
    `cell / 2` along x and along y.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        homography: (3, 3) true, from image 0 to image 1.
        size0: (width, height) of image 0.
        size1: of image 1.
        cell: side of a coarse cell in pixels.

    Returns:
        Precision: share of the matches that are right (0 without matches). Recall: share of the
        cells of image 0 with a right match, of those whose middle is visible in image 1.
    """
    points0, points1 = (np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in (points0, points1))
    columns, rows = size0[0] // cell, size0[1] // cell
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    middles = np.stack([x, y], axis=-1).reshape(-1, 2) * cell + (cell - 1) / 2
    expected = apply_homography(homography, middles)
    visible = ((expected > -0.5) & (expected < np.array(size1) - 0.5)).all(axis=1)
    right = (np.abs(apply_homography(homography, points0) - points1) <= cell / 2).all(axis=1)
    cells = np.floor((points0[right] + 0.5) / cell).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < [columns, rows])).all(axis=1)]
    found = np.zeros(columns * rows, dtype=bool)
    found[cells[:, 1] * columns + cells[:, 0]] = True
    precision = float(right.mean()) if right.size else 0.0
    return precision, float((found & visible).sum() / max(visible.sum(), 1))
