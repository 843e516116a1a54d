"""OpenCV's robust estimators, and what to do where one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import cv2

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
