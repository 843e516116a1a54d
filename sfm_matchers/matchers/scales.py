"""Photos taken from far and near: one is reduced, until both show things at one scale.

A network on images matches what it sees at up to twice the size or so. Of a pair in which hardly
anything agrees, small copies are tried, one of them smaller still: where much agrees then, its
matches tell how much larger one photo shows what they share.
"""

from __future__ import annotations

import numpy as np

from sfm_matchers.matchers.looks import MIN_AGREEING, Images, agreeing, exact_look, look_at
from sfm_matchers.matchers.protocols import (
    CoarseLook,
    DetectorFreeMatcher,
    Matches,
    ResizingMatcher,
)
from sfm_matchers.photos.resizing import reduced, to_original

SMALL_SIDE = 512  # pixels, longer side of the small copies; half of it of those smaller still
# Half or more of the pairs of photos of different places have fewer, and cost nothing more.
MIN_MATCHES = 15
MAX_AGREEING = 40  # with more the photos are matched as they are
MIN_GROWTH = 1.5  # times as many must agree, though small copies have a quarter of the cells
MIN_SCALE = 1.25  # times as large, as the matcher sees them; less is no other scale


def find_scale(matcher: DetectorFreeMatcher, images: Images, num_agreeing: int) -> float | None:
    """Find how much larger one of two photos shows what they share.

    Args:
        matcher: of images.
        images: as they were looked at.
        num_agreeing: matches of that look that agree with one epipolar geometry.

    Returns:
        Pixels of photo 0 for one of photo 1; None where another scale does not help.
    """
    most, scale = max(MIN_AGREEING, MIN_GROWTH * num_agreeing), None
    for sides in ((SMALL_SIDE, SMALL_SIDE // 2), (SMALL_SIDE // 2, SMALL_SIDE)):
        copies = (reduced(images[0], sides[0]), reduced(images[1], sides[1]))
        look = exact_look(look_at(matcher, copies).refined())
        agrees = agreeing(look, copies)
        if agrees.sum() >= most:
            most = agrees.sum()
            matches = seen_whole(look, copies, images).matches.select(agrees)
            scale = _spread(matches.keypoints0) / _spread(matches.keypoints1)
    if scale is None or max(larger := _larger(matcher, images, scale), 1 / larger) < MIN_SCALE:
        return None
    return scale


def at_one_scale(matcher: DetectorFreeMatcher, images: Images, scale: float) -> Images:
    """Reduce the one of two photos, or of cuts of them, that the matcher would see larger.

    Args:
        matcher: of images.
        images: the photos, or cuts of them.
        scale: pixels of photo 0 for one of photo 1.
    """
    larger = _larger(matcher, images, scale)
    if larger > 1:
        return reduced(images[0], round(_side_seen(matcher, images[0]) / larger)), images[1]
    return images[0], reduced(images[1], round(_side_seen(matcher, images[1]) * larger))


def seen_whole(look: CoarseLook, copies: Images, images: Images) -> CoarseLook:
    """Return a look at reduced copies in pixels of the photos."""
    factors = [
        (image.shape[1] / copy.shape[1], image.shape[0] / copy.shape[0])
        for image, copy in zip(images, copies, strict=True)
    ]

    def whole(matches: Matches) -> Matches:
        return Matches(
            to_original(matches.keypoints0, factors[0]),
            to_original(matches.keypoints1, factors[1]),
            matches.scores,
        )

    cell = look.cell * max(*factors[0], *factors[1])
    return CoarseLook(whole(look.matches), cell, lambda: whole(look.refined()))


def _larger(matcher: DetectorFreeMatcher, images: Images, scale: float) -> float:
    """Return how many times as large as in photo 1 the matcher sees things in photo 0."""
    shares = [_side_seen(matcher, image) / max(image.shape) for image in images]
    return scale * shares[0] / shares[1]


def _side_seen(matcher: DetectorFreeMatcher, image: np.ndarray) -> int:
    """Return the longer side, in pixels, at which the matcher sees a photo."""
    longer: int = max(image.shape)
    return min(longer, matcher.resize_max) if isinstance(matcher, ResizingMatcher) else longer


def _spread(points: np.ndarray) -> float:
    return float(np.sqrt(np.prod(points.std(axis=0).clip(min=1.0))))
