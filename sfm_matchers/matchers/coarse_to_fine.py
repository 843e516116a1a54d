"""What the networks have in common that match cells first, and points in matched cells then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfm_matchers.matchers.batching import split_matches
from sfm_matchers.matchers.protocols import CoarseLook, EncodedImage, Matches
from sfm_matchers.networks.coarse_matching import MatchedCells

EncodedPair = tuple[EncodedImage, EncodedImage]


class CoarseToFine(ABC):
    """A `DetectorFreeBatchMatcher` and `CoarseToFineMatcher`, by what differs between networks.

    Attributes:
        cell: side of a cell in pixels that the network sees.
    """

    is_thread_safe = True
    cell: int

    @abstractmethod
    def _matched_cells(self, pairs: Sequence[EncodedPair]) -> MatchedCells[Any]:
        """Match the cells of a batch."""

    @abstractmethod
    def _cell_points(self, cells: MatchedCells[Any]) -> tuple[Tensor, Tensor]:
        """Return the points (M, 2) that stand for matched cells, of photo 0 and of photo 1."""

    @abstractmethod
    def _refined(self, cells: MatchedCells[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return batch ids (N,), points (N, 2) of photo 0 and of photo 1, and scores (N,)."""

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        """See `DetectorFreeMatcher.match_encoded`."""
        return self.match_batch([(image0, image1)])[0]

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[EncodedPair]) -> list[Matches]:
        """See `DetectorFreeBatchMatcher.match_batch`."""
        return split_matches(*self._refined(self._matched_cells(pairs)), pairs)

    @torch.inference_mode()
    def look(self, pairs: Sequence[EncodedPair]) -> list[CoarseLook]:
        """See `CoarseToFineMatcher.look`."""
        cells = self._matched_cells(pairs)
        return [self._look(cells.of_pair(index), pair) for index, pair in enumerate(pairs)]

    def _look(self, cells: MatchedCells[Any], pair: EncodedPair) -> CoarseLook:
        @torch.inference_mode()
        def refined() -> Matches:
            return split_matches(*self._refined(cells), [pair])[0]

        matches = cells.matches
        points = self._cell_points(cells)
        (found,) = split_matches(matches.batch_ids, *points, matches.scores, [pair])
        return CoarseLook(found, self.cell * max(*pair[0].scale, *pair[1].scale), refined)
