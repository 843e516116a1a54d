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

Only the largest value, its place and the sum of exponentials of each row and column are needed, so
S is formed a few rows at a time and never held whole: memory grows with L0 + L1, not L0 * L1. Of
values that are exactly equal one is picked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Similarity of pairs with a padded cell: far below any real one, yet finite.
MASKED_SIMILARITY = -1e9
# Entries of S formed at once: on a CPU few enough for its cache and enough for a matrix product, on
# a GPU enough to keep it busy.
BLOCK_ENTRIES_CPU = 1 << 20
BLOCK_ENTRIES_GPU = 1 << 26
MIN_ROWS = 128  # of a block; matrix products of fewer take up to twice as long on a CPU
MIN_EXPONENT = -86.0  # 2 to it is nothing beside 1, times exp(-MAX_DIFFERENCE) a normal float32
MAX_DIFFERENCE = 25.0  # differences of maxima up to which exponentials of rows serve columns too
SELECTIVE_THRESHOLD = 0.01  # at most a hundred entries of a row are above it
ROUNDING = 1e-3  # more than the logarithm of a score can be off


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


def similarity(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Tensor:
    """The whole matrix S, differentiable; for training, where all of it is needed.

    Args:
        features0: (B, L0, C).
        features1: (B, L1, C).
        temperature: tau.
        mask0: (B, h0, w0) bool, False in padded cells.
        mask1: (B, h1, w1) bool.

    Returns:
        (B, L0, L1), `MASKED_SIMILARITY` where either cell is padded.
    """
    scaled0 = features0 / (features0.shape[-1] * temperature)
    logits = scaled0 @ features1.transpose(1, 2)
    return _fill_masked(logits, _flat_mask(mask0), _flat_mask(mask1))


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
    blocks = _SimilarityBlocks(features0, features1, temperature, mask0, mask1)
    found: list[tuple[Tensor, Tensor]] = []

    def keep_best_of_rows(start: int, block: Tensor, largest: Tensor, total: Tensor) -> None:
        batch_ids, ids0 = (1 / total > threshold).nonzero(as_tuple=True)
        ids1 = block[batch_ids, ids0].argmax(1)
        found.append((torch.stack((batch_ids, ids0 + start, ids1)), largest[batch_ids, ids0]))

    rows, columns = _softmax_statistics(blocks, keep_best_of_rows, with_places=True)
    batch_ids, ids1 = (columns.probability > threshold).nonzero(as_tuple=True)
    ids0 = columns.places[batch_ids, ids1]
    found.append((torch.stack((batch_ids, ids0, ids1)), columns.largest[batch_ids, ids1]))
    ids, values = (
        torch.cat([ids for ids, _ in found], 1),
        torch.cat([values for _, values in found]),
    )
    ids, values = _sort_unique(ids, values, features0.shape[1], features1.shape[1])
    keep = inside_border(ids, grid0, grid1, border, mask0, mask1)
    (batch_ids, ids0, ids1), values = ids[:, keep], values[keep]
    scores = torch.maximum(
        rows.probability_of(values, batch_ids, ids0),
        columns.probability_of(values, batch_ids, ids1),
    )
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
    blocks = _SimilarityBlocks(features0, features1, temperature, mask0, mask1)
    if not softmax:
        ids = _mutual_maxima(blocks, threshold)
    elif threshold >= SELECTIVE_THRESHOLD:
        ids, rows, columns = _mutual_maxima_of_likely(blocks, threshold)
    else:
        rows, columns = _softmax_statistics(blocks)
        lowest = 0.5 * math.log(threshold) - ROUNDING if threshold > 0 else -math.inf
        ids = _mutual_maxima(blocks, lowest, (rows.log_sum / 2, columns.log_sum / 2))
    ids = ids[:, inside_border(ids, grid0, grid1, border, mask0, mask1)]
    values = blocks.at(ids)
    scores = values
    if softmax:
        scores = rows.probability_of(values, ids[0], ids[1])
        scores = scores * columns.probability_of(values, ids[0], ids[2])
    keep = scores > threshold
    (batch_ids, ids0, ids1), values, scores = ids[:, keep], values[keep], scores[keep]
    return CoarseMatches(batch_ids, ids0, ids1, values, scores)


class _SimilarityBlocks:
    """S of a batch, formed some rows at a time in one reused buffer."""

    def __init__(
        self,
        features0: Tensor,
        features1: Tensor,
        temperature: float,
        mask0: Tensor | None,
        mask1: Tensor | None,
    ) -> None:
        # float32 whatever autocast chose: thresholds are compared with exponentials of S.
        self.features0 = features0.float() / (features0.shape[-1] * temperature)
        self.features1 = features1.float()
        self.mask0, self.mask1 = _flat_mask(mask0), _flat_mask(mask1)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and S[:, rows], (B, rows, L1), which the next step overwrites."""
        batch, length0, length1 = *self.features0.shape[:2], self.features1.shape[1]
        height = min(length0, max(MIN_ROWS, self._block_entries() // (batch * length1)))
        buffer = self.features1.new_empty(batch, height, length1)
        with torch.autocast(buffer.device.type, enabled=False):
            for start in range(0, length0, height):
                rows = slice(start, min(start + height, length0))
                block = buffer[:, : rows.stop - start]
                torch.matmul(self.features0[:, rows], self.features1.transpose(1, 2), out=block)
                row_mask = None if self.mask0 is None else self.mask0[:, rows]
                yield rows, _fill_masked(block, row_mask, self.mask1)

    def at(self, ids: Tensor) -> Tensor:
        """S of single pairs (batch, cell 0, cell 1), ids (3, M) of unmasked cells."""
        return (self.features0[ids[0], ids[1]] * self.features1[ids[0], ids[2]]).sum(-1)

    def _block_entries(self) -> int:
        return BLOCK_ENTRIES_CPU if self.features0.device.type == "cpu" else BLOCK_ENTRIES_GPU


@dataclass
class _SoftmaxStatistics:
    """Per row (or column) of S: the largest entry, the sum of exp(entry - largest), and where the
    largest entry is, if that was asked for."""

    largest: Tensor
    sum: Tensor
    places: Tensor

    @property
    def probability(self) -> Tensor:
        """The softmax at the largest entry."""
        return 1 / self.sum

    @property
    def log_sum(self) -> Tensor:
        """Log of the sum of exponentials."""
        return self.largest + self.sum.log()

    def probability_of(self, values: Tensor, batch_ids: Tensor, ids: Tensor) -> Tensor:
        """The softmax, in the given rows, at entries with the given values of S."""
        # A value formed again may come out above the largest by rounding.
        below = (values - self.largest[batch_ids, ids]).clamp(max=0)
        return below.exp() / self.sum[batch_ids, ids]


VisitRows = Callable[[int, Tensor, Tensor, Tensor], None]
"""Sees the first row of a block, the block (B, rows, L1), and its rows' largest entries and sums of
exponentials (B, rows)."""


def _softmax_statistics(
    blocks: _SimilarityBlocks, visit_rows: VisitRows | None = None, *, with_places: bool = False
) -> tuple[_SoftmaxStatistics, _SoftmaxStatistics]:
    """Of rows and of columns, in one pass over S; places of columns only, where asked for."""
    largest0, sum0 = [], []
    largest1 = sum1 = places1 = torch.empty(0)
    scratch: Tensor | None = None
    for rows, block in blocks:
        if scratch is None or scratch.shape != block.shape:
            scratch = torch.empty_like(block)
        largest0.append(block.amax(2))
        exponentials = _exponentials(block, largest0[-1][:, :, None], scratch)
        sum0.append(exponentials.sum(2))
        if visit_rows is not None:
            visit_rows(rows.start, block, largest0[-1], sum0[-1])
        of_block = block.amax(1)
        if rows.start == 0:
            largest1, sum1 = torch.full_like(of_block, -math.inf), torch.zeros_like(of_block)
            places1 = torch.zeros_like(of_block, dtype=torch.int64)
        if with_places:
            # torch finds a maximum ten times faster without its place, and few columns improve.
            batch_ids, ids1 = (of_block > largest1).nonzero(as_tuple=True)
            places1[batch_ids, ids1] = rows.start + block[batch_ids, :, ids1].argmax(1)
        before, largest1 = largest1, torch.maximum(largest1, of_block)
        sum1 *= (before - largest1).exp()
        sum1 += _column_sums(block, exponentials, largest0[-1], largest1)
    return (
        _SoftmaxStatistics(torch.cat(largest0, 1), torch.cat(sum0, 1), torch.empty(0)),
        _SoftmaxStatistics(largest1, sum1, places1),
    )


def _column_sums(block: Tensor, exponentials: Tensor, largest0: Tensor, largest1: Tensor) -> Tensor:
    """exp(block - largest1) summed over rows: (B, L1).

    Args:
        block: (B, rows, L1) of S.
        exponentials: exp(block - largest0), which may be overwritten.
        largest0: (B, rows), of the rows.
        largest1: (B, L1), of the columns, at least those of the block.
    """
    highest = largest0.amax(1, keepdim=True)
    lowest = torch.minimum(largest0.amin(1), largest1.amin(1))
    if bool((highest[:, 0] - lowest < MAX_DIFFERENCE).all()):  # exp is most of the work
        of_rows = (largest0 - highest).exp()[:, None] @ exponentials
        return of_rows[:, 0] * (highest - largest1).exp()
    return _exponentials(block, largest1[:, None], exponentials).sum(1)


def _exponentials(block: Tensor, largest: Tensor, out: Tensor) -> Tensor:
    """exp(block - largest), as a power of 2: torch's exp is MKL's, slow on AMD's processors.

    What underflows is made tiny instead: products with denormal numbers are slow.
    """
    exponents = torch.sub(block, largest, out=out).mul_(math.log2(math.e))
    return exponents.clamp_(min=MIN_EXPONENT).exp2_()


def _mutual_maxima_of_likely(
    blocks: _SimilarityBlocks, threshold: float
) -> tuple[Tensor, _SoftmaxStatistics, _SoftmaxStatistics]:
    """What `_mutual_maxima` finds of P01 * P10, in one pass over S.

    No P01 P10 is above the threshold where P01 is not, and an entry that beats one above it is
    above it too: the few with P01 above it decide.

    Returns:
        (3, M) as `_mutual_maxima`, and the statistics of rows and columns.
    """
    likely: list[tuple[Tensor, Tensor]] = []

    def keep_likely(start: int, block: Tensor, largest: Tensor, total: Tensor) -> None:
        batch_ids, ids0 = (1 / total > threshold).nonzero(as_tuple=True)
        lowest = (threshold * total).log() + largest - ROUNDING
        chosen = block[batch_ids, ids0]
        found, ids1 = (chosen > lowest[batch_ids, ids0, None]).nonzero(as_tuple=True)
        ids = torch.stack((batch_ids[found], ids0[found] + start, ids1))
        likely.append((ids, chosen[found, ids1]))

    rows, columns = _softmax_statistics(blocks, keep_likely)
    ids, values = torch.cat([ids for ids, _ in likely], 1), torch.cat([v for _, v in likely])
    # sqrt(P01 P10) = exp(S - (log_sum0 + log_sum1) / 2)
    values = values - (rows.log_sum / 2)[ids[0], ids[1]] - (columns.log_sum / 2)[ids[0], ids[2]]
    length0, length1 = rows.sum.shape[1], columns.sum.shape[1]
    best = _is_largest(values, ids[0] * length0 + ids[1], len(rows.sum) * length0)
    best &= _is_largest(values, ids[0] * length1 + ids[2], len(rows.sum) * length1)
    return _one_of_each(ids[:, best], length0, length1), rows, columns


def _is_largest(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(M,) bool: no value of the same group is larger."""
    largest = values.new_full((num_groups,), -math.inf)
    return values == largest.scatter_reduce(0, groups, values, "amax")[groups]


def _mutual_maxima(
    blocks: _SimilarityBlocks, threshold: float, subtrahends: tuple[Tensor, Tensor] | None = None
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
        ids1 = block[batch_ids, ids0].argmax(1)
        candidates.append(torch.stack((batch_ids, ids0 + rows.start, ids1)))
        values.append(largest0[batch_ids, ids0])
    ids = torch.cat(candidates, 1)
    ids = ids[:, torch.cat(values) == largest1[ids[0], ids[2]]]
    return _one_of_each(ids, blocks.features0.shape[1], blocks.features1.shape[1])


def _one_of_each(ids: Tensor, length0: int, length1: int) -> Tensor:
    """Of pairs (3, M) that share a cell of image 1 keep the first, and then the same of image 0."""
    ids = ids[:, _first_of_each(ids[0] * length1 + ids[2])]
    return ids[:, _first_of_each(ids[0] * length0 + ids[1])]


def _flat_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.flatten(1).bool()


def _fill_masked(block: Tensor, mask0: Tensor | None, mask1: Tensor | None) -> Tensor:
    """Set rows and columns of padded cells to MASKED_SIMILARITY, in place."""
    if mask0 is not None:
        block.masked_fill_(~mask0[:, :, None], MASKED_SIMILARITY)
    if mask1 is not None:
        block.masked_fill_(~mask1[:, None, :], MASKED_SIMILARITY)
    return block


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
