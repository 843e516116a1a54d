"""What every source of training data delivers: two images and the truth between them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Warp = Callable[[Any, Tensor, int], tuple[Tensor, Tensor]]


def without_autocast(warp: Warp) -> Warp:
    """Let `PairGeometry.warp` keep its precision: in bfloat16 the truth is pixels off."""

    @functools.wraps(warp)
    def exact(geometry: Any, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        with torch.autocast(points.device.type, enabled=False):
            return warp(geometry, points, source)

    return exact


class PairGeometry(Protocol):
    """The true relation between the pixels of two images, whatever it was made from."""

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """Carry points of one image into the other.

        Args:
            points: (B, N, 2) positions (x, y) in pixels of image `source`, (0, 0) = the centre of
                the top-left pixel.
            source: 0 to go from image 0 to image 1, 1 to go back.

        Returns:
            (B, N, 2) positions in the other image, possibly infinite where nothing is known of the
            point; and (B, N) bool: the point exists in the source, falls inside the other image,
            and nothing hides it there.
        """
        ...


@dataclass
class FirstPair:
    """The truth of the first of `batch_size` pairs; a `PairGeometry` with B = 1."""

    geometry: PairGeometry
    batch_size: int

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        repeated = points.expand(self.batch_size, -1, -1)
        warped, visible = self.geometry.warp(repeated, source)
        return warped[:1], visible[:1]


@dataclass
class NothingShared:
    """The truth of images of different places: a `PairGeometry` in which nothing is visible."""

    batch_size: int

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        points = points.expand(self.batch_size, -1, -1)
        return points, torch.zeros_like(points[..., 0], dtype=torch.bool)


@dataclass
class PairBatch:
    """A batch of training pairs.

    Attributes:
        image0: (B, 3, H, W) RGB in 0..1.
        image1: (B, 3, H, W) RGB in 0..1.
        geometry: the truth between the two.
    """

    image0: Tensor
    image1: Tensor
    geometry: PairGeometry

    def __len__(self) -> int:
        return self.image0.shape[0]

    def mismatched(self) -> PairBatch:
        """Each image 0 with the image 1 of the next pair."""
        return PairBatch(self.image0, self.image1.roll(1, 0), NothingShared(len(self)))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of both images."""
        return self.image0.shape[2], self.image0.shape[3]


def pixel_grid(height: int, width: int, device: torch.device | str, stride: int = 1) -> Tensor:
    """Positions (x, y) of every `stride`-th pixel: (height // stride, width // stride, 2)."""
    y, x = torch.meshgrid(
        torch.arange(0, height - height % stride, stride, device=device, dtype=torch.float32),
        torch.arange(0, width - width % stride, stride, device=device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1)


def lookup_mask(mask: Tensor, points: Tensor) -> Tensor:
    """Read a (B, H, W) bool mask at the pixels nearest to points; see `lookup`; False outside."""
    return lookup(mask, points, outside=False)


def lookup(table: Tensor, points: Tensor, outside: float) -> Tensor:
    """Read a (B, H, W) table at the pixels nearest to (B, N, 2) or (1, N, 2) points: (B, N)."""
    height, width = table.shape[-2:]
    points = points.expand(len(table), -1, -1)  # `gather` would read the first pair's table alone
    nearest = torch.nan_to_num(points, nan=-1.0, posinf=-1.0, neginf=-1.0)
    nearest = nearest.clamp(-1e6, 1e6).round().long()
    x, y = nearest[..., 0], nearest[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return torch.where(inside, table.flatten(1).gather(1, flat), outside)
