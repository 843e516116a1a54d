"""A second look at what two photos share.

A network sees photos reduced to a size of its own. Where they share a part only, most of its pixels
are spent on what the other photo does not show. The matches of the first look tell where the shared
part lies; cut out of both photos, it is seen with more pixels, and with less beside it to confuse.
"""

from __future__ import annotations

import numpy as np

from sfm_matchers.geometry.robust_estimation import agree_with_one_epipolar_geometry
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels, the last two excluded

TOLERANCE = 1 / 768  # of the photo's longer side, distance of a match from its epipolar line
MIN_AGREEING = 15  # matches, as many as COLMAP asks of a pair
MIN_GAIN = 1.15  # times as many pixels along a side are asked of a second look
OUTLYING = 1.0  # percent of the agreeing matches that the shared part may leave out at each side
MARGIN = 0.1  # of the shared part, added at each side
MIN_ASPECT = 0.5  # shorter side of a cut over its longer side


def match_overlap(
    matcher: DetectorFreeMatcher, image0: np.ndarray, image1: np.ndarray, matches: Matches
) -> Matches:
    """Match again what two photos share, if it is a small enough part of one of them.

    Args:
        matcher: what has matched the whole photos.
        image0: RGB (H, W, 3) uint8, photo 0.
        image1: photo 1, as it was matched.
        matches: of the whole photos.

    Returns:
        The matches of the shared part, if at least as many of them agree with one epipolar
        geometry, else `matches`; both in pixels of the whole photos.
    """
    images = (image0, image1)
    agrees = _agreeing(matches, images)
    if agrees.sum() < MIN_AGREEING:
        return matches
    points = (matches.keypoints0[agrees], matches.keypoints1[agrees])
    boxes = [_shared_part(*both) for both in zip(points, images, strict=True)]
    if max(map(_gain, boxes, images)) < MIN_GAIN:
        return matches
    encoded = (matcher.encode(_cut(*both)) for both in zip(images, boxes, strict=True))
    closer = matcher.match_encoded(*encoded)
    corners = [np.array(box[:2], np.float32) for box in boxes]
    closer = Matches(closer.keypoints0 + corners[0], closer.keypoints1 + corners[1], closer.scores)
    return closer if _agreeing(closer, images).sum() >= agrees.sum() else matches


def _agreeing(matches: Matches, images: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return booleans (M,): which matches agree with one epipolar geometry."""
    if len(matches) < MIN_AGREEING:
        return np.zeros(len(matches), bool)
    tolerance = TOLERANCE * max(max(image.shape) for image in images)
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
