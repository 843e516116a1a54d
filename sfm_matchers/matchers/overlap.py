"""A second look at what two photos share.

A network sees photos reduced to a size of its own. Where they share a part only, most of its pixels
are spent on what the other photo does not show. The matches of the first look tell where the shared
part lies; cut out of both photos, it is seen with more pixels, and with less beside it to confuse.
Where many cells agree, a coarse look suffices for that: exact points are wanted of the look that
counts alone.
"""

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

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels, the last two excluded

TOLERANCE = 1 / 768  # of the photo's longer side, distance of a match from its epipolar line
CELL_TOLERANCE = 0.4  # of a cell's side, the same of matched cells
# Cells, and their share of all, whose agreement exact points would not change. Of fewer another
# geometry may be found than exact points have, and cells that fit it by chance lie anywhere.
MIN_CERTAIN, CERTAIN_SHARE = 300, 0.75
MIN_AGREEING = 15  # matches, as many as COLMAP asks of a pair
MIN_GAIN = 1.15  # times as many pixels along a side are asked of a second look
OUTLYING = 1.0  # percent of the agreeing matches that the shared part may leave out at each side
MARGIN = 0.1  # of the shared part, added at each side
MIN_ASPECT = 0.5  # shorter side of a cut over its longer side


def first_looks(
    matcher: DetectorFreeMatcher, pairs: Sequence[tuple[EncodedImage, EncodedImage]]
) -> list[CoarseLook]:
    """Look at pairs of encoded photos of one size, coarsely if the matcher can."""
    if isinstance(matcher, CoarseToFineMatcher):
        return matcher.look(pairs)
    return list(map(_exact_look, matches_of_one_size(matcher, pairs)))


def match_overlap(
    matcher: DetectorFreeMatcher, image0: np.ndarray, image1: np.ndarray, first: CoarseLook
) -> Matches:
    """Match what two photos share, again if it is a small enough part of one of them.

    Args:
        matcher: what has looked at the whole photos.
        image0: RGB (H, W, 3) uint8, photo 0.
        image1: photo 1, as it was looked at.
        first: the look at the whole photos, of `first_looks`.

    Returns:
        The matches of the shared part, if in that look at least as many matches agree with one
        epipolar geometry, else those of the first look; both in pixels of the whole photos.
    """
    images = (image0, image1)
    agrees = _agreeing(first, images)
    if first.cell and agrees.sum() < max(MIN_CERTAIN, CERTAIN_SHARE * len(agrees)):
        first = _exact_look(first.refined())
        agrees = _agreeing(first, images)
    if agrees.sum() < MIN_AGREEING:
        return first.refined()
    points = (first.matches.keypoints0[agrees], first.matches.keypoints1[agrees])
    boxes = [_shared_part(*both) for both in zip(points, images, strict=True)]
    if max(map(_gain, boxes, images)) < MIN_GAIN:
        return first.refined()
    cut0, cut1 = (matcher.encode(_cut(*both)) for both in zip(images, boxes, strict=True))
    (closer,) = first_looks(matcher, [(cut0, cut1)])
    if not first.cell:
        closer = _exact_look(closer.refined())
    if _agreeing(closer, images).sum() < agrees.sum():
        return first.refined()
    matches = closer.refined()
    corner0, corner1 = (np.array(box[:2], np.float32) for box in boxes)
    return Matches(matches.keypoints0 + corner0, matches.keypoints1 + corner1, matches.scores)


def _exact_look(matches: Matches) -> CoarseLook:
    return CoarseLook(matches, cell=0.0, refined=lambda: matches)


def _agreeing(look: CoarseLook, images: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return booleans (M,): which matches agree with one epipolar geometry."""
    matches = look.matches
    if len(matches) < MIN_AGREEING:
        return np.zeros(len(matches), bool)
    tolerance = TOLERANCE * max(max(image.shape) for image in images)
    tolerance = max(tolerance, CELL_TOLERANCE * look.cell)
    return agree_with_one_epipolar_geometry(matches.keypoints0, matches.keypoints1, tolerance)


def _shared_part(points: np.ndarray, image: np.ndarray) -> Box:
    """Return the box around most of the points, with a margin, and not too narrow."""
    size = np.array([image.shape[1], image.shape[0]], np.float64)
    low, high = np.percentile(points, [OUTLYING, 100 - OUTLYING], axis=0)
    sides = (high - low) * (1 + 2 * MARGIN)
    sides = np.minimum(np.maximum(sides, MIN_ASPECT * sides.max()), size)
    low = np.clip((low + high - sides) / 2, 0, size - sides)
    left, top = np.floor(low).astype(int)
    right, bottom = np.minimum(np.ceil(low + sides) + 1, size).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _gain(box: Box, image: np.ndarray) -> float:
    """Return how much larger what is in the box is seen, if only that is seen."""
    left, top, right, bottom = box
    return max(image.shape[:2]) / max(right - left, bottom - top)


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    return np.ascontiguousarray(image[top:bottom, left:right])
