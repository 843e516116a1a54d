"""Photos that are seen better small, and photos taken from far and near.

A network on images matches what it sees at up to twice the size or so, and by what is around it. Of
a pair in which little agrees, small copies are tried. If more agrees in them, the photos hold no
detail to match by (they are blurred, enlarged, or show bare walls), and are seen at that size.
Where hardly anything agrees then, one copy smaller still is tried against the other: where much
agrees, its matches tell how much larger one photo shows what they share, and it is reduced.
"""

from __future__ import annotations

import numpy as np

from sfm_matchers.matchers.looks import (
    MIN_AGREEING,
    Images,
    agreeing,
    confirm,
    evidence,
    exact_look,
    first_looks,
)
from sfm_matchers.matchers.protocols import (
    CoarseLook,
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
    ResizingMatcher,
    that_sees_at,
)
from sfm_matchers.photos.resizing import reduced, to_original

SMALL_SIDE = 512  # pixels, longer side of the small copies; half of it of those smaller still
# Half or more of the pairs of photos of different places have fewer, and cost nothing more.
MIN_MATCHES = 15
ENOUGH_AGREEING = 0.5  # of the matches; where so many agree the photos are seen well enough
# Of small copies; photos of different places have 1.8 to 3.1. With less, matches of the photos as
# they are must confirm what the small copies show.
CLEAR_EVIDENCE, CLEARLY_MORE = 3.0, 1.2  # the latter times that of the photos
MAX_AGREEING = 40  # with more no other scale is tried
MIN_GROWTH = 1.5  # times as many must agree, though smaller copies have fewer cells
MIN_SCALE = 1.25  # times as large, as the matcher sees them; less is no other scale


def see_better(
    matcher: DetectorFreeMatcher, images: Images, matches: Matches, agrees: np.ndarray
) -> tuple[DetectorFreeMatcher, float | None] | None:
    """Find how two photos are seen better, if little agrees in them.

    Args:
        matcher: of images.
        images: as they were looked at.
        matches: M of that look.
        agrees: (M,) bool, which of them agree with one epipolar geometry.

    Returns:
        A matcher, that may see photos smaller, and the pixels of photo 0 for one of photo 1, None
        where both show things alike; None where nothing is better.
    """
    most = int(agrees.sum())
    if len(agrees) < MIN_MATCHES or most > max(MAX_AGREEING, ENOUGH_AGREEING * len(agrees)):
        return None
    copies, better = _SmallCopies(matcher, images), None
    side = max(_side_seen(matcher, image) for image in images)
    if isinstance(matcher, ResizingMatcher) and side >= MIN_SCALE * SMALL_SIDE:
        small, small_agrees = copies.look(SMALL_SIDE, SMALL_SIDE)
        if _is_better(small, small_agrees, matches, agrees, images):
            most, better = int(small_agrees.sum()), that_sees_at(matcher, SMALL_SIDE)
    if most <= MAX_AGREEING:
        scale = _find_scale(matcher, copies, most)
        if scale is not None:
            return matcher, scale
    return None if better is None else (better, None)


def _is_better(
    small: Matches, small_agrees: np.ndarray, matches: Matches, agrees: np.ndarray, images: Images
) -> bool:
    """Tell whether small copies show more than photos as they are."""
    before, now = evidence(agrees), evidence(small_agrees)
    if now >= max(CLEAR_EVIDENCE, CLEARLY_MORE * before):
        return True
    if now <= before or small_agrees.sum() < MIN_AGREEING:
        return False
    return confirm(matches, small.select(small_agrees), images)


class _SmallCopies:
    """Small copies of two photos; each is encoded once."""

    def __init__(self, matcher: DetectorFreeMatcher, images: Images) -> None:
        self._matcher, self.images = matcher, images
        self._encoded: dict[tuple[int, int], EncodedImage] = {}

    def look(self, side0: int, side1: int) -> tuple[Matches, np.ndarray]:
        """Return the matches of copies, in pixels of the photos, and which (M,) agree.

        Args:
            side0: longer side of the copy of photo 0.
            side1: of photo 1.
        """
        copies = reduced(self.images[0], side0), reduced(self.images[1], side1)
        encoded = self._encode(copies[0], (0, side0)), self._encode(copies[1], (1, side1))
        look = exact_look(first_looks(self._matcher, [encoded])[0].refined())
        return seen_whole(look, copies, self.images).matches, agreeing(look, copies)

    def _encode(self, copy: np.ndarray, key: tuple[int, int]) -> EncodedImage:
        if key not in self._encoded:
            self._encoded[key] = self._matcher.encode(copy)
        return self._encoded[key]


def _find_scale(
    matcher: DetectorFreeMatcher, copies: _SmallCopies, num_agreeing: int
) -> float | None:
    """Find how much larger one of two photos shows what they share; None where it is no matter."""
    most, scale = max(MIN_AGREEING, MIN_GROWTH * num_agreeing), None
    for sides in ((SMALL_SIDE, SMALL_SIDE // 2), (SMALL_SIDE // 2, SMALL_SIDE)):
        matches, agrees = copies.look(*sides)
        if agrees.sum() >= most:
            most = agrees.sum()
            matches = matches.select(agrees)
            scale = _spread(matches.keypoints0) / _spread(matches.keypoints1)
    if scale is None:
        return None
    larger = _larger(matcher, copies.images, scale)
    return scale if max(larger, 1 / larger) >= MIN_SCALE else None


def at_one_scale(matcher: DetectorFreeMatcher, images: Images, scale: float | None) -> Images:
    """Reduce the one of two photos, or of cuts of them, that the matcher would see larger.

    Args:
        matcher: of images.
        images: the photos, or cuts of them.
        scale: pixels of photo 0 for one of photo 1; None where they are alike.
    """
    if scale is None:
        return images
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
