"""Distances from epipolar lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def symmetric_epipolar_distance(
    points0: ArrayLike,
    points1: ArrayLike,
    essential: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
) -> FloatArray:
    """Squared distances to the epipolar lines in both images, summed, in normalised coordinates.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        essential: (3, 3) with x1^T E x0 = 0.
        intrinsics0: (3, 3).
        intrinsics1: (3, 3).

    Returns:
        (N,) (x1^T E x0)^2 (1 / |(E x0)_xy|^2 + 1 / |(E^T x1)_xy|^2).
    """
    rays0 = normalised_points(points0, intrinsics0)
    rays1 = normalised_points(points1, intrinsics1)
    essential = np.asarray(essential, dtype=np.float64)
    lines1 = rays0 @ essential.T
    lines0 = rays1 @ essential
    residual = np.sum(rays1 * lines1, axis=1)
    weight = 1 / np.sum(lines1[:, :2] ** 2, axis=1) + 1 / np.sum(lines0[:, :2] ** 2, axis=1)
    return residual**2 * weight


def sampson_distance(points0: ArrayLike, points1: ArrayLike, fundamental: ArrayLike) -> FloatArray:
    """Distances to where one epipolar geometry holds, to first order (Sampson), in pixels.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        fundamental: (3, 3) with x1^T F x0 = 0.

    Returns:
        (N,) |x1^T F x0| / sqrt(|(F x0)_xy|^2 + |(F^T x1)_xy|^2).
    """
    fundamental = np.asarray(fundamental, dtype=np.float64)
    first, second = homogeneous(points0), homogeneous(points1)
    lines1, lines0 = first @ fundamental.T, second @ fundamental
    residual = np.abs(np.sum(second * lines1, axis=1))
    gradient = np.hypot(
        np.linalg.norm(lines1[:, :2], axis=1), np.linalg.norm(lines0[:, :2], axis=1)
    )
    return np.asarray(residual / np.maximum(gradient, 1e-12), dtype=np.float64)


def homogeneous(points: ArrayLike) -> FloatArray:
    """Points (N, 2) to (N, 3) with third entry 1."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def normalised_points(points: ArrayLike, intrinsics: ArrayLike) -> FloatArray:
    """Pixels (N, 2) to rays (N, 3) with third entry 1."""
    return homogeneous(points) @ np.linalg.inv(np.asarray(intrinsics, dtype=np.float64)).T
