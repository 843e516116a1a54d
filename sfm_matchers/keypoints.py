"""Detector-free matches of many pairs -> keypoints per image and one-to-one matches.

A detector-free matcher invents its points anew in every pair: one corner of a house has as many
slightly different positions as the photo has partners. Structure from motion needs the opposite,
one keypoint per corner that all pairs share. The way there is hloc's, in five steps, and one more,
`keypoint_refinement`, where it is asked for:

1. `quantize`: each point falls into a *cell* of a coarse grid and a *bin* of a finer one;
2. `elect_keypoints`: each cell is one keypoint, placed at its bin with the highest sum of scores;
3. `assign_to_keypoints`: other points go to the nearest keypoint within ``max_error``;
4. `unique_matches`: of all matches that share a keypoint only mutual best ones stay;
5. `assemble`: the four steps over all pairs, one image at a time.

`aggregate` is `assemble` from file to file. Coordinates are pixels of the original photo, (x, y),
with (0, 0) at the centre of the top-left pixel.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import h5py
import numpy as np
from tqdm import tqdm

from sfm_matchers import revisions
from sfm_matchers.errors import InputError
from sfm_matchers.keypoint_refinement import SnappedMatches, refine_keypoints
from sfm_matchers.storage import (
    Arrays,
    Pair,
    StagedFile,
    check_points,
    find_pair,
    fingerprint,
    holds,
    list_groups,
    names_to_pair,
    open_h5,
    read_correspondences,
    read_fingerprint,
    read_keypoints,
    unique_pairs,
)

logger = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")

Correspondences = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Points (M, 2) in image 0, points (M, 2) in image 1, scores (M,): row by row, float32."""


@dataclass(frozen=True)
class AggregationOptions:
    """How points become keypoints; the meaning of each value is hloc's.

    Attributes:
        max_error: pixels. Points are assigned to keypoints at most this far away; its integer
            part is the step of the fine grid of bins (0: every distinct position is a bin).
        cell_size: pixels. Step of the coarse grid, one keypoint per cell; at least ``max_error``,
            which is also the step if ``cell_size`` is None.
        max_keypoints: a number keeps that many keypoints per image, those with the highest
            scores, and then assigns every point again, to the nearest keypoint that was kept,
            across the borders of cells. None keeps all keypoints and ties each point to the
            keypoint of its own cell, which can be a cell diagonal away. None also means
            localization: where `name0` is a new image (the query) and `name1` has keypoints
            already, the points of `name0` are not quantised.
        refined: whether keypoints are moved in the end to where their matches agree, see
            `keypoint_refinement`; not in hloc.
    """

    max_error: float = 1.0
    cell_size: float | None = 1.0
    max_keypoints: int | None = 8192
    refined: bool = False

    def __post_init__(self) -> None:
        if self.max_error < 0 or (self.cell_size is not None and self.cell_size < 0):
            raise InputError("max_error and cell_size are lengths in pixels: they must be >= 0")
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise InputError("max_keypoints must be at least 1, or None to keep all keypoints")


# ---------------------------------------------------------------------------------------------
# 1. Quantization


def snap(points: np.ndarray, step: float) -> np.ndarray:
    """Move points to the nodes of a grid; a step of 0 leaves them where they are.

    Nodes are the multiples of `step` from the corner of the image, which is (-0.5, -0.5), and
    are rounded to 0.01 pixel. A point half-way goes to the node with the even number.

    Args:
        points: (N, 2) float32.
        step: pixels.

    Returns:
        The nodes (N, 2) float32.
    """
    points, spacing = np.asarray(points, dtype=np.float32), np.float32(step)
    if step <= 0:
        return points
    return np.round(np.round((points + 0.5) / spacing) * spacing - 0.5, 2)


def quantize(
    points: np.ndarray, max_error: float, cell_size: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes of each point in the grid of cells and in the grid of bins.

    Args:
        points: (N, 2) float32.
        max_error: pixels, see `AggregationOptions`.
        cell_size: pixels, see `AggregationOptions`.

    Returns:
        Cell nodes (N, 2) float32 and bin nodes (N, 2) float32.
    """
    cell_step = max_error if cell_size is None else max(cell_size, max_error)
    return snap(points, cell_step), snap(points, int(max_error))


# ---------------------------------------------------------------------------------------------
# 2. Election


class Election(NamedTuple):
    """The keypoints of one image, in order of the first appearance of their cells.

    Attributes:
        keypoints: (K, 2) float32, the winning bin of each cell. Neighbouring cells can elect the
            same bin where cells are larger than bins: such twins both stay, as in hloc.
        scores: (K,) float32, sum of the scores in that bin.
        ids: (N,) int64, the keypoint of each point.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    ids: np.ndarray


def elect_keypoints(cells: np.ndarray, bins: np.ndarray, scores: np.ndarray) -> Election:
    """Make one keypoint of each cell: its bin with the highest sum of scores.

    Of equal bins the one that appears first wins. Scores are added in float32, in the order of
    the points.

    Args:
        cells: (N, 2) cell node of each point, from `quantize`.
        bins: (N, 2) bin node of each point.
        scores: (N,) float32 confidence of each point.
    """
    cell_ids, _ = _number_groups(_node_keys(cells))
    _, node_ids = np.unique(_node_keys(bins), return_inverse=True)
    bin_ids, first_rows = _number_groups(cell_ids * len(bins) + node_ids)
    votes = np.zeros(len(first_rows), dtype=np.float32)
    np.add.at(votes, bin_ids, np.asarray(scores, dtype=np.float32))

    winners = _best_rows(cell_ids[first_rows], votes)
    keypoints = np.asarray(bins[first_rows[winners]], dtype=np.float32)
    return Election(keypoints, votes[winners], cell_ids)


def _node_keys(nodes: np.ndarray) -> np.ndarray:
    """Return one integer (N,) int64 per node, equal for equal nodes only."""
    nodes = np.ascontiguousarray(nodes, dtype=np.float32) + 0.0  # -0.0 becomes 0.0
    return nodes.view(np.int64)[:, 0]


def _number_groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct keys in order of first appearance.

    Returns:
        The number of each row (N,) int64 and the first row of each number (G,) int64.
    """
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(keys)
    is_start = _starts_of_runs(keys[order])
    first_rows = np.minimum.reduceat(order, np.flatnonzero(is_start))
    appearance = np.argsort(first_rows)
    number_of_group = np.empty_like(appearance)
    number_of_group[appearance] = np.arange(len(appearance))
    numbers = np.empty_like(order)
    numbers[order] = number_of_group[np.cumsum(is_start) - 1]
    return numbers, first_rows[appearance]


def _best_rows(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the row with the highest score of each id, the first row if scores are equal.

    Args:
        ids: (N,) int64, not negative.
        scores: (N,).

    Returns:
        (max id + 1,) int64, undefined at ids that do not occur.
    """
    best_last = np.argsort(-scores, kind="stable")[::-1]
    best_rows = np.empty(ids.max(initial=-1) + 1, dtype=np.int64)
    best_rows[ids[best_last]] = best_last  # where an id is repeated the last row stays
    return best_rows


def _starts_of_runs(values: np.ndarray) -> np.ndarray:
    """Return a mask (N,) that is True where a value differs from the one before it."""
    starts = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    return starts


# ---------------------------------------------------------------------------------------------
# 3. Assignment to keypoints that exist


def assign_to_keypoints(points: np.ndarray, keypoints: np.ndarray, max_error: float) -> np.ndarray:
    """Return the index of the nearest keypoint of each point, or -1 if none is near enough.

    The search is exact. Of keypoints at the same distance the first is taken, so that all points
    of a place go to the same one of two twins.

    Args:
        points: (N, 2).
        keypoints: (K, 2).
        max_error: pixels; a keypoint at exactly this distance counts.

    Returns:
        (N,) int64.
    """
    ids = np.full(len(points), -1, dtype=np.int64)
    points, keypoints = np.asarray(points, np.float64), np.asarray(keypoints, np.float64)
    counts, candidates = _candidates(points, keypoints, max_error)
    searched = np.flatnonzero(counts)
    if not len(searched):
        return ids
    difference = np.repeat(points, counts, axis=0) - keypoints.take(candidates, axis=0)
    distance = np.sqrt(difference[:, 0] ** 2 + difference[:, 1] ** 2)
    starts = (np.cumsum(counts) - counts)[searched]
    nearest = np.minimum.reduceat(distance, starts)
    is_nearest = distance == np.repeat(nearest, counts[searched])
    first = np.minimum.reduceat(np.where(is_nearest, candidates, len(keypoints)), starts)
    ids[searched] = np.where(nearest <= max_error, first, -1)
    return ids


def _candidates(
    points: np.ndarray, keypoints: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keypoints around each point: all within `radius`, and some further away.

    The plane is divided into squares. A keypoint is listed in the squares that its neighbourhood
    touches, at most four, so that a point has to look into its own square only.

    Returns:
        The number of candidates of each point (N,), and the candidates (sum,), point after point.
    """
    reach = radius * (1 + 1e-9)  # a distance that is rounded down to the radius counts
    size = max(3 * reach, 1.0)
    left, top = np.floor((keypoints - reach) / size).T
    right, bottom = np.floor((keypoints + reach) / size).T
    wide, tall = left < right, top < bottom
    squares, listed = [], []
    for column, row, touched in (
        (left, top, np.arange(len(keypoints))),
        (right, top, np.flatnonzero(wide)),
        (left, bottom, np.flatnonzero(tall)),
        (right, bottom, np.flatnonzero(wide & tall)),
    ):
        squares.append(_square_keys(column[touched], row[touched]))
        listed.append(touched)
    square_of_entry = np.concatenate(squares)
    order = np.argsort(square_of_entry)
    entries, square_of_entry = np.concatenate(listed)[order], square_of_entry[order]

    own_squares, own = np.unique(_square_keys(*np.floor(points / size).T), return_inverse=True)
    starts = np.searchsorted(square_of_entry, own_squares, side="left")
    ends = np.searchsorted(square_of_entry, own_squares, side="right")
    counts = (ends - starts)[own]
    run_starts = np.cumsum(counts) - counts
    positions = np.arange(counts.sum()) + np.repeat(starts[own] - run_starts, counts)
    return counts, entries[positions]


def _square_keys(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return one integer (N,) int64 per square."""
    return (rows.astype(np.int64) << 32) + columns.astype(np.int64)


# ---------------------------------------------------------------------------------------------
# 4. One-to-one matches


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
    best0, best1 = _best_rows(ids0, scores)[ids0], _best_rows(ids1, scores)[ids1]
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


# ---------------------------------------------------------------------------------------------
# 5. All pairs


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
            yield PairMatches(result.pair, *matches0_from_ids(*result[1:]))


class _Snapped(NamedTuple):
    """A pair whose points have keypoints, with the arguments of `matches0_from_ids`."""

    pair: Pair
    ids0: np.ndarray
    ids1: np.ndarray
    scores: np.ndarray
    num_keypoints0: int


def _snap(
    correspondences: Mapping[Pair, Correspondences],
    options: AggregationOptions,
    fixed: Mapping[str, np.ndarray],
) -> Iterator[ImageKeypoints | _Snapped]:
    """Do the first three steps, image by image."""
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
    matches: list[tuple[np.ndarray, _Snapped]] = []
    for result in snapped:
        if isinstance(result, ImageKeypoints):
            images.append(result)
            continue
        rows = unique_matches(*result[1:4]).astype(np.int32)
        ids0, ids1 = (ids[rows].astype(np.int32) for ids in (result.ids0, result.ids1))
        matches.append((rows, result._replace(ids0=ids0, ids1=ids1, scores=result.scores[rows])))

    def with_points() -> Iterator[SnappedMatches]:
        for rows, (pair, ids0, ids1, scores, _) in matches:
            points0, points1, _ = correspondences[pair]
            yield SnappedMatches(pair, ids0, ids1, points0[rows], points1[rows], scores)

    keypoints = {image.name: image.keypoints for image in images}
    matched = {name for _, (pair, *_) in matches for name in pair}
    keypoints |= {name: fixed[name] for name in matched if name in fixed}
    moved = refine_keypoints(keypoints, with_points(), fixed)
    for image in images:
        yield image._replace(keypoints=moved[image.name])
    for _, assigned in matches:
        yield PairMatches(assigned.pair, *_matches0(*assigned[1:]))


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


# ---------------------------------------------------------------------------------------------
# 6. From file to file

Existing = Literal["keep", "update", "overwrite"]

# Finished entries are stored in groups of about this size: small files are slow to merge.
PART_BYTES = 32 << 20


class AggregationSummary(NamedTuple):
    """What `aggregate` has made: images with new keypoints, and pairs with new matches."""

    num_images: int
    num_keypoints: int
    num_pairs: int
    num_matches: int


def aggregate(
    pairs: Iterable[Pair],
    correspondence_path: Path,
    feature_path: Path,
    match_path: Path,
    options: AggregationOptions,
    image_sizes: Mapping[str, tuple[int, int]],
    *,
    fixed_features: Sequence[Path] = (),
    existing: Existing = "keep",
) -> AggregationSummary:
    """Turn a correspondence file into a feature file and a match file.

    Both are committed at the end, the feature file last: an image it holds is finished. A run
    that was interrupted starts again, to the same result. Matches are made again when they are
    missing, or when their correspondences or the keypoints they refer to have changed.

    Images get ``keypoints`` (K, 2) float32, ``scores`` (K,) float32 and ``image_size``; hloc's
    dense matching writes ``score``, but hloc itself only looks for ``scores``. Pairs get
    ``matches0`` (K0,) int32 and ``matching_scores0`` (K0,) float16, in the direction in which
    the correspondences are stored.

    Args:
        pairs: image names; repeated and reversed pairs are dropped.
        correspondence_path: correspondences of all pairs. A match file of hloc's dense matching
            holds them too.
        feature_path: the feature file to make or complete.
        match_path: the match file to make or complete.
        options: how points become keypoints.
        image_sizes: (width, height) in pixels of each image whose keypoints are built.
        fixed_features: feature files whose images keep their keypoints and do not appear in
            `feature_path`. Of several files with one image the last counts.
        existing: what happens to the images that `feature_path` holds already.
            ``keep``: they are fixed too, and new pairs snap to them. This is hloc's rule, and
            what localization needs.
            ``update``: they are kept if all were built from just these pairs, correspondences and
            options, otherwise all are built anew.
            ``overwrite``: they are built anew.

    Returns:
        What was made.

    Raises:
        InputError: a file cannot be read, the correspondences of a pair or the size of an image
            are missing, or `existing` is unknown.
    """
    if existing not in get_args(Existing):
        raise InputError(f"existing={existing!r}: expected one of {', '.join(get_args(Existing))}")
    if Path(correspondence_path).resolve() == Path(match_path).resolve():
        raise InputError(f"{match_path}: correspondences and matches need two different files")
    feature_file, match_file = (
        StagedFile(path, keep_parts=False) for path in (feature_path, match_path)
    )
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_h5(correspondence_path))
        stored_matches = None
        if match_file.path.exists():
            stored_matches = stack.enter_context(open_h5(match_path))
        provenance = _Provenance(_find_correspondences(source, pairs), options)
        fixed = _open_fixed_keypoints(
            stack, fixed_features, feature_file, existing, provenance.of_image
        )
        unsized = [
            name for name in provenance.of_image if not (name in fixed or name in image_sizes)
        ]
        if unsized:
            raise InputError(
                f"image_sizes lacks {len(unsized)} images, the first is {unsized[0]!r}"
            )
        for name, keypoints in fixed.items():
            provenance.add_keypoints(name, keypoints)
        todo = [
            pair
            for pair in provenance.versions
            if not (
                all(name in fixed for name in pair)
                and match_file.is_current(names_to_pair(*pair), provenance.of_pair(pair))
                and stored_matches is not None
                and holds(stored_matches, f"{names_to_pair(*pair)}/matches0")
            )
        ]
        correspondences = _LazyMapping(todo, lambda pair: _read_inside(source, pair, image_sizes))
        results = assemble(correspondences, options, fixed)
        summary = _store(results, len(todo), feature_file, match_file, image_sizes, provenance)
    match_file.commit()
    feature_file.commit()
    if todo:
        logger.info(
            "%d images got %d keypoints, %d of %d pairs got %d matches",
            summary.num_images,
            summary.num_keypoints,
            summary.num_pairs,
            len(provenance.versions),
            summary.num_matches,
        )
    return summary


def _read_inside(
    file: h5py.File, pair: Pair, image_sizes: Mapping[str, tuple[int, int]]
) -> Correspondences:
    """The correspondences of a pair; InputError if they cannot be those of its photos."""
    points0, points1, scores = read_correspondences(file, *pair)
    for name, points in zip(pair, (points0, points1), strict=True):
        check_points(points, image_sizes.get(name), f"{file.filename}: points of {name!r}")
    return points0, points1, scores


def _find_correspondences(file: h5py.File, pairs: Iterable[Pair]) -> dict[Pair, str]:
    """Return each pair, in the direction in which it is stored, with its group's fingerprint."""
    found, missing = {}, []
    for name0, name1 in unique_pairs(pairs):
        entry = find_pair(file, name0, name1)
        if entry is None:
            missing.append((name0, name1))
            continue
        group, is_reversed = entry
        pair = (name1, name0) if is_reversed else (name0, name1)
        found[pair] = read_fingerprint(file, group) or ""
    if missing:
        raise InputError(
            f"{file.filename} lacks {len(missing)} of the pairs, the first is "
            f"{missing[0][0]!r}, {missing[0][1]!r}: run the matching again, it resumes"
        )
    return found


class _Provenance:
    """Fingerprints of what the keypoints of images and the matches of pairs are made from."""

    def __init__(self, versions: Mapping[Pair, str], options: AggregationOptions) -> None:
        self.versions = versions
        self._max_error = options.max_error
        self._contents: dict[str, str] = {}
        sources: dict[str, list[tuple[str, str, str]]] = {}
        for pair in sorted(versions):
            for name in pair:
                sources.setdefault(name, []).append((*pair, versions[pair]))
        settings = (revisions.KEYPOINTS, asdict(options))
        self.of_image = {name: fingerprint(settings, sources[name]) for name in sources}

    def add_keypoints(self, name: str, keypoints: np.ndarray) -> None:
        content = np.ascontiguousarray(keypoints, dtype=np.float32).tobytes()
        self._contents[name] = hashlib.sha256(content).hexdigest()

    def of_pair(self, pair: Pair) -> str:
        keypoints = [self._contents[name] for name in pair]
        return fingerprint(revisions.KEYPOINTS, self.versions[pair], keypoints, self._max_error)


def _open_fixed_keypoints(
    stack: contextlib.ExitStack,
    fixed_features: Sequence[Path],
    feature_file: StagedFile,
    existing: Existing,
    of_image: Mapping[str, str],
) -> Mapping[str, np.ndarray]:
    """Return the keypoints that stay as they are, see `aggregate`, read on demand."""
    file_of_image: dict[str, h5py.File] = {}
    for path in fixed_features:
        file = stack.enter_context(open_h5(path))
        file_of_image |= {name: file for name in list_groups(path) if name in of_image}
    if existing != "overwrite" and feature_file.path.exists():
        file = stack.enter_context(open_h5(feature_file.path))
        own = [name for name in of_image if name not in file_of_image]
        kept = [name for name in own if holds(file, f"{name}/keypoints")]
        is_current = all(feature_file.is_current(name, of_image[name]) for name in kept)
        if existing == "keep" or (is_current and len(kept) == len(own)):
            file_of_image |= dict.fromkeys(kept, file)
    return _LazyMapping(file_of_image, lambda name: read_keypoints(file_of_image[name], name))


def _store(
    results: Iterable[ImageKeypoints | PairMatches],
    num_pairs: int,
    feature_file: StagedFile,
    match_file: StagedFile,
    image_sizes: Mapping[str, tuple[int, int]],
    provenance: _Provenance,
) -> AggregationSummary:
    """Write results as they come and count them."""
    features, matches = _Writer(feature_file), _Writer(match_file)
    num_keypoints = num_matches = 0
    with tqdm(total=num_pairs, desc="Assembling", unit="pair", disable=not num_pairs) as progress:
        for result in results:
            if isinstance(result, ImageKeypoints):
                provenance.add_keypoints(result.name, result.keypoints)
                arrays = {
                    "keypoints": result.keypoints,
                    "scores": result.scores,
                    "image_size": np.asarray(image_sizes[result.name], dtype=np.int64),
                }
                features.add(result.name, arrays, provenance.of_image[result.name])
                num_keypoints += len(result.keypoints)
            else:
                arrays = {
                    "matches0": result.matches0,
                    "matching_scores0": result.matching_scores0,
                }
                matches.add(names_to_pair(*result.pair), arrays, provenance.of_pair(result.pair))
                num_matches += int((result.matches0 >= 0).sum())
                progress.update()
    features.flush()
    matches.flush()
    return AggregationSummary(features.count, num_keypoints, matches.count, num_matches)


class _Writer:
    """Adds entries to a staged file, many at a time."""

    def __init__(self, file: StagedFile) -> None:
        self.count = 0
        self._file = file
        self._entries: dict[str, Arrays] = {}
        self._fingerprints: dict[str, str] = {}
        self._num_bytes = 0

    def add(self, name: str, arrays: Arrays, entry_fingerprint: str) -> None:
        self.count += 1
        self._entries[name] = arrays
        self._fingerprints[name] = entry_fingerprint
        self._num_bytes += sum(array.nbytes for array in arrays.values())
        if self._num_bytes > PART_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._entries:
            self._file.add(self._entries, self._fingerprints)
        self._entries, self._fingerprints, self._num_bytes = {}, {}, 0


class _LazyMapping(Mapping[Key, Value]):
    """A mapping that computes a value each time it is asked for."""

    def __init__(self, keys: Iterable[Key], read: Callable[[Key], Value]) -> None:
        self._keys = dict.fromkeys(keys)
        self._read = read

    def __getitem__(self, key: Key) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
