"""Quarter turns between two photos, for networks that know photos the same way up only.

A network on images matches photos that are turned against each other by up to 45 degrees or so, and
knows the world upright. Many phones store portrait photos lying on their side, and say so in EXIF
only; drones turn as they like, and EXIF says nothing. So photos are set upright as EXIF tells, then
photo 1 is tried in all four positions at a small size, and is matched in the one that agrees best
with photo 0. Matched points are brought back to the photos as stored. Of many pairs a few are
tried, which tell how all their photos lie: see `matching.turns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    that_sees_at,
)
from sfm_matchers.photos.resizing import reduced, turned, unturned

SMALL_SIDE = 512  # pixels, longer side of the images that are tried
TOLERANCE = 4.0  # pixels of those images, distance of a match from the homography
MIN_CERTAIN_INLIERS = 64  # matches on one homography, with which no other position is tried
MIN_TURN_RATIO = 2.0  # of matches on one homography after a turn to those without one


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


class Agreement(NamedTuple):
    """How well two photos agree in one position.

    Attributes:
        inliers: matches on one homography.
        lean: degrees by which photo 1 is still turned against photo 0, as these matches tell.
    """

    inliers: int
    lean: float = 0.0


@dataclass(frozen=True)
class Look:
    """What was seen of two small photos.

    Attributes:
        positions: by quarters that photo 1 is turned; the first alone where it is beyond doubt.
    """

    positions: tuple[Agreement, ...]

    def best(self, expected: int = 0) -> int:
        """Return how many quarters photo 1 is to be turned: as expected, or what wins clearly.

        Mere numbers of matches deceive: there can be hundreds in a wrong position, all over the
        photo. So those on one homography count.
        """
        inliers = [position.inliers for position in self.positions]
        if len(inliers) == 1:
            return 0
        best = int(np.argmax(inliers))
        return best if inliers[best] >= max(1, MIN_TURN_RATIO * inliers[expected]) else expected

    @property
    def vote(self) -> int | None:
        """How many quarters photo 1 is to be turned, if that is beyond doubt."""
        inliers = [position.inliers for position in self.positions]
        if len(inliers) == 1:
            return 0
        second, first = sorted(inliers)[-2:]
        is_clear = first >= max(MIN_CERTAIN_INLIERS, MIN_TURN_RATIO * second)
        return inliers.index(first) if is_clear else None


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
        self._matcher = that_sees_at(matcher, SMALL_SIDE)

    def encode(self, image: np.ndarray, quarters: int = 0) -> EncodedImage:
        """Encode a small copy of a photo, RGB (H, W, 3) uint8, turned by quarters."""
        return self._matcher.encode(turned(reduced(image, SMALL_SIDE), quarters))

    def between(self, image0: np.ndarray, image1: np.ndarray) -> int:
        """Return how many quarters photo 1 is to be turned; both RGB (H, W, 3) uint8."""
        return self.best(self.encode(image0), lambda quarters: self.encode(image1, quarters))

    def best(self, photo0: EncodedImage, photo1: Callable[[int], EncodedImage]) -> int:
        """Return how many quarters photo 1 is to be turned; arguments as of `look`."""
        return self.look(photo0, photo1).best()

    def look(self, photo0: EncodedImage, photo1: Callable[[int], EncodedImage]) -> Look:
        """Look how well two photos agree.

        Args:
            photo0: from `encode`, not turned.
            photo1: the same of photo 1, turned by quarters; not each is asked for.
        """
        found = self._agreements(photo0, [photo1(0)])
        if found[0].inliers < MIN_CERTAIN_INLIERS:
            found += self._agreements(photo0, [photo1(quarters) for quarters in (1, 2, 3)])
        return Look(tuple(found))

    def _agreements(
        self, photo0: EncodedImage, positions: Sequence[EncodedImage]
    ) -> list[Agreement]:
        pairs = [(photo0, position) for position in positions]
        return [_agreement(matches) for matches in match_encoded_pairs(self._matcher, pairs)]


def _agreement(matches: Matches) -> Agreement:
    if len(matches) <= 4:
        return Agreement(0)
    points0, points1 = (
        points.astype(np.float64) for points in (matches.keypoints0, matches.keypoints1)
    )
    _, inliers = estimate_robustly(
        lambda method: cv2.findHomography(
            points0, points1, method, TOLERANCE, maxIters=2000, confidence=0.999
        )
    )
    if inliers is None or not inliers.any():
        return Agreement(0)
    chosen = inliers.ravel().astype(bool)
    return Agreement(int(chosen.sum()), _turned_by(points0[chosen], points1[chosen]))


def _turned_by(points0: np.ndarray, points1: np.ndarray) -> float:
    """Degrees from points (N, 2) to others, by the best similarity transform."""
    first, second = (points @ [1, 1j] for points in (points0, points1))
    both = np.conj(first - first.mean()) * (second - second.mean())
    return float(np.degrees(np.angle(both.sum())))
