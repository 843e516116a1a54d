"""Points snapped to a grid, and keypoints elected among its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from sfm_matchers.errors import InputError

Key = TypeVar("Key")
Value = TypeVar("Value")


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

    winners = best_rows(cell_ids[first_rows], votes)
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


def best_rows(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
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
