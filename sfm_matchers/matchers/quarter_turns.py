"""Quarter turns between two photos, for networks that know photos the same way up only.

A network on images matches photos that are turned against each other by up to 45 degrees or so, and
knows the world upright. Many phones store portrait photos lying on their side, and say so in EXIF
only; drones turn as they like, and EXIF says nothing. So photos are set upright as EXIF tells, then
photo 1 is tried in all four positions at a small size, and is matched in the one that agrees best
with photo 0. Matched points are brought back to the photos as stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.geometry.robust_estimation import estimate_robustly
from sfm_matchers.matchers.batching import match_encoded_pairs
from sfm_matchers.matchers.protocols import (
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
    ResizingMatcher,
)
from sfm_matchers.photos.resizing import network_size, turned, unturned

SMALL_SIDE = 512  # pixels, longer side of the images that are tried
TOLERANCE = 4.0  # pixels of those images, distance of a match from the homography
BEYOND_DOUBT = 64  # matches on one homography, with which no other position is tried
CLEARLY = 2.0  # times as many matches on one homography as without a turn are asked of a turn


def unturned_matches(
    matches: Matches, quarters: tuple[int, int], sizes: tuple[tuple[int, int], tuple[int, int]]
) -> Matches:
    """Bring points of two photos, matched after `turned`, back to the photos as they were.

    Args:
        matches: in pixels of the turned photos.
        quarters: of photo 0 and photo 1, counter-clockwise.
        sizes: (width, height) of photo 0 and photo 1 as they were.
    """
    keypoints0, keypoints1 = map(
        unturned, (matches.keypoints0, matches.keypoints1), quarters, sizes
    )
    return Matches(keypoints0, keypoints1, matches.scores)


class QuarterTurns:
    """Finds the quarter turn of photo 1 that agrees best with photo 0.

    Args:
        matcher: what matches; a copy of it that sees photos small is used here.

    Raises:
        InputError: the matcher has no ``resize_max``.
    """

    def __init__(self, matcher: DetectorFreeMatcher) -> None:
        if not isinstance(matcher, ResizingMatcher):
            raise InputError(
                f"{type(matcher).__name__} has no resize_max, which quarter_turns needs: leave "
                "quarter_turns away"
            )
        self._matcher = copy.copy(matcher)
        self._matcher.resize_max = SMALL_SIDE

    def encode(self, image: np.ndarray, quarters: int = 0) -> EncodedImage:
        """Encode a small copy of a photo, RGB (H, W, 3) uint8, turned by quarters."""
        size = network_size((image.shape[1], image.shape[0]), SMALL_SIDE, multiple=1)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return self._matcher.encode(turned(small, quarters))

    def between(self, image0: np.ndarray, image1: np.ndarray) -> int:
        """Return how many quarters photo 1 is to be turned; both RGB (H, W, 3) uint8."""
        return self.best(self.encode(image0), lambda quarters: self.encode(image1, quarters))

    def best(self, photo0: EncodedImage, photo1: Callable[[int], EncodedImage]) -> int:
        """Return how many quarters photo 1 is to be turned.

        Args:
            photo0: from `encode`, not turned.
            photo1: the same of photo 1, turned by quarters; not each is asked for.

        The position with most matches on one homography wins, if it wins clearly. Mere numbers of
        matches deceive: there can be hundreds in a wrong position, all over the photo.
        """
        agreements = self._agreements(photo0, [photo1(0)])
        if agreements[0] < BEYOND_DOUBT:
            agreements += self._agreements(photo0, [photo1(quarters) for quarters in (1, 2, 3)])
        best = int(np.argmax(agreements))
        return best if agreements[best] >= CLEARLY * agreements[0] else 0

    def _agreements(self, photo0: EncodedImage, positions: Sequence[EncodedImage]) -> list[int]:
        pairs = [(photo0, position) for position in positions]
        return [_agreement(matches) for matches in match_encoded_pairs(self._matcher, pairs)]


def _agreement(matches: Matches) -> int:
    """Return how many matches lie on one homography."""
    if len(matches) <= 4:
        return 0
    points0, points1 = (
        points.astype(np.float64) for points in (matches.keypoints0, matches.keypoints1)
    )
    _, inliers = estimate_robustly(
        lambda method: cv2.findHomography(
            points0, points1, method, TOLERANCE, maxIters=2000, confidence=0.999
        )
    )
    return 0 if inliers is None else int(inliers.sum())
