"""Convolutions at chosen pixels only.

Matches need a fine map in their windows alone, often a tenth of it; the layers before it need
windows that are a little larger. Only these are computed here, equal up to the order of sums.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE_SHARE = 0.6  # where more of the pixels are chosen, computing all is faster
CHUNK = 512  # pixels convolved at once: as many as a core's cache holds
KERNEL = 3


class Pixels:
    """The pixels of a map at which values are needed: all, or some.

    The values of N chosen pixels are one map of size N x 1, (1, C, N, 1), so that pointwise layers
    treat them like any other; those of all pixels are the map itself, (B, C, H, W).

    Args:
        mask: (B, H, W) bool, True where values are needed; None for everywhere.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        is_dense = mask is None or float(mask.float().mean()) > DENSE_SHARE
        self.mask = None if is_dense else mask

    def dilated(self) -> Pixels:
        """The pixels that a 3 x 3 convolution at these reads."""
        return self._pooled(KERNEL, stride=1)

    def halved(self) -> Pixels:
        """The pixels of the map half as large that its bilinear upsampling to these reads."""
        return self._pooled(4, stride=2)

    def _pooled(self, side: int, stride: int) -> Pixels:
        """Those in whose window, one pixel over the border at most, there is a chosen pixel."""
        if self.mask is None:
            return self
        mask = F.pad(self.mask, (1, 1, 1, 1))
        return Pixels(mask.unfold(1, side, stride).any(-1).unfold(2, side, stride).any(-1))

    def take(self, feature_map: Tensor) -> Tensor:
        """The values of a map (B, C, H, W) at these pixels."""
        if self.mask is None:
            return feature_map
        return _as_map(_rows(feature_map).index_select(0, self._ids))

    def put(self, values: Tensor) -> Tensor:
        """The map (B, C, H, W) with these values, zero at the other pixels."""
        if self.mask is None:
            return values
        rows = _rows(values)
        batch, height, width = self.mask.shape
        flat = rows.new_zeros(self.mask.numel(), rows.shape[1]).index_copy_(0, self._ids, rows)
        return flat.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def convolve(self, feature_map: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The values at these pixels of a 3 x 3 convolution, zero-padded, of (B, C, H, W)."""
        if self.mask is None:
            return F.conv2d(feature_map, weight, bias, padding=1)
        flat = _rows(feature_map)
        kernel = weight.permute(2, 3, 1, 0).flatten(0, 2)
        ids, inside = self._neighbours
        parts = []
        for start in range(0, len(ids), CHUNK):
            chunk = slice(start, start + CHUNK)
            patches = flat.index_select(0, ids[chunk].flatten())
            if not inside[chunk].all():
                patches *= inside[chunk].flatten()[:, None]
            patches = patches.view(-1, len(kernel))
            parts.append(patches @ kernel if bias is None else torch.addmm(bias, patches, kernel))
        return _as_map(torch.cat(parts))

    @functools.cached_property
    def _ids(self) -> Tensor:
        assert self.mask is not None
        return self.mask.flatten().nonzero()[:, 0]

    @functools.cached_property
    def _neighbours(self) -> tuple[Tensor, Tensor]:
        """The 3 x 3 pixels around each chosen one (N, 9), and whether they lie in the image."""
        assert self.mask is not None
        _, height, width = self.mask.shape
        steps = torch.arange(KERNEL, device=self.mask.device) - 1
        rows = (self._ids // width % height)[:, None, None] + steps[:, None]
        columns = (self._ids % width)[:, None, None] + steps
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        around = self._ids[:, None, None] + (steps[:, None] * width + steps)
        return torch.where(inside, around, 0).flatten(1), inside.flatten(1)


ALL_PIXELS = Pixels()


def _rows(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) as (B H W, C)."""
    return feature_map.permute(0, 2, 3, 1).flatten(0, 2)


def _as_map(rows: Tensor) -> Tensor:
    """(N, C) as (1, C, N, 1)."""
    return rows.T[None, :, :, None]
