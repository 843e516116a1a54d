"""Surfaces that carry photographs (rectangles, round bodies, reliefs), and where rays meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DEPTH = 0.05
# Bumps of a relief narrower than a step may be missed, so its heights are smooth at this scale.
RELIEF_STEPS = 24
RELIEF_REFINEMENTS = 6


@dataclass
class Surfaces:
    """Q surfaces of one kind in each of B scenes, each in a frame of its own.

    Attributes:
        centre: (B, Q, 3), origins of the frames.
        axes: (B, Q, 3, 3), their units along x, y and z as columns, at right angles.
    """

    centre: Tensor
    axes: Tensor

    @property
    def width(self) -> Tensor:
        """Of the photographs on them: (B, Q)."""
        return 2 * self.axes[..., 0].norm(dim=-1)

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First hits of rays.

        Args:
            origin: (B, 3).
            direction: (B, N, 3).

        Returns:
            Three tensors (B, Q, N): the ray parameter t (infinite where the surface is not met),
            and the place in the photograph there, x and y in -1..1.
        """
        raise NotImplementedError

    def brightness(self, scene: int, number: int, place: Tensor) -> Tensor:
        """Light on surface `number` of a scene at places (N, 2) of its photograph: (N,)."""
        return torch.ones_like(place[:, 0])

    def _into_frames(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Rays (B, 3) and (B, N, 3) in the frames: (B, Q, 3, 1) and (B, Q, 3, N)."""
        inverse = self.axes.transpose(-1, -2) / self.axes.square().sum(-2)[..., None]
        start = inverse @ (origin[:, None] - self.centre)[..., None]
        return start, inverse @ direction.transpose(1, 2)[:, None]


class Rectangles(Surfaces):
    """z = 0 with x and y in -1..1; the photograph's x and y are the frame's."""

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Surfaces`."""
        start, ray = self._into_frames(origin, direction)
        t = -start[:, :, 2] / ray[:, :, 2]
        a = start[:, :, 0] + t * ray[:, :, 0]
        b = start[:, :, 1] + t * ray[:, :, 1]
        hit = (t > MIN_DEPTH) & (a.abs() <= 1) & (b.abs() <= 1)
        return torch.where(hit, t, torch.inf), a, b


@dataclass
class RoundBodies(Surfaces):
    """Ellipsoids and open tubes: x^2 + k y^2 + z^2 = 1 with y in -1..1.

    A photograph is wrapped around each: its middle is at -z, its left and right edges meet at +z.

    Attributes:
        roundness: (B, Q), the k above: 1 for an ellipsoid, 0 for a tube.
    """

    roundness: Tensor

    @property
    def width(self) -> Tensor:
        """Of the photographs, along the widest part of the bodies: (B, Q), about."""
        lengths = self.axes.norm(dim=-2)
        return math.pi * (lengths[..., 0] + lengths[..., 2])

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Surfaces`; a tube's inside is a surface as well."""
        start, ray = self._into_frames(origin, direction)
        metric = torch.ones_like(start)
        metric[:, :, 1, 0] = self.roundness
        square = (metric * ray * ray).sum(2).clamp(min=1e-12)
        mixed = (metric * ray * start).sum(2)
        rest = (metric * start * start).sum(2) - 1
        root = (mixed * mixed - square * rest).sqrt()  # nan where the ray passes by
        first, a, b = self._hit((-mixed - root) / square, start, ray)
        second, far_a, far_b = self._hit((-mixed + root) / square, start, ray)
        nearer = first <= second
        return (
            torch.where(nearer, first, second),
            torch.where(nearer, a, far_a),
            torch.where(nearer, b, far_b),
        )

    def _hit(self, t: Tensor, start: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is met at the parameters t (B, Q, N) of the rays, in the bodies' frames."""
        x, y, z = (start + t[:, :, None] * ray).unbind(2)
        hit = (t > MIN_DEPTH) & (y.abs() <= 1)
        along = torch.where(self.roundness[..., None] > 0, torch.asin(y) * 2 / math.pi, y)
        return torch.where(hit, t, torch.inf), torch.atan2(x, -z) / math.pi, along


@dataclass
class Reliefs(Surfaces):
    """z = h(x, y) with x, y and h in -1..1, seen from both sides; x and y are the photograph's.

    Attributes:
        heights: (B, Q, G, G), h at the corners of a grid, rows along y; between them bilinear.
        shades: (B, Q, G, G), the light there.
    """

    heights: Tensor
    shades: Tensor

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Surfaces`: steps through the cube around the relief, then false position."""
        start, ray = self._into_frames(origin, direction)
        entry, exit_ = _cube_crossing(start, ray)
        step = (exit_ - entry) / RELIEF_STEPS
        low = high = entry
        low_above = high_above = self._above(entry, start, ray)
        for k in range(1, RELIEF_STEPS + 1):
            t = entry + k * step
            onward = low_above * high_above > 0
            low = torch.where(onward, high, low)
            low_above = torch.where(onward, high_above, low_above)
            high_above = torch.where(onward, self._above(t, start, ray), high_above)
            high = torch.where(onward, t, high)
        found = low_above * high_above <= 0
        t = self._refine(low, low_above, high, high_above, start, ray)
        x, y, _ = (start + t[:, :, None] * ray).unbind(2)
        hit = found & (exit_ > entry) & (t > MIN_DEPTH)
        return torch.where(hit, t, torch.inf), x, y

    def brightness(self, scene: int, number: int, place: Tensor) -> Tensor:
        """See `Surfaces`."""
        return _look_up(self.shades[scene : scene + 1, number : number + 1], place[None, None])[
            0, 0
        ]

    def _above(self, t: Tensor, start: Tensor, ray: Tensor) -> Tensor:
        """How far points of rays lie before the relief, in its frame: (B, Q, N)."""
        x, y, z = (start + t[:, :, None] * ray).unbind(2)
        return _look_up(self.heights, torch.stack([x, y], dim=-1)) - z

    def _refine(
        self,
        low: Tensor,
        low_above: Tensor,
        high: Tensor,
        high_above: Tensor,
        start: Tensor,
        ray: Tensor,
    ) -> Tensor:
        """Parameter of the crossing between `low` and `high`, by false position (Illinois)."""
        t = high
        for _ in range(RELIEF_REFINEMENTS):
            span = low_above - high_above
            t = high + high_above * (high - low) / torch.where(span == 0, 1.0, span)
            above = self._above(t, start, ray)
            same = above * high_above > 0
            low_above = torch.where(same, low_above / 2, high_above)
            low = torch.where(same, low, high)
            high, high_above = t, above
        return t


def _cube_crossing(start: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters (B, Q, N) where rays enter and leave -1..1 in x, y and z; no less for a miss."""
    safe = torch.where(ray.abs() < 1e-9, 1e-9, ray)
    one, other = (-1 - start) / safe, (1 - start) / safe
    entry = torch.minimum(one, other).amax(2).clamp(min=MIN_DEPTH)
    exit_ = torch.maximum(one, other).amin(2)
    return entry, torch.maximum(entry, exit_)


def _look_up(grids: Tensor, places: Tensor) -> Tensor:
    """Read grids (B, Q, G, G) at places (B, Q, N, 2) in -1..1: (B, Q, N)."""
    count, number = places.shape[:2]
    values = F.grid_sample(
        grids.flatten(0, 1)[:, None],
        places.flatten(0, 1)[:, None],
        padding_mode="border",
        align_corners=True,
    )
    return values.reshape(count, number, -1)
