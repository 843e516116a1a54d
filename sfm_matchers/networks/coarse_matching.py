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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Similarity of pairs with a padded cell: far below any real one, yet finite.
MASKED_SIMILARITY = -1e9
# Entries of S formed at once: small enough for a CPU's cache, large enough for a matrix product.
BLOCK_ENTRIES = 1 << 20


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
    rows, columns = _row_and_column_peaks(blocks)
    batch0, ids0 = (rows.probability > threshold).nonzero(as_tuple=True)
    batch1, ids1 = (columns.probability > threshold).nonzero(as_tuple=True)
    ids = torch.stack(
        (
            torch.cat((batch0, batch1)),
            torch.cat((ids0, columns.index[batch1, ids1])),
            torch.cat((rows.index[batch0, ids0], ids1)),
        )
    )
    values = torch.cat((rows.value[batch0, ids0], columns.value[batch1, ids1]))
    ids, values = _sort_unique(ids, values, features0.shape[1], features1.shape[1])
    keep = _inside(ids, grid0, grid1, border, mask0, mask1)
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
    if softmax:
        rows, columns = _row_and_column_peaks(blocks)
        best1, best0 = _mutual_candidates(blocks, rows.log_sum, columns.log_sum)
    else:
        best1, best0 = _mutual_candidates(blocks)
    cells0 = torch.arange(features0.shape[1], device=features0.device)
    batch_ids, ids0 = (best0.gather(1, best1) == cells0).nonzero(as_tuple=True)
    ids = torch.stack((batch_ids, ids0, best1[batch_ids, ids0]))
    ids = ids[:, _inside(ids, grid0, grid1, border, mask0, mask1)]
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
        self.shape = (len(features0), features0.shape[1], features1.shape[1])

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and S[:, rows], (B, rows, L1), which the next step overwrites."""
        batch, length0, length1 = self.shape
        height = min(length0, max(1, BLOCK_ENTRIES // (batch * length1)))
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


@dataclass
class _Peaks:
    """Per row (or column) of S: the largest entry, its place, sum of exp(entry - largest)."""

    value: Tensor
    index: Tensor
    sum: Tensor

    @property
    def probability(self) -> Tensor:
        """The softmax at the largest entry."""
        return 1 / self.sum

    @property
    def log_sum(self) -> Tensor:
        """Log of the sum of exponentials."""
        return self.value + self.sum.log()

    def probability_of(self, values: Tensor, batch_ids: Tensor, ids: Tensor) -> Tensor:
        """The softmax, in the given rows, at entries with the given values of S."""
        return (values - self.value[batch_ids, ids]).exp() / self.sum[batch_ids, ids]


def _row_and_column_peaks(blocks: _SimilarityBlocks) -> tuple[_Peaks, _Peaks]:
    """One pass over S; columns are merged from block to block with a running maximum."""
    _batch, _, _length1 = blocks.shape
    row_parts = []
    columns: _Peaks | None = None
    scratch: Tensor | None = None
    for rows, block in blocks:
        if scratch is None or scratch.shape != block.shape:
            scratch = torch.empty_like(block)
        row_parts.append(_peaks(block, 2, scratch))
        part = _peaks(block, 1, scratch)
        part.index += rows.start
        columns = part if columns is None else _merge(columns, part)
    assert columns is not None
    rows_all = _Peaks(
        torch.cat([part.value for part in row_parts], 1),
        torch.cat([part.index for part in row_parts], 1),
        torch.cat([part.sum for part in row_parts], 1),
    )
    return rows_all, columns


def _peaks(block: Tensor, dim: int, scratch: Tensor) -> _Peaks:
    value, index = block.max(dim)
    torch.sub(block, value.unsqueeze(dim), out=scratch)
    return _Peaks(value, index, scratch.exp_().sum(dim))


def _merge(a: _Peaks, b: _Peaks) -> _Peaks:
    """The peaks of two stacked blocks; a stands before b and wins ties."""
    value = torch.maximum(a.value, b.value)
    total = a.sum * (a.value - value).exp() + b.sum * (b.value - value).exp()
    return _Peaks(value, torch.where(b.value > a.value, b.index, a.index), total)


def _mutual_candidates(
    blocks: _SimilarityBlocks,
    row_log_sum: Tensor | None = None,
    column_log_sum: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The best column of each row (B, L0) and the best row of each column (B, L1).

    Best by log(P01 P10) = 2 S - row_log_sum - column_log_sum, or by S where those are None.
    """
    best1, value0 = [], None
    best0 = torch.empty(0)
    for rows, block in blocks:
        if row_log_sum is not None and column_log_sum is not None:
            block.mul_(2).sub_(row_log_sum[:, rows, None]).sub_(column_log_sum[:, None])
        best1.append(block.argmax(2))
        value, index = block.max(1)
        index += rows.start
        if value0 is None:
            value0, best0 = value, index
        else:
            best0 = torch.where(value > value0, index, best0)
            value0 = torch.maximum(value, value0)
    return torch.cat(best1, 1), best0


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
    keys = (ids[0] * length0 + ids[1]) * length1 + ids[2]
    keys, order = keys.sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    order = order[first]
    return ids[:, order], values[order]


def _inside(
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
