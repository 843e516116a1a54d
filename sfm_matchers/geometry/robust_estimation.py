"""OpenCV's robust estimators, and what to do where one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import cv2
import numpy as np

Found = TypeVar("Found")


def estimate_robustly(estimate: Callable[[int], Found], method: int = cv2.USAC_MAGSAC) -> Found:
    """Call an estimator; again with plain RANSAC where OpenCV fails on its own sample.

    MAGSAC of OpenCV 5.0 raises for some matches, good ones among them, "!model.empty()".

    Args:
        estimate: calls OpenCV with a method.
        method: the one that is wanted.
    """
    try:
        return estimate(method)
    except cv2.error as error:
        if method == cv2.RANSAC or "usac" not in str(error.file):
            raise
        return estimate(cv2.RANSAC)


def agree_with_one_epipolar_geometry(
    points0: np.ndarray, points1: np.ndarray, tolerance: float
) -> np.ndarray:
    """Tell which matches agree with the epipolar geometry that most agree with.

    Args:
        points0: (M, 2) pixels in photo 0, M at least 8.
        points1: (M, 2) matched points in photo 1.
        tolerance: largest distance from an epipolar line in pixels.

    Returns:
        (M,) bool; all False where there is no such geometry.
    """
    first, second = points0.astype(np.float64), points1.astype(np.float64)
    _, agrees = estimate_robustly(
        lambda method: cv2.findFundamentalMat(
            first, second, method, tolerance, confidence=0.999, maxIters=5000
        )
    )
    return np.zeros(len(first), bool) if agrees is None else agrees.ravel() > 0
