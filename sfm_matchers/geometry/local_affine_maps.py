"""How the surroundings of matched points are carried over from one photo to the other."""

from __future__ import annotations

import cv2
import numpy as np

MIN_MATCHES = 8  # of a pair, to know how its points are carried over
TOLERANCE = 0.03  # of the extent of a pair's points, from an affine map of one photo to the other
MAX_STRETCH = 4.0  # beyond, an affine map is taken for wrong
NUM_NEIGHBORS = 12  # of a match, itself counted
NEIGHBOR_TOLERANCE = 0.15  # of the distance of a neighbour, from the affine map around a match
PRIOR = 0.5  # neighbours that the affine map of the whole pair counts for
NUM_STEPS = 4  # of reweighting neighbours that do not fit


def local_affine_maps(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """Fit an affine map to the neighbours of each match.

    Neighbours that do not fit count little (iteratively reweighted least squares, with Cauchy's
    weights), and the affine map of the whole pair is a prior.

    Args:
        points0: (M, 2) pixels in photo 0.
        points1: (M, 2) matched points in photo 1.

    Returns:
        (M, 2, 2) float64, the linear part A of the map around each match: what is off by d in photo
        0 is off by A d in photo 1. None if no affine map is near to most matches.
    """
    points0, points1 = (np.asarray(points, np.float64) for points in (points0, points1))
    whole = _of_pair(points0, points1)
    if whole is None:
        return None
    neighbors = _neighbors(points0)
    offsets0 = points0[neighbors] - points0[:, None]
    offsets1 = points1[neighbors] - points1[:, None]
    spread = np.median(np.linalg.norm(offsets0, axis=2), axis=1)[:, None] + 1e-6
    prior = PRIOR * spread[..., None] ** 2
    linear = np.broadcast_to(whole, (len(points0), 2, 2))
    for _ in range(NUM_STEPS):
        residuals = np.linalg.norm(offsets1 - offsets0 @ linear.transpose(0, 2, 1), axis=2)
        weights = 1 / (1 + (residuals / (NEIGHBOR_TOLERANCE * spread)) ** 2)
        weighted = (offsets0 * weights[..., None]).transpose(0, 2, 1)
        squares, products = weighted @ offsets0, (weighted @ offsets1).transpose(0, 2, 1)
        linear = (products + prior * whole) @ np.linalg.inv(squares + prior * np.eye(2))
    return np.where(_is_plausible(linear)[:, None, None], linear, whole)


def _of_pair(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """Return the linear part (2, 2) of the affine map that most matches are near to."""
    if len(points0) < MIN_MATCHES:
        return None
    affine, _ = cv2.estimateAffine2D(
        points0,
        points1,
        method=cv2.RANSAC,
        ransacReprojThreshold=TOLERANCE * float(np.ptp(points1, axis=0).max()),
    )
    if affine is None or not np.isfinite(affine).all():
        return None
    linear: np.ndarray = affine[:, :2]
    return linear if _is_plausible(linear) else None


def _is_plausible(linear: np.ndarray) -> np.ndarray:
    singular_values = np.linalg.svd(linear, compute_uv=False)
    largest, smallest = singular_values[..., 0], singular_values[..., 1]
    stretch_is_small = (largest < MAX_STRETCH) & (smallest * MAX_STRETCH > 1)
    return np.asarray(stretch_is_small & (np.linalg.det(linear) > 0))


def _neighbors(points: np.ndarray) -> np.ndarray:
    """Return the indices (M, K) of the nearest points of each."""
    tree = cv2.flann.Index(points.astype(np.float32), {"algorithm": 4})  # 4: a single k-d tree
    count = min(NUM_NEIGHBORS, len(points))
    indices, _ = tree.knnSearch(points.astype(np.float32), count, params={"checks": -1})
    return np.asarray(indices)
