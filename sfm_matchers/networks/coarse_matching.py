"""Matching two grids of coarse features: the step that JamMa and Efficient LoFTR share.

With features f0 (L0 cells) and f1 (L1 cells) of C channels and a temperature tau,

    S[i, j]   = (f0[i] / sqrt(C)) . (f1[j] / sqrt(C)) / tau
    P01[i, j] = exp(S[i, j]) / sum over j' of exp(S[i, j'])      softmax along image 1
    P10[i, j] = exp(S[i, j]) / sum over i' of exp(S[i', j])      softmax along image 0

and two rules that pick pairs of cells (a third, without softmax, is a variant of the second):

- `match_either_maximum` (JamMa): P01 above the threshold and the largest of its row, or P10 above
  the threshold and the largest of its column. Several cells of one image may share a partner.
- `match_mutual_maximum` (LoFTR, Efficient LoFTR): P01 * P10 above the threshold and the largest of
  both its row and its column.

S is never held whole, and is formed in bfloat16 where the features are (similarity.py). A pair that
is alone is compared without its padded cells: where it is a portrait and a landscape, in half the
time.
Of values that are exactly equal one is picked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sfm_matchers.networks.similarity import (
    Rows,
    SimilarityBlocks,
    SoftmaxStatistics,
    softmax_statistics,
)

SELECTIVE_THRESHOLD = 0.01  # at most a hundred entries of a row are above it
ROUNDING = 1e-3  # more than the logarithm of a score can be off

Features = TypeVar("Features", bound=tuple[Any, ...])
"""What a network knows of a batch of images: a named tuple of tensors (B, ...)."""


@dataclass(frozen=True)
class CoarseMatches:
    """M matched pairs of cells, in the order of (batch, id0, id1).

    Attributes:
        batch_ids: (M,) int64, the pair of images.
        ids0: (M,) int64, row-major cell of image 0.
        ids1: (M,) int64, row-major cell of image 1.
        similarities: (M,) float32, S.
        scores: (M,) float32, what the rule compares with its threshold.
    """

    batch_ids: Tensor
    ids0: Tensor
    ids1: Tensor
    similarities: Tensor
    scores: Tensor

    def of_pair(self, pair: int) -> CoarseMatches:
        """Return the matches of one pair of images, as of a batch of its own."""
        chosen = self.batch_ids == pair
        ids0, ids1 = self.ids0[chosen], self.ids1[chosen]
        similarities, scores = self.similarities[chosen], self.scores[chosen]
        return CoarseMatches(torch.zeros_like(ids0), ids0, ids1, similarities, scores)


@dataclass(frozen=True)
class MatchedCells(Generic[Features]):
    """A batch of pairs after the coarse stage, with what the fine stage needs.

    Attributes:
        features0: of images 0, one by one.
        features1: of images 1.
        coarse0: (B, C, h0, w0), informed by the other image.
        coarse1: (B, C, h1, w1).
        matches: pairs of cells.
    """

    features0: Features
    features1: Features
    coarse0: Tensor
    coarse1: Tensor
    matches: CoarseMatches

    def of_pair(self, pair: int) -> MatchedCells[Features]:
        """Return one pair of images, as a batch of its own."""
        one = slice(pair, pair + 1)
        features0, features1 = (
            type(features)(*(maps[one] for maps in features))
            for features in (self.features0, self.features1)
        )
        matches = self.matches.of_pair(pair)
        return MatchedCells(features0, features1, self.coarse0[one], self.coarse1[one], matches)


@dataclass(frozen=True)
class _Cells:
    """The cells of one image that are compared.

    Attributes:
        features: (B, L, C).
        mask: (B, h, w) bool, False in padded cells; None if none of them are padded.
        in_grid: (L,) int64, which cells of the grid they are; None for all in their order.
    """

    features: Tensor
    mask: Tensor | None
    in_grid: Tensor | None

    @classmethod
    def of(cls, features: Tensor, mask: Tensor | None) -> _Cells:
        """All of a batch, and of a single image those that are not padded."""
        if mask is None or mask.all():
            return cls(features, None, None)
        if len(features) > 1 or not mask.any():
            return cls(features, mask, None)
        in_grid = mask.flatten().nonzero()[:, 0]
        return cls(features[:, in_grid], None, in_grid)

    def places(self, ids: Tensor) -> Tensor:
        """Which cells of the grid the given ones are."""
        return ids if self.in_grid is None else self.in_grid[ids]


@torch.no_grad()
def match_either_maximum(
    features0: Tensor,
    features1: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    *,
    threshold: float,
    border: int,
    temperature: float,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> CoarseMatches:
    """Pairs that are the best of their row by P01 or of their column by P10.

    Args:
        features0: (B, h0 * w0, C).
        features1: (B, h1 * w1, C).
        grid0: (h0, w0) cells.
        grid1: (h1, w1) cells.
        threshold: P01 or P10 must exceed it.
        border: cells within this distance of the (valid) image border match nothing.
        temperature: tau.
        mask0: (B, h0, w0) bool, False in padded cells (below and right of the image).
        mask1: (B, h1, w1) bool.

    Returns:
        The matches; `scores` are max(P01, P10).
    """
    cells0, cells1 = _Cells.of(features0, mask0), _Cells.of(features1, mask1)
    blocks = _blocks(cells0, cells1, temperature)
    found: list[tuple[Tensor, Tensor]] = []

    def keep_best_of_rows(rows: Rows) -> None:
        batch_ids, ids0 = (rows.probability > threshold).nonzero(as_tuple=True)
        values, ids1 = rows.block[batch_ids, ids0].max(1)
        ids = torch.stack((batch_ids, ids0 + rows.start, ids1))
        found.append((ids, rows.similarities_of(values)))

    rows, columns = softmax_statistics(blocks, keep_best_of_rows, with_places=True)
    batch_ids, ids1 = (columns.probability > threshold).nonzero(as_tuple=True)
    ids0 = columns.places[batch_ids, ids1]
    found.append((torch.stack((batch_ids, ids0, ids1)), columns.largest[batch_ids, ids1]))
    ids, values = (
        torch.cat([ids for ids, _ in found], 1),
        torch.cat([values for _, values in found]),
    )
    ids, values = _sort_unique(ids, values, rows.sum.shape[1], columns.sum.shape[1])
    in_grid = _in_grid(ids, cells0, cells1)
    keep = inside_border(in_grid, grid0, grid1, border, mask0, mask1)
    (batch_ids, ids0, ids1), values = ids[:, keep], values[keep]
    scores = torch.maximum(
        rows.probability_of(values, batch_ids, ids0),
        columns.probability_of(values, batch_ids, ids1),
    )
    batch_ids, ids0, ids1 = in_grid[:, keep]
    return CoarseMatches(batch_ids, ids0, ids1, values, scores)


@torch.no_grad()
def match_mutual_maximum(
    features0: Tensor,
    features1: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    *,
    threshold: float,
    border: int,
    temperature: float,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
    softmax: bool = True,
) -> CoarseMatches:
    """Pairs that are the best of their row and of their column.

    Border cells are left out only afterwards, so they can still be the better partner of an inner
    cell and so take its match.

    Args:
        softmax: compare P01 * P10 if True, S itself if False (Efficient LoFTR's fast variant).

    The other arguments are those of `match_either_maximum`.

    Returns:
        The matches, at most one per cell; `scores` are P01 * P10, or S without softmax.
    """
    cells0, cells1 = _Cells.of(features0, mask0), _Cells.of(features1, mask1)
    blocks = _blocks(cells0, cells1, temperature)
    if not softmax:
        ids = _mutual_maxima(blocks, threshold)
        values = blocks.at(ids)
    elif threshold >= SELECTIVE_THRESHOLD:
        ids, values, rows, columns = _mutual_maxima_of_likely(blocks, threshold)
    else:
        rows, columns = softmax_statistics(blocks)
        lowest = 0.5 * math.log(threshold) - ROUNDING if threshold > 0 else -math.inf
        ids = _mutual_maxima(blocks, lowest, (rows.log_sum / 2, columns.log_sum / 2))
        values = blocks.at(ids)
    in_grid = _in_grid(ids, cells0, cells1)
    inside = inside_border(in_grid, grid0, grid1, border, mask0, mask1)
    ids, in_grid, values = ids[:, inside], in_grid[:, inside], values[inside]
    scores = values
    if softmax:
        scores = rows.probability_of(values, ids[0], ids[1])
        scores = scores * columns.probability_of(values, ids[0], ids[2])
    keep = scores > threshold
    batch_ids, ids0, ids1 = in_grid[:, keep]
    return CoarseMatches(batch_ids, ids0, ids1, values[keep], scores[keep])


def _blocks(cells0: _Cells, cells1: _Cells, temperature: float) -> SimilarityBlocks:
    masks = cells0.mask, cells1.mask
    return SimilarityBlocks(cells0.features, cells1.features, temperature, *masks)


def _in_grid(ids: Tensor, cells0: _Cells, cells1: _Cells) -> Tensor:
    """Return pairs (3, M) of compared cells as pairs of cells of the grids."""
    return torch.stack((ids[0], cells0.places(ids[1]), cells1.places(ids[2])))


def _mutual_maxima_of_likely(
    blocks: SimilarityBlocks, threshold: float
) -> tuple[Tensor, Tensor, SoftmaxStatistics, SoftmaxStatistics]:
    """What `_mutual_maxima` finds of P01 * P10, in one pass over S.

    No P01 P10 is above the threshold where P01 is not, and an entry that beats one above it is
    above it too: the few with P01 above it decide.

    Returns:
        (3, M) as `_mutual_maxima`, their values (M,) of S, the statistics of rows and of columns.
    """
    likely: list[tuple[Tensor, Tensor]] = []

    def keep_likely(rows: Rows) -> None:
        batch_ids, ids0 = (rows.probability > threshold).nonzero(as_tuple=True)
        lowest = rows.entries_with(threshold * (1 - ROUNDING))[batch_ids, ids0, None]
        chosen = rows.block[batch_ids, ids0]
        found, ids1 = (chosen > lowest).nonzero(as_tuple=True)
        ids = torch.stack((batch_ids[found], ids0[found] + rows.start, ids1))
        likely.append((ids, rows.similarities_of(chosen[found, ids1])))

    rows, columns = softmax_statistics(blocks, keep_likely)
    ids, values = torch.cat([ids for ids, _ in likely], 1), torch.cat([v for _, v in likely])
    # sqrt(P01 P10) = exp(S - (log_sum0 + log_sum1) / 2)
    logs = values - (rows.log_sum / 2)[ids[0], ids[1]] - (columns.log_sum / 2)[ids[0], ids[2]]
    length0, length1 = rows.sum.shape[1], columns.sum.shape[1]
    best = _is_largest(logs, ids[0] * length0 + ids[1], len(rows.sum) * length0)
    best &= _is_largest(logs, ids[0] * length1 + ids[2], len(rows.sum) * length1)
    ids, values = ids[:, best], values[best]
    first = _one_of_each(ids, length0, length1)
    return ids[:, first], values[first], rows, columns


def _is_largest(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(M,) bool: no value of the same group is larger."""
    largest = values.new_full((num_groups,), -math.inf)
    return values == largest.scatter_reduce(0, groups, values, "amax")[groups]


def _mutual_maxima(
    blocks: SimilarityBlocks, threshold: float, subtrahends: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Entries above the threshold that are the largest of their row and of their column.

    Args:
        blocks: S.
        threshold: exclusive.
        subtrahends: (B, L0) and (B, L1), subtracted from the rows and the columns of S before.

    Returns:
        (3, M) batch, row and column in this order of sorting; each row and column at most once.
    """
    candidates, values = [], []
    largest1 = torch.empty(0)
    for rows, block in blocks:
        if subtrahends is not None:
            block.sub_(subtrahends[0][:, rows, None]).sub_(subtrahends[1][:, None])
        largest0, of_block = block.amax(2), block.amax(1)
        largest1 = of_block if rows.start == 0 else torch.maximum(largest1, of_block)
        batch_ids, ids0 = (largest0 > threshold).nonzero(as_tuple=True)
        ids1 = block[batch_ids, ids0].max(1).indices
        candidates.append(torch.stack((batch_ids, ids0 + rows.start, ids1)))
        values.append(largest0[batch_ids, ids0])
    ids = torch.cat(candidates, 1)
    ids = ids[:, torch.cat(values) == largest1[ids[0], ids[2]]]
    return ids[:, _one_of_each(ids, blocks.features0.shape[1], blocks.features1.shape[1])]


def _one_of_each(ids: Tensor, length0: int, length1: int) -> Tensor:
    """Which of the pairs (3, M) are the first with their cell of image 1, and then of image 0."""
    first = _first_of_each(ids[0] * length1 + ids[2])
    return first[_first_of_each(ids[0, first] * length0 + ids[1, first])]


def _sort_unique(ids: Tensor, values: Tensor, length0: int, length1: int) -> tuple[Tensor, Tensor]:
    """Order pairs (3, M) by batch, cell 0, cell 1 and keep one of each."""
    order = _first_of_each((ids[0] * length0 + ids[1]) * length1 + ids[2])
    return ids[:, order], values[order]


def _first_of_each(keys: Tensor) -> Tensor:
    """Where each distinct key (M,) stands first, by increasing key."""
    keys, order = keys.sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    return order[first]


def inside_border(
    ids: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    border: int,
    mask0: Tensor | None,
    mask1: Tensor | None,
) -> Tensor:
    """(M,) bool: both cells are valid and at least `border` cells from the image's border."""
    keep = torch.ones_like(ids[0], dtype=torch.bool)
    for cells, (height, width), mask in ((ids[1], grid0, mask0), (ids[2], grid1, mask1)):
        row, column = cells // width, cells % width
        bottom: Tensor | int = height
        right: Tensor | int = width
        if mask is not None:
            keep &= mask.flatten(1)[ids[0], cells]
            bottom = mask.sum(1).amax(1)[ids[0]]
            right = mask.sum(2).amax(1)[ids[0]]
        keep &= (row >= border) & (row < bottom - border)
        keep &= (column >= border) & (column < right - border)
    return keep
