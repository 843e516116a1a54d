"""Looks at two photos: what a matcher sees of them, and how much of that agrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfm_matchers.geometry.robust_estimation import agree_with_one_epipolar_geometry
from sfm_matchers.matchers.batching import matches_of_one_size
from sfm_matchers.matchers.protocols import (
    CoarseLook,
    CoarseToFineMatcher,
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
)

Images = tuple[np.ndarray, np.ndarray]
"""Photo 0 and photo 1, RGB (H, W, 3) uint8."""

TOLERANCE = 1 / 768  # of the photo's longer side, distance of a match from its epipolar line
CELL_TOLERANCE = 0.4  # of a cell's side, the same of matched cells
MIN_AGREEING = 15  # matches, as many as COLMAP asks of a pair


def first_looks(
    matcher: DetectorFreeMatcher, pairs: Sequence[tuple[EncodedImage, EncodedImage]]
) -> list[CoarseLook]:
    """Look at pairs of encoded photos of one size, coarsely if the matcher can."""
    if isinstance(matcher, CoarseToFineMatcher):
        return matcher.look(pairs)
    return list(map(exact_look, matches_of_one_size(matcher, pairs)))


def look_at(matcher: DetectorFreeMatcher, images: Images) -> CoarseLook:
    """Look at two photos that are not encoded."""
    image0, image1 = images
    (look,) = first_looks(matcher, [(matcher.encode(image0), matcher.encode(image1))])
    return look


def exact_look(matches: Matches) -> CoarseLook:
    """Return the look that found the matches proper."""
    return CoarseLook(matches, cell=0.0, refined=lambda: matches)


def agreeing(look: CoarseLook, images: Images) -> np.ndarray:
    """Return booleans (M,): which matches agree with one epipolar geometry."""
    matches = look.matches
    if len(matches) < MIN_AGREEING:
        return np.zeros(len(matches), bool)
    tolerance = max(_tolerance(images), CELL_TOLERANCE * look.cell)
    return agree_with_one_epipolar_geometry(matches.keypoints0, matches.keypoints1, tolerance)


def evidence(agrees: np.ndarray) -> float:
    """Return how far beyond chance matches agree, to compare looks that found more and fewer.

    Of M matches of photos that share nothing about 2.3 times the root of M agree with the epipolar
    geometry that most agree with, be they tens or hundreds.

    Args:
        agrees: (M,) bool, of `agreeing`.
    """
    return float(agrees.sum() / np.sqrt(max(1, len(agrees))))


def _tolerance(images: Images) -> float:
    """Distance of an exact match from its epipolar line, in pixels of the photos."""
    return TOLERANCE * max(max(image.shape) for image in images)
