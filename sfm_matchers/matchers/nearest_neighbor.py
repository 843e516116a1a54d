"""Mutual nearest neighbours of descriptors, with a ratio test."""

from __future__ import annotations

import numpy as np
import torch

from sfm_matchers.errors import InputError
from sfm_matchers.matchers.protocols import (
    Arrays,
)


class NearestNeighborMatcher:
    """Mutual nearest neighbours with ratio test on angles between descriptors, as in COLMAP.

    Args:
        ratio: largest allowed ratio of the angle to the nearest descriptor over the angle to the
            second nearest (Lowe, IJCV 2004, section 7.1), asked for in both directions.
        max_distance: largest allowed angle between matched descriptors, in radians.
        device: torch device.
    """

    is_thread_safe = True

    def __init__(self, ratio: float = 0.8, max_distance: float = 0.7, device: str = "cpu") -> None:
        self.ratio = ratio
        self.max_distance = max_distance
        self.device = torch.device(device)

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `SparseMatcher.match`. Scores are the cosines between matched descriptors."""
        descriptors0, descriptors1 = (
            torch.from_numpy(np.asarray(features["descriptors"], dtype=np.float32).T)
            .contiguous()
            .to(self.device)
            for features in (features0, features1)
        )
        matches0 = torch.full((len(descriptors0),), -1, device=self.device)
        scores0 = torch.zeros(len(descriptors0), device=self.device)
        if descriptors0.shape[1] != descriptors1.shape[1]:
            raise InputError(
                f"descriptors of {descriptors0.shape[1]} and of {descriptors1.shape[1]} numbers "
                "cannot be matched: extract all features with one front-end"
            )
        if len(descriptors0) and len(descriptors1):
            nearest0, cosine0 = self._nearest(descriptors0, descriptors1)
            nearest1, _ = self._nearest(descriptors1, descriptors0)
            index0 = torch.arange(len(nearest0), device=self.device)
            is_mutual = (nearest0 >= 0) & (nearest1[nearest0.clamp(min=0)] == index0)
            matches0[is_mutual] = nearest0[is_mutual]
            scores0[is_mutual] = cosine0[is_mutual]
        return matches0.to(torch.int32).cpu().numpy(), scores0.cpu().numpy()

    def _nearest(
        self, descriptors: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nearest of `others` for each descriptor, -1 if refused, and its cosine."""
        nearest, cosines = [], []
        for block in descriptors.split(256):  # of a size that stays in the CPU's cache
            cosine, index = (block @ others.T).clamp(-1, 1).topk(min(2, len(others)), dim=1)
            angle = cosine.arccos()
            accepted = angle[:, 0] <= self.max_distance
            if len(others) > 1:
                accepted &= angle[:, 0] < self.ratio * angle[:, 1]
            nearest.append(torch.where(accepted, index[:, 0], -1))
            cosines.append(cosine[:, 0])
        return torch.cat(nearest), torch.cat(cosines)
