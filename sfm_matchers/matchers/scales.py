"""Photos seen in several sizes, and photos taken from far and near.

A network on images matches what it sees at up to twice the size or so, and by what is around it. Of
a pair in which little agrees, small copies are tried: blurred or enlarged photos and bare walls
hold no detail to match by, and show more to a network where they are small. What is right is found
in several sizes, what is wrong changes with the size. So matches of several sizes count together,
and where they agree beyond chance, those of still more sizes are joined to them.
Where hardly anything agrees, one copy smaller still is tried against the other: where much agrees
then, its matches tell how much larger one photo shows what they share, and it is reduced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfm_matchers.matchers.looks import (
    MIN_AGREEING,
    Images,
    agreeing,
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
)
from sfm_matchers.photos.resizing import reduced, to_original

# Pixels, longer sides of small copies: of those that tell whether more is to be seen, and of those
# that are looked at then; and the evidence that each of them asks for. Photos of different places
# have up to 2.4 with the former, 2.2 with all.
SMALL_SIDES, MORE_SIDES = (512, 384), (640, 448, 320)
PROMISING_EVIDENCE, MIN_EVIDENCE = 2.2, 2.6
CLEARLY_MORE = 1.2  # times the evidence of the photos as they are
ONE_PLACE = 1 / 200  # of a photo's longer side; matches of several sizes that are nearer count once
# Half or more of the pairs of photos of different places have fewer, and cost nothing more.
MIN_MATCHES = 15
# Where so many of the matches agree, or so clearly, the photos are seen well enough.
ENOUGH_AGREEING, CLEAR_EVIDENCE = 0.5, 5.0
FAR_SIDE = 512  # pixels, longer side of the copy of one photo, half of it of the other one
MAX_AGREEING = 40  # with more no other scale is tried
MIN_GROWTH = 1.5  # times as many must agree, though smaller copies have fewer cells
MIN_SCALE = 1.25  # times as large, as the matcher sees them; less is no other scale


def see_better(
    matcher: DetectorFreeMatcher, images: Images, matches: Matches, agrees: np.ndarray
) -> Matches | float | None:
    """Find how two photos are seen better, if little agrees in them.

    Args:
        matcher: of images.
        images: as they were looked at.
        matches: M of that look.
        agrees: (M,) bool, which of them agree with one epipolar geometry.

    Returns:
        These matches and those of smaller copies; or the pixels of photo 0 for one of photo 1; None
        where nothing is better.
    """
    most, before = int(agrees.sum()), evidence(agrees)
    if len(agrees) < MIN_MATCHES or before >= CLEAR_EVIDENCE:
        return None
    if most > max(MAX_AGREEING, ENOUGH_AGREEING * len(agrees)):
        return None
    copies = _SmallCopies(matcher, images)
    looks = [matches, *copies.looks(SMALL_SIDES)]
    joined, now = _joined(looks, images)
    if most <= MAX_AGREEING:
        scale = _find_scale(matcher, copies, max(most, int(now.sum()) // len(looks)))
        if scale is not None:
            return scale
    if evidence(now) < PROMISING_EVIDENCE:
        return None
    joined, now = _joined([joined, *copies.looks(MORE_SIDES)], images)
    return joined if evidence(now) >= max(MIN_EVIDENCE, CLEARLY_MORE * before) else None


def _joined(looks: Sequence[Matches], images: Images) -> tuple[Matches, np.ndarray]:
    """Return the matches of several looks, and which of them (M,) agree.

    What several looks match is taken from the first one, so that it counts once.
    """
    joined = looks[0]
    radius = ONE_PLACE * max(max(image.shape) for image in images)
    for look in looks[1:]:
        known, new = _both_points(joined), _both_points(look)
        is_near = np.ones((len(new), len(known)), bool)
        for side in range(4):  # one at a time, as there may be thousands of both
            is_near &= np.abs(new[:, None, side] - known[:, side]) < radius
        others = look.select(np.flatnonzero(~is_near.any(axis=1)))
        joined = Matches(
            np.concatenate([joined.keypoints0, others.keypoints0]),
            np.concatenate([joined.keypoints1, others.keypoints1]),
            np.concatenate([joined.scores, others.scores]),
        )
    return joined, agreeing(exact_look(joined), images)


def _both_points(matches: Matches) -> np.ndarray:
    return np.concatenate([matches.keypoints0, matches.keypoints1], axis=1)


class _SmallCopies:
    """Small copies of two photos; each is encoded once."""

    def __init__(self, matcher: DetectorFreeMatcher, images: Images) -> None:
        self._matcher, self.images = matcher, images
        self._encoded: dict[tuple[int, int], EncodedImage] = {}

    def looks(self, sides: Sequence[int]) -> list[Matches]:
        """Return the matches of copies of each size that is clearly smaller than what is seen."""
        if not isinstance(self._matcher, ResizingMatcher):
            return []
        seen = max(_side_seen(self._matcher, image) for image in self.images)
        return [self._seen(side, side)[0] for side in sides if seen >= MIN_SCALE * side]

    def look(self, side0: int, side1: int) -> tuple[Matches, np.ndarray]:
        """Return the matches of copies, in pixels of the photos, and which (M,) agree.

        Args:
            side0: longer side of the copy of photo 0.
            side1: of photo 1.
        """
        matches, look, copies = self._seen(side0, side1)
        return matches, agreeing(look, copies)

    def _seen(self, side0: int, side1: int) -> tuple[Matches, CoarseLook, Images]:
        """Return the matches in pixels of the photos, the look at the copies, and the copies."""
        copies = reduced(self.images[0], side0), reduced(self.images[1], side1)
        encoded = self._encode(copies[0], (0, side0)), self._encode(copies[1], (1, side1))
        look = exact_look(first_looks(self._matcher, [encoded])[0].refined())
        return seen_whole(look, copies, self.images).matches, look, copies

    def _encode(self, copy: np.ndarray, key: tuple[int, int]) -> EncodedImage:
        if key not in self._encoded:
            self._encoded[key] = self._matcher.encode(copy)
        return self._encoded[key]


def _find_scale(
    matcher: DetectorFreeMatcher, copies: _SmallCopies, num_agreeing: int
) -> float | None:
    """Find how much larger one of two photos shows what they share; None where it is no matter."""
    most, scale = max(MIN_AGREEING, MIN_GROWTH * num_agreeing), None
    for sides in ((FAR_SIDE, FAR_SIDE // 2), (FAR_SIDE // 2, FAR_SIDE)):
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
