"""What happens to rendered views before they become training images."""

from __future__ import annotations

import torch
from torch import Tensor

from sfm_matchers.training.data.pair_batch import pixel_grid
from sfm_matchers.training.data.photometry import vary_appearance

MAX_OCCLUDERS = 3  # in each view
BACKGROUND_SHARE = 0.7  # chance that empty parts show another picture of the batch


def dress_views(
    views: list[Tensor], valids: list[Tensor], strength: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Fill empty parts, paste occluders, and change the appearance of each view by itself.

    Fillings and occluders are other pictures of the batch, never the same one in both views.

    Args:
        views: two tensors (B, 3, H, W) in 0..1.
        valids: two masks (B, H, W), where the views show what the truth speaks of.
        strength: 0 to 1.
        generator: CPU generator from which everything is drawn.

    Returns:
        The images and the masks without what is now hidden.
    """
    views, valids = list(views), list(valids)
    batch_size, image_size = len(views[0]), views[0].shape[-2:]
    for k in range(2):
        if batch_size > 2 and torch.rand((), generator=generator) < BACKGROUND_SHARE:
            views[k] = torch.where(valids[k][:, None], views[k], views[k].roll(1 + k, 0))
    clean = list(views)
    for k in range(2):
        occluded = _draw_occluders(batch_size, image_size, strength, generator, views[k].device)
        views[k] = torch.where(occluded[:, None], clean[1 - k].roll(1, 0), views[k])
        valids[k] = valids[k] & ~occluded
        views[k] = vary_appearance(views[k], strength, generator)
    return views, valids


def _draw_occluders(
    batch_size: int,
    image_size: tuple[int, ...],
    strength: float,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Draw ellipses and rectangles that cover parts of the images: (B, H, W) bool."""
    height, width = image_size
    grid = pixel_grid(height, width, device)
    side = torch.tensor([width, height], dtype=torch.float32, device=device)
    draws = torch.rand(batch_size, MAX_OCCLUDERS, 6, generator=generator).to(device)
    centre = draws[..., :2] * side
    radius = (0.04 + 0.16 * draws[..., 2:4]) * side
    distance = ((grid - centre[:, :, None, None]) / radius[:, :, None, None]).abs()
    ellipse = distance.square().sum(-1) < 1
    rectangle = distance.amax(-1) < 0.85
    shape = torch.where(draws[..., 4, None, None] < 0.5, ellipse, rectangle)
    present = draws[..., 5, None, None] < 0.4 * strength
    return (shape & present).any(1)
