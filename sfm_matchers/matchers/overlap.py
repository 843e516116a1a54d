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

from sfm_matchers.matchers.looks import MIN_AGREEING, Images, agreeing, exact_look, look_at
from sfm_matchers.matchers.protocols import CoarseLook, DetectorFreeMatcher, Matches
from sfm_matchers.matchers.scales import at_one_scale, see_better, seen_whole

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels, the last two excluded

# Cells, and their share of all, whose agreement exact points would not change. Of fewer another
# geometry may be found than exact points have, and cells that fit it by chance lie anywhere.
MIN_CERTAIN, CERTAIN_SHARE = 300, 0.75
MIN_GAIN = 1.15  # times as many pixels along a side are asked of a second look
OUTLYING = 1.0  # percent of the agreeing matches that the shared part may leave out at each side
MARGIN = 0.1  # of the shared part, added at each side
MIN_ASPECT = 0.5  # shorter side of a cut over its longer side


def match_overlap(
    matcher: DetectorFreeMatcher, image0: np.ndarray, image1: np.ndarray, first: CoarseLook
) -> Matches:
    """Match what two photos share, again if it is a small enough part of one of them.

    Photos in which little agrees are brought to one scale before, or seen in several sizes instead,
    if that helps.

    Args:
        matcher: what has looked at the whole photos.
        image0: RGB (H, W, 3) uint8, photo 0.
        image1: photo 1, as it was looked at.
        first: the look at the whole photos, of `looks.first_looks`.

    Returns:
        The matches of the shared part, if in that look at least as many matches agree with one
        epipolar geometry, else those of the first look; or those of several sizes. All are in
        pixels of the whole photos.
    """
    images = (image0, image1)
    first, agrees = _sure_of(first, images)
    better = see_better(matcher, images, first.matches, agrees)
    if isinstance(better, Matches):
        return better
    scale = better
    if scale is not None:
        copies = at_one_scale(matcher, images, scale)
        look, agrees = _sure_of(look_at(matcher, copies), copies)
        first = seen_whole(look, copies, images)
    if agrees.sum() < MIN_AGREEING:
        return first.refined()
    points = (first.matches.keypoints0[agrees], first.matches.keypoints1[agrees])
    boxes = [_shared_part(*both) for both in zip(points, images, strict=True)]
    if max(map(_gain, boxes, images)) < MIN_GAIN:
        return first.refined()
    closer = _look_at_parts(matcher, images, boxes, scale)
    if not first.cell:
        closer = exact_look(closer.refined())
    if agreeing(closer, images).sum() < agrees.sum():
        return first.refined()
    matches = closer.refined()
    corner0, corner1 = (np.array(box[:2], np.float32) for box in boxes)
    return Matches(matches.keypoints0 + corner0, matches.keypoints1 + corner1, matches.scores)


def _sure_of(look: CoarseLook, images: Images) -> tuple[CoarseLook, np.ndarray]:
    """Return a look, by exact points unless enough cells agree, and which matches (M,) agree."""
    agrees = agreeing(look, images)
    if look.cell and agrees.sum() < max(MIN_CERTAIN, CERTAIN_SHARE * len(agrees)):
        look = exact_look(look.refined())
        agrees = agreeing(look, images)
    return look, agrees


def _look_at_parts(
    matcher: DetectorFreeMatcher, images: Images, boxes: Sequence[Box], scale: float | None
) -> CoarseLook:
    """Look at what is in the boxes; points are in their pixels."""
    cuts = (_cut(images[0], boxes[0]), _cut(images[1], boxes[1]))
    copies = at_one_scale(matcher, cuts, scale)
    return seen_whole(look_at(matcher, copies), copies, cuts)


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
