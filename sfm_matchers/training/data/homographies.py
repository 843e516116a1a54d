"""Pairs of views of one photograph, related by a homography.

A view is a picture of the plane that carries the photograph. `G_k` maps pixels of view k to pixels
of the photograph, so the truth between the views is `G_1^-1 G_0`. All draws come from one CPU
generator, so a batch depends on its seed alone and not on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.training.data.pair_batch import (
    PairBatch,
    lookup_mask,
    pixel_grid,
    without_autocast,
)
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.views import dress_views


@dataclass(frozen=True)
class HomographyOptions:
    """How far apart two views may be at strength 1; every range shrinks with the strength."""

    max_log2_scale: float = 1.0  # relative scale 0.5 .. 2
    rotation_sigma: float = 18.0  # degrees in the image plane, normal distribution
    rotation_max: float = 45.0  # degrees; larger draws are clipped
    perspective: float = 0.22  # displacement of each corner, share of the side
    translation: float = 0.35  # displacement of the centre, share of the side
    min_coverage: float = 0.55  # side of view 0 in the photograph, share of the largest that fits


@dataclass
class HomographyGeometry:
    """The truth between two views of a plane, with what hides it.

    Attributes:
        homography_0_to_1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        homography_1_to_0: (B, 3, 3), its inverse.
        valid0: (B, H, W) bool, pixels of image 0 that show the plane (no occluder, not beyond
            the photograph).
        valid1: the same for image 1.
    """

    homography_0_to_1: Tensor
    homography_1_to_0: Tensor
    valid0: Tensor
    valid1: Tensor

    @without_autocast
    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        forward = source == 0
        homography = self.homography_0_to_1 if forward else self.homography_1_to_0
        here, there = (self.valid0, self.valid1) if forward else (self.valid1, self.valid0)
        warped, in_front = apply_homography(homography, points)
        return warped, in_front & lookup_mask(here, points) & lookup_mask(there, warped)


def apply_homography(homography: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Map points by homographies.

    Args:
        homography: (B, 3, 3).
        points: (B, N, 2).

    Returns:
        (B, N, 2) mapped points and (B, N) bool, false where the point goes through infinity.
    """
    mapped = points @ homography[:, :, :2].transpose(1, 2) + homography[:, None, :, 2]
    depth = mapped[..., 2:]
    in_front = depth[..., 0] > 1e-6
    return mapped[..., :2] / depth.clamp(min=1e-6), in_front


def homography_from_corners(source: Tensor, target: Tensor) -> Tensor:
    """Solve for the homographies that map four corners to four corners.

    Args:
        source: (B, 4, 2).
        target: (B, 4, 2).

    Returns:
        (B, 3, 3) with the last entry 1.
    """
    x, y = source.unbind(-1)
    u, v = target.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    system = torch.cat([rows_u, rows_v], dim=1)
    entries = torch.linalg.solve(system, torch.cat([u, v], dim=1))
    return torch.cat([entries, one[:, :1]], dim=1).reshape(-1, 3, 3)


def sample_homography_pairs(
    photographs: Photographs,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    strength: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    max_turn: float = 0.0,
    options: HomographyOptions | None = None,
) -> PairBatch:
    """Make a batch of pairs of views of single photographs.

    Args:
        photographs: where the planes come from.
        batch_size: number of pairs B.
        image_size: (H, W) of both images.
        strength: 0 (identical views) to 1 (the full ranges of the options).
        generator: CPU generator from which everything is drawn.
        device: where the images are made.
        max_turn: degrees by which one view may be turned in the image plane besides, either way,
            whatever the strength.
        options: ranges of the draws.

    Returns:
        The pairs, with `HomographyGeometry` as their truth.
    """
    options = options or HomographyOptions()
    indices = torch.randint(len(photographs), (batch_size,), generator=generator).tolist()
    sizes = torch.tensor([photographs.size(i) for i in indices], dtype=torch.float64)
    photo_from_view = _draw_views(sizes, image_size, strength, max_turn, options, generator)
    views, valids = [], []
    for homographies in photo_from_view:
        view, valid = render_views(
            photographs, indices, homographies.float().to(device), image_size
        )
        views.append(view)
        valids.append(valid)
    views, valids = dress_views(views, valids, strength, generator)
    forward = torch.linalg.inv(photo_from_view[1]) @ photo_from_view[0]
    forward = forward / forward[:, 2:, 2:]
    backward = torch.linalg.inv(forward)
    backward = backward / backward[:, 2:, 2:]
    geometry = HomographyGeometry(
        forward.float().to(device), backward.float().to(device), valids[0], valids[1]
    )
    return PairBatch(views[0], views[1], geometry)


def _draw_views(
    photo_sizes: Tensor,
    image_size: tuple[int, int],
    strength: float,
    max_turn: float,
    options: HomographyOptions,
    generator: torch.Generator,
) -> list[Tensor]:
    """Draw `G_0` and `G_1`, (B, 3, 3) float64 each, in random order."""
    count = len(photo_sizes)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0

    height, width = image_size
    side = torch.tensor([width, height], dtype=torch.float64)
    corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64) * side / 2
    middle = (side - 1) / 2
    pixel_corners = (corners + middle).expand(count, 4, 2)

    photo_side = photo_sizes.flip(-1)
    fit = (photo_side / side).amin(-1, keepdim=True)
    coverage = 1.0 - (1.0 - options.min_coverage) * (uniform(count, 1) + 1) / 2
    extent = fit * coverage
    room = (photo_side - extent * side) / 2
    centre = (photo_side - 1) / 2 + uniform(count, 2) * room
    view0 = corners * extent[:, None] + centre[:, None]

    angle = torch.randn(count, generator=generator, dtype=torch.float64) * options.rotation_sigma
    angle = angle.clamp(-options.rotation_max, options.rotation_max) * strength
    if max_turn:  # without, a seed gives the pairs that it always gave
        angle = angle + uniform(count) * max_turn
    angle = torch.deg2rad(angle)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=-1).reshape(count, 2, 2)
    scale = 2.0 ** (uniform(count, 1, 1) * options.max_log2_scale * strength)
    quad = corners + uniform(count, 4, 2) * side * options.perspective * strength
    shift = uniform(count, 1, 2) * side * options.translation * strength * scale.clamp(max=1.5)
    quad = (quad @ rotation.transpose(1, 2)) * scale + shift
    view1 = quad * extent[:, None] + centre[:, None]

    views = [
        homography_from_corners(pixel_corners, view0),
        homography_from_corners(pixel_corners, view1),
    ]
    swap = (torch.rand(count, 1, 1, generator=generator) < 0.5).expand(count, 3, 3)
    return [torch.where(swap, views[1], views[0]), torch.where(swap, views[0], views[1])]


def render_views(
    photographs: Photographs,
    indices: list[int],
    photo_from_view: Tensor,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Draw photographs through homographies.

    Args:
        photographs: some of which are drawn.
        indices: of B photographs.
        photo_from_view: (B, 3, 3), pixels of a view to pixels of its photograph.
        image_size: (H, W) of the views.

    Returns:
        (B, 3, H, W) colours in 0..1 and (B, H, W) bool, where a view shows its photograph.
    """
    grid = pixel_grid(*image_size, photo_from_view.device).reshape(1, -1, 2)
    points, in_front = apply_homography(photo_from_view, grid.expand(len(indices), -1, -1))
    points = points.reshape(-1, *image_size, 2)
    extents = points.new_tensor([photographs.size(i)[::-1] for i in indices])[:, None, None]
    inside = ((points >= 0) & (points <= extents - 1)).all(-1)
    images = torch.stack([photographs.sample(i, p) for i, p in zip(indices, points, strict=True)])
    return images, inside & in_front.reshape(-1, *image_size)
