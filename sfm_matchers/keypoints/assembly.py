"""Correspondences of many pairs to keypoints of each photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.keypoints.grid import (
    AggregationOptions,
    Election,
    assign_to_keypoints,
    best_rows,
    elect_keypoints,
    quantize,
)
from sfm_matchers.keypoints.refinement import SnappedMatches, refine_keypoints

Correspondences = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Points (M, 2) in image 0, points (M, 2) in image 1, scores (M,): row by row, float32."""


def unique_matches(ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the rows that are the best of both their keypoints, in ascending order.

    A row with an id of -1 is dropped. A row that is beaten on one side is dropped even if the
    better one is dropped too. Of equal scores the first row is the best.

    Args:
        ids0: (M,) keypoints in image 0.
        ids1: (M,) keypoints in image 1.
        scores: (M,) confidence.

    Returns:
        (m,) int64, indices into the M rows.
    """
    valid = np.flatnonzero((ids0 >= 0) & (ids1 >= 0))
    ids0, ids1, scores = ids0[valid], ids1[valid], scores[valid]
    best0, best1 = best_rows(ids0, scores)[ids0], best_rows(ids1, scores)[ids1]
    rows = np.arange(len(valid))
    return valid[(best0 == rows) & (best1 == rows)]


def matches0_from_ids(
    ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray, num_keypoints0: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turn the keypoints of M correspondences into one-to-one matches in hloc's layout.

    Args:
        ids0: (M,) keypoint of each correspondence in image 0, or -1.
        ids1: (M,) the same in image 1.
        scores: (M,) confidence.
        num_keypoints0: N0, the number of keypoints of image 0.

    Returns:
        ``matches0`` (N0,) int32, the keypoint of image 1 or -1, and ``matching_scores0`` (N0,)
        float16, 0 where unmatched.
    """
    rows = unique_matches(ids0, ids1, scores)
    return _matches0(ids0[rows], ids1[rows], scores[rows], num_keypoints0)


def _matches0(
    ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray, num_keypoints0: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lay matches, each keypoint in one at most, out as `matches0_from_ids` does."""
    matches0 = np.full(num_keypoints0, -1, dtype=np.int32)
    matching_scores0 = np.zeros(num_keypoints0, dtype=np.float16)
    matches0[ids0] = ids1
    matching_scores0[ids0] = scores
    return matches0, matching_scores0


class ImageKeypoints(NamedTuple):
    """A finished image: keypoints (K, 2) float32 and their scores (K,) float32."""

    name: str
    keypoints: np.ndarray
    scores: np.ndarray


class PairMatches(NamedTuple):
    """A finished pair, see `matches0_from_ids`."""

    pair: Pair
    matches0: np.ndarray
    matching_scores0: np.ndarray


def assemble(
    correspondences: Mapping[Pair, Correspondences],
    options: AggregationOptions,
    fixed_keypoints: Mapping[str, np.ndarray] | None = None,
) -> Iterator[ImageKeypoints | PairMatches]:
    """Build the keypoints of all images and the matches of all pairs.

    One image is in memory at a time, with all its pairs; of a pair that waits for its second
    image only the keypoint of each point is kept, 4 bytes. Each pair is read twice. Where
    keypoints are refined all of them are in memory, with 24 bytes of each match, and each pair is
    read three times. The result does not depend on the order of the pairs.

    Args:
        correspondences: the matches of each pair (name0, name1).
        options: how points become keypoints.
        fixed_keypoints: keypoints (K, 2) of images that have some already; those stay as they
            are.

    Yields:
        `ImageKeypoints` of each image that is not fixed, and `PairMatches` of each pair once both
        its images are finished.

    Raises:
        InputError: the arrays of a pair differ in length or hold values that are not finite.

    Example:
        >>> points = np.array([[10.2, 20.1], [50.0, 60.4]])
        >>> correspondences = {("a.jpg", "b.jpg"): (points, points + 5, np.array([0.8, 0.9]))}
        >>> in_a, in_b, matches = assemble(correspondences, AggregationOptions())
        >>> in_a.keypoints
        array([[49.5, 60.5],
               [10.5, 20.5]], dtype=float32)
        >>> matches.matches0
        array([0, 1], dtype=int32)
    """
    fixed = {} if fixed_keypoints is None else fixed_keypoints
    snapped = _snap(correspondences, options, fixed)
    if options.refined:
        yield from _refined(snapped, correspondences, fixed)
        return
    for result in snapped:
        if isinstance(result, ImageKeypoints):
            yield result
        else:
            yield result.matched()


class _Snapped(NamedTuple):
    """A pair whose points have keypoints, with the arguments of `matches0_from_ids`."""

    pair: Pair
    ids0: np.ndarray
    ids1: np.ndarray
    scores: np.ndarray
    num_keypoints0: int

    def matched(self) -> PairMatches:
        matches = matches0_from_ids(self.ids0, self.ids1, self.scores, self.num_keypoints0)
        return PairMatches(self.pair, *matches)


class _Unique(NamedTuple):
    """The one-to-one matches of a pair: rows of its correspondences, keypoints and scores."""

    pair: Pair
    rows: np.ndarray
    ids0: np.ndarray
    ids1: np.ndarray
    scores: np.ndarray
    num_keypoints0: int

    @classmethod
    def of(cls, snapped: _Snapped) -> _Unique:
        rows = unique_matches(snapped.ids0, snapped.ids1, snapped.scores)
        ids0, ids1 = (ids[rows].astype(np.int32) for ids in (snapped.ids0, snapped.ids1))
        scores = snapped.scores[rows]
        return cls(snapped.pair, rows.astype(np.int32), ids0, ids1, scores, snapped.num_keypoints0)

    def matched(self) -> PairMatches:
        matches = _matches0(self.ids0, self.ids1, self.scores, self.num_keypoints0)
        return PairMatches(self.pair, *matches)


def _snap(
    correspondences: Mapping[Pair, Correspondences],
    options: AggregationOptions,
    fixed: Mapping[str, np.ndarray],
) -> Iterator[ImageKeypoints | _Snapped]:
    """Give each point a keypoint, image by image."""
    pairs_of_image: dict[str, list[Pair]] = {}
    for pair in _hloc_order(correspondences, fixed):
        for name in pair:
            pairs_of_image.setdefault(name, []).append(pair)

    waiting: dict[Pair, tuple[np.ndarray, int]] = {}
    for name, pairs in pairs_of_image.items():
        sides = [_read_side(correspondences, pair, pair.index(name)) for pair in pairs]
        lengths = [len(scores) for _, scores in sides]
        points, scores = (np.concatenate(arrays) for arrays in zip(*sides, strict=True))
        if name in fixed:
            keypoints = fixed[name]
            ids = assign_to_keypoints(points, keypoints, options.max_error)
        else:
            exact = [_is_query(name, pair, options, fixed) for pair in pairs]
            election = _build_keypoints(points, scores, np.repeat(exact, lengths), options)
            keypoints, ids = election.keypoints, election.ids
            yield ImageKeypoints(name, keypoints, election.scores)

        ends = np.cumsum(lengths)[:-1]
        for pair, own, (_, own_scores) in zip(pairs, np.split(ids, ends), sides, strict=True):
            if pair not in waiting:
                waiting[pair] = own.astype(np.int32), len(keypoints)
                continue
            other, num_other = waiting.pop(pair)
            if name == pair[0]:
                yield _Snapped(pair, own, other, own_scores, len(keypoints))
            else:
                yield _Snapped(pair, other, own, own_scores, num_other)


def _refined(
    snapped: Iterable[ImageKeypoints | _Snapped],
    correspondences: Mapping[Pair, Correspondences],
    fixed: Mapping[str, np.ndarray],
) -> Iterator[ImageKeypoints | PairMatches]:
    """Match, and move the keypoints; the matches stay those of the keypoints before."""
    images: list[ImageKeypoints] = []
    matches: list[_Unique] = []
    for result in snapped:
        if isinstance(result, ImageKeypoints):
            images.append(result)
        else:
            matches.append(_Unique.of(result))

    def with_points() -> Iterator[SnappedMatches]:
        for one in matches:
            points0, points1, _ = correspondences[one.pair]
            points = points0[one.rows], points1[one.rows]
            yield SnappedMatches(one.pair, one.ids0, one.ids1, *points, one.scores)

    keypoints = {image.name: image.keypoints for image in images}
    matched = {name for one in matches for name in one.pair}
    keypoints |= {name: fixed[name] for name in matched if name in fixed}
    moved = refine_keypoints(keypoints, with_points(), fixed)
    for image in images:
        yield image._replace(keypoints=moved[image.name])
    for one in matches:
        yield one.matched()


def _hloc_order(pairs: Iterable[Pair], fixed: Mapping[str, np.ndarray]) -> list[Pair]:
    """Sort pairs as hloc does: those of images with few pairs first, then by name.

    The order numbers the keypoints and decides ties. Pairs of two fixed images do not count:
    whether they are assembled again must not change the others.
    """
    pairs = list(pairs)
    counts = Counter(
        name for pair in pairs for name in pair if not all(image in fixed for image in pair)
    )
    return sorted(pairs, key=lambda pair: (min(counts[name] for name in pair), pair))


def _read_side(
    correspondences: Mapping[Pair, Correspondences], pair: Pair, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (M, 2) of one image of a pair, and their scores (M,)."""
    *points, scores = (np.asarray(array, dtype=np.float32) for array in correspondences[pair])
    if not len(points[0]) == len(points[1]) == len(scores):
        problem = "differ in length"
    elif not (np.isfinite(points[side]).all() and np.isfinite(scores).all()):
        problem = "hold values that are not finite"
    else:
        return points[side], scores
    raise InputError(f"the correspondences of {pair[0]!r}, {pair[1]!r} {problem}: match them again")


def _is_query(
    name: str, pair: Pair, options: AggregationOptions, fixed: Mapping[str, np.ndarray]
) -> bool:
    """Return whether the points of `name` stay where they are, see `max_keypoints`."""
    return options.max_keypoints is None and name == pair[0] and pair[1] in fixed


def _build_keypoints(
    points: np.ndarray, scores: np.ndarray, is_exact: np.ndarray, options: AggregationOptions
) -> Election:
    """Elect the keypoints of an image, keep the best, and assign the points to those."""
    cells, bins = quantize(points, options.max_error, options.cell_size)
    cells, bins = (np.where(is_exact[:, None], points, nodes) for nodes in (cells, bins))
    election = elect_keypoints(cells, bins, scores)
    if options.max_keypoints is None:
        return election
    best = np.argsort(-election.scores, kind="stable")[: options.max_keypoints]
    keypoints = election.keypoints[best]
    ids = assign_to_keypoints(points, keypoints, options.max_error)
    return Election(keypoints, election.scores[best], ids)
