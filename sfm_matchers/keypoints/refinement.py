"""Move keypoints to where the matches that were snapped to them agree.

A match that is snapped to two keypoints is moved at both ends, at each by another offset, and is
wrong by the difference of the two. But it does tell where the keypoints should lie: whatever the
offset of the one is from the matched point in its photo, the other must be off by the same, carried
over into its photo. The keypoints of all photos together are moved to fulfil that in the sense of
least squares, weighted by the matches' scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.geometry.local_affine_maps import local_affine_maps

NUM_STEPS = 30
DAMPING = 0.5  # of the way that a step would move a keypoint; with 1 neighbours overtake each other
REST = 0.01  # score with which a keypoint stays where it is


class SnappedMatches(NamedTuple):
    """Matches of a pair and the keypoints they were snapped to, row by row.

    Attributes:
        pair: image names.
        ids0: (M,) keypoints of image 0.
        ids1: (M,) keypoints of image 1.
        points0: (M, 2) matched points in image 0, pixels.
        points1: (M, 2) matched points in image 1.
        scores: (M,) in 0..1.
    """

    pair: Pair
    ids0: np.ndarray
    ids1: np.ndarray
    points0: np.ndarray
    points1: np.ndarray
    scores: np.ndarray


def refine_keypoints(
    keypoints: Mapping[str, np.ndarray],
    matches: Iterable[SnappedMatches],
    fixed: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Move keypoints so that snapped matches displace them as the matched points were displaced.

    For a match of the points p0 and p1 with the keypoints k0 and k1, and the linear part A of the
    affine map of photo 0 to photo 1 around it, this is k1 - p1 = A (k0 - p0).

    Args:
        keypoints: (K, 2) pixels, of all images that have matches.
        matches: of all pairs; 52 bytes of each match are kept.
        fixed: images whose keypoints stay where they are.

    Returns:
        (K, 2) float32 of the images that are not fixed. Keypoints without matches have not moved.
    """
    links = [link for each in matches if (link := _link(each)) is not None]
    start = {name: np.asarray(points, np.float64) for name, points in keypoints.items()}
    placed = dict(start)
    free = [name for name in keypoints if name not in fixed]
    for _ in range(NUM_STEPS if links else 0):
        wanted = _wanted(links, start, placed)
        for name in free:
            placed[name] = placed[name] + DAMPING * (wanted[name] - placed[name])
    return {name: placed[name].astype(np.float32) for name in free}


class _Link(NamedTuple):
    """What the matches of a pair say: k1 = A k0 + shift; `back` are the inverses of A."""

    pair: Pair
    ids0: np.ndarray
    ids1: np.ndarray
    shift: np.ndarray
    scores: np.ndarray
    linear: np.ndarray
    back: np.ndarray


def _link(matches: SnappedMatches) -> _Link | None:
    points0, points1 = (
        np.asarray(points, np.float64) for points in (matches.points0, matches.points1)
    )
    linear = local_affine_maps(points0, points1)
    if linear is None:
        return None
    linear = linear.astype(np.float32)
    ids0, ids1 = (np.asarray(ids, np.int32) for ids in (matches.ids0, matches.ids1))
    shift = (points1 - _carried(linear, points0)).astype(np.float32)
    scores = np.asarray(matches.scores, np.float32)
    return _Link(matches.pair, ids0, ids1, shift, scores, linear, np.linalg.inv(linear))


def _carried(linear: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (linear @ points[..., None])[..., 0]


def _wanted(
    links: Sequence[_Link], start: Mapping[str, np.ndarray], placed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return where its matches want each keypoint, the others being where they are."""
    sums = {name: REST * points for name, points in start.items()}
    weights = {name: np.full((len(points), 1), REST) for name, points in start.items()}

    def add(name: str, ids: np.ndarray, points: np.ndarray, scores: np.ndarray) -> None:
        # Matches are one to one, so that no keypoint is named twice.
        sums[name][ids] += scores[:, None] * points
        weights[name][ids] += scores[:, None]

    for (name0, name1), ids0, ids1, shift, scores, linear, back in links:
        add(name1, ids1, _carried(linear, placed[name0][ids0]) + shift, scores)
        add(name0, ids0, _carried(back, placed[name1][ids1] - shift), scores)
    return {name: sums[name] / weights[name] for name in sums}
