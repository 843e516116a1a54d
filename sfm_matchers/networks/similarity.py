"""The similarity S of two grids of coarse features, formed a few rows at a time.

    S[i, j] = (f0[i] / sqrt(C)) . (f1[j] / sqrt(C)) / tau

for features f0 (L0 cells) and f1 (L1 cells) of C channels and a temperature tau. Matching asks for
the largest value, its place and the sum of exponentials of each row and column: S is never held
whole, so that memory grows with L0 + L1, not L0 * L1.

Features that a CPU computed in bfloat16 are multiplied in it too, and so are the exponentials: half
the time in all. S is shifted to where the largest of rows lie, so that bfloat16's steps are small
there: probabilities are off by 1 or 2 %, those near 1 by less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Similarity of pairs with a padded cell: far below any real one, yet finite.
MASKED_SIMILARITY = -1e9
# Entries of S formed at once: on a CPU few enough for its cache and enough for a matrix product, on
# a GPU enough to keep it busy.
BLOCK_ENTRIES_CPU = 1 << 20
BLOCK_ENTRIES_GPU = 1 << 26
MIN_ROWS = 128  # of a block; matrix products of fewer take up to twice as long on a CPU
MIN_EXPONENT = -86.0  # 2 to it is nothing beside 1, times exp(-MAX_DIFFERENCE) a normal float32
MAX_DIFFERENCE = 25.0  # differences of maxima up to which exponentials of rows serve columns too
SAMPLED_ROWS = 64  # whose largest entries tell where S is to be shifted to in bfloat16
SHIFT_QUANTILE = 0.8  # of them: entries of matched cells are among the larger
PADDING = 32  # channels more, for one that subtracts: odd numbers of them are slow
MAX_IN_BFLOAT16 = 80.0  # shifts, and S above it, whose exponentials are in bfloat16's range
MAX_IN_FLOAT32 = 70.0  # |S|, up to which exponentials and sums of 10^7 are in float32's
MIN_SUM = 1e-34  # of exponentials, where all underflow


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


class SimilarityBlocks:
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
        self.on_cpu = features0.device.type == "cpu"
        self.in_bfloat16 = self.on_cpu and features0.dtype == features1.dtype == torch.bfloat16

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and S[:, rows], (B, rows, L1), which the next step overwrites."""
        yield from self._products(self.features0, self.features1)

    def exponentials(self) -> tuple[float, Iterator[tuple[slice, Tensor]]] | None:
        """A shift, and rows and exp(S[:, rows] - shift), on a CPU: fewer steps than with S itself.

        In bfloat16 of features that are in it. None where exponentials could leave the range.
        """
        if not self.on_cpu:
            return None
        highest = float(self.features0.norm(dim=2).amax() * self.features1.norm(dim=2).amax())
        if self.in_bfloat16:
            return self._exponentials_in_bfloat16(highest)
        if not highest < MAX_IN_FLOAT32:
            return None
        # As powers of 2: torch's exp is MKL's, slow on AMD's processors.
        blocks = self._products(self.features0 * math.log2(math.e), self.features1)
        return 0.0, ((rows, block.exp2_()) for rows, block in blocks)

    def _exponentials_in_bfloat16(
        self, highest: float
    ) -> tuple[float, Iterator[tuple[slice, Tensor]]] | None:
        step = max(1, self.features0.shape[1] // SAMPLED_ROWS)
        sample = self.features0[:, ::step] @ self.features1.transpose(1, 2)
        shift = sample.amax(2).quantile(SHIFT_QUANTILE).round()
        if not abs(float(shift)) < MAX_IN_BFLOAT16 or highest - shift > MAX_IN_BFLOAT16:
            return None
        # One more product subtracts the shift, in float32, before S is rounded.
        features0 = nn.functional.pad(self.features0, (0, PADDING)).bfloat16()
        features1 = nn.functional.pad(self.features1, (0, PADDING)).bfloat16()
        features0[..., -1], features1[..., -1] = -shift, 1
        blocks = self._products(features0, features1)
        return float(shift), ((rows, block.exp_()) for rows, block in blocks)

    def _products(self, features0: Tensor, features1: Tensor) -> Iterator[tuple[slice, Tensor]]:
        batch, length0, length1 = *features0.shape[:2], features1.shape[1]
        height = min(length0, max(MIN_ROWS, self._block_entries() // (batch * length1)))
        buffer = features1.new_empty(batch, height, length1)
        with torch.autocast(buffer.device.type, enabled=False):
            for start in range(0, length0, height):
                rows = slice(start, min(start + height, length0))
                block = buffer[:, : rows.stop - start]
                # One by one: torch multiplies batches in bfloat16 at a third of the speed.
                for one0, one1, out in zip(features0[:, rows], features1, block, strict=True):
                    torch.mm(one0, one1.T, out=out)
                row_mask = None if self.mask0 is None else self.mask0[:, rows]
                yield rows, _fill_masked(block, row_mask, self.mask1)

    def at(self, ids: Tensor) -> Tensor:
        """S of single pairs (batch, cell 0, cell 1), ids (3, M) of unmasked cells."""
        return (self.features0[ids[0], ids[1]] * self.features1[ids[0], ids[2]]).sum(-1)

    def _block_entries(self) -> int:
        return BLOCK_ENTRIES_CPU if self.on_cpu else BLOCK_ENTRIES_GPU


@dataclass
class SoftmaxStatistics:
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


@dataclass
class Rows:
    """Some rows of S, or of exp(S - shift).

    Attributes:
        start: the first row.
        block: (B, rows, L1).
        largest: (B, rows), of the block.
        probability: (B, rows), the softmax at the largest entry.
        shift: None if the block is S.
    """

    start: int
    block: Tensor
    largest: Tensor
    probability: Tensor
    shift: float | None = None

    def entries_with(self, probability: float) -> Tensor:
        """(B, rows), the value that an entry of the block with this softmax has."""
        ratio = probability / self.probability
        return self.largest + ratio.log() if self.shift is None else self.largest * ratio

    def similarities_of(self, entries: Tensor) -> Tensor:
        """S of entries of the block."""
        return entries if self.shift is None else entries.float().log() + self.shift


VisitRows = Callable[[Rows], None]


def softmax_statistics(
    blocks: SimilarityBlocks, visit_rows: VisitRows | None = None, *, with_places: bool = False
) -> tuple[SoftmaxStatistics, SoftmaxStatistics]:
    """Of rows and of columns, in one pass over S; places of columns only, where asked for."""
    if (exponentials_of := blocks.exponentials()) is not None:
        return _statistics_of_exponentials(*exponentials_of, visit_rows, with_places=with_places)
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
            visit_rows(Rows(rows.start, block, largest0[-1], 1 / sum0[-1]))
        of_block = block.amax(1)
        if rows.start == 0:
            largest1, sum1 = torch.full_like(of_block, -math.inf), torch.zeros_like(of_block)
            places1 = torch.zeros_like(of_block, dtype=torch.int64)
        if with_places:
            _note_places(places1, rows.start, block, of_block > largest1)
        before, largest1 = largest1, torch.maximum(largest1, of_block)
        sum1 *= (before - largest1).exp()
        sum1 += _column_sums(block, exponentials, largest0[-1], largest1)
    return (
        SoftmaxStatistics(torch.cat(largest0, 1), torch.cat(sum0, 1), torch.empty(0)),
        SoftmaxStatistics(largest1, sum1, places1),
    )


def _statistics_of_exponentials(
    shift: float,
    blocks: Iterator[tuple[slice, Tensor]],
    visit_rows: VisitRows | None,
    *,
    with_places: bool,
) -> tuple[SoftmaxStatistics, SoftmaxStatistics]:
    """`softmax_statistics` of what `SimilarityBlocks.exponentials` gives."""
    largest0, total0 = [], []
    largest1 = total1 = places1 = torch.empty(0)
    for rows, block in blocks:
        largest0.append(block.amax(2).float())
        # Sums as products: twice as fast. Of padded cells all is zero.
        total0.append((block @ block.new_ones(block.shape[2])).float().clamp(min=MIN_SUM))
        if visit_rows is not None:
            visit_rows(Rows(rows.start, block, largest0[-1], largest0[-1] / total0[-1], shift))
        of_block, total = block.amax(1).float(), (block.new_ones(block.shape[1]) @ block).float()
        if rows.start == 0:
            largest1, total1 = torch.zeros_like(of_block), torch.zeros_like(total)
            places1 = torch.zeros_like(of_block, dtype=torch.int64)
        if with_places:
            _note_places(places1, rows.start, block, of_block > largest1)
        largest1 = torch.maximum(largest1, of_block)
        total1 += total
    statistics = []
    for largest, total, places in (
        (torch.cat(largest0, 1), torch.cat(total0, 1), torch.empty(0)),
        (largest1, total1.clamp(min=MIN_SUM), places1),
    ):
        largest = largest.clamp(min=MIN_SUM)
        statistics.append(SoftmaxStatistics(largest.log() + shift, total / largest, places))
    return statistics[0], statistics[1]


def _note_places(places: Tensor, start: int, block: Tensor, improved: Tensor) -> None:
    """Write where the largest entries of the columns (B, L1) that improved lie."""
    # torch finds a maximum several times faster without its place, and few columns improve.
    batch_ids, ids1 = improved.nonzero(as_tuple=True)
    places[batch_ids, ids1] = start + block[batch_ids, :, ids1].max(1).indices


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
    """exp(block - largest), as a power of 2 (`SimilarityBlocks.exponentials` has the reason).

    What underflows is made tiny instead: products with denormal numbers are slow.
    """
    exponents = torch.sub(block, largest, out=out).mul_(math.log2(math.e))
    return exponents.clamp_(min=MIN_EXPONENT).exp2_()


def _flat_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.flatten(1).bool()


def _fill_masked(block: Tensor, mask0: Tensor | None, mask1: Tensor | None) -> Tensor:
    """Set rows and columns of padded cells to MASKED_SIMILARITY, in place."""
    if mask0 is not None:
        block.masked_fill_(~mask0[:, :, None], MASKED_SIMILARITY)
    if mask1 is not None:
        block.masked_fill_(~mask1[:, None, :], MASKED_SIMILARITY)
    return block
