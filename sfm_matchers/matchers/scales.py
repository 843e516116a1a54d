"""Photos taken from far and near: one is reduced, until both show things at one scale.

A network on images matches what it sees at up to twice the size or so. Of a pair in which hardly
anything agrees, small copies are tried, one of them smaller still: where much agrees then, its
matches tell how much larger one photo shows what they share.
"""

from __future__ import annotations

import numpy as np

from sfm_matchers.matchers.looks import MIN_AGREEING, Images, agreeing, exact_look, look_at
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches, ResizingMatcher
from sfm_matchers.photos.resizing import reduced, to_original

SMALL_SIDE = 512  # pixels, longer side of the small copies; half of it of those smaller still
# Photos of two places have fewer matches as a rule, so that most of their pairs cost nothing more.
MIN_MATCHES = 15
MAX_AGREEING = 40  # with more the photos are matched as they are
MIN_GROWTH = 1.5  # times as many must agree, though small copies have a quarter of the cells
MIN_SCALE = 1.25  # times as large; less is no other scale


def at_one_scale(matcher: DetectorFreeMatcher, images: Images, num_agreeing: int) -> Images | None:
    """Reduce one of two photos, if that shows what they share at one scale.

    Args:
        matcher: of images.
        images: as they were looked at.
        num_agreeing: matches of that look that agree with one epipolar geometry.

    Returns:
        The photos, one of them smaller; None where another scale does not help.
    """
    most, scale = max(MIN_AGREEING, MIN_GROWTH * num_agreeing), 1.0
    sides = [_side_seen(matcher, image) for image in images]
    for small_sides in ((SMALL_SIDE, SMALL_SIDE // 2), (SMALL_SIDE // 2, SMALL_SIDE)):
        small = (reduced(images[0], small_sides[0]), reduced(images[1], small_sides[1]))
        look = exact_look(look_at(matcher, small).refined())
        agrees = agreeing(look, small)
        if agrees.sum() >= most:
            most = agrees.sum()
            spread0, spread1 = (
                np.sqrt(np.prod(points[agrees].std(axis=0))) / max(copy.shape) * side
                for points, copy, side in zip(
                    (look.matches.keypoints0, look.matches.keypoints1), small, sides, strict=True
                )
            )
            scale = spread0 / max(spread1, 1e-6)
    if max(scale, 1 / scale) < MIN_SCALE:
        return None
    if scale > 1:
        return reduced(images[0], round(sides[0] / scale)), images[1]
    return images[0], reduced(images[1], round(sides[1] * scale))


def in_whole(matches: Matches, copies: Images, images: Images) -> Matches:
    """Bring points of reduced copies to the photos."""
    scales = [
        (image.shape[1] / copy.shape[1], image.shape[0] / copy.shape[0])
        for image, copy in zip(images, copies, strict=True)
    ]
    return Matches(
        to_original(matches.keypoints0, scales[0]),
        to_original(matches.keypoints1, scales[1]),
        matches.scores,
    )


def _side_seen(matcher: DetectorFreeMatcher, image: np.ndarray) -> int:
    """Return the longer side, in pixels, at which the matcher sees a photo."""
    longer: int = max(image.shape)
    return min(longer, matcher.resize_max) if isinstance(matcher, ResizingMatcher) else longer
