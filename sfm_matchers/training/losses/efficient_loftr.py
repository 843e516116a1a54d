"""Ground truth and losses of Efficient LoFTR (Wang et al., CVPR 2024, supervision).

As in the authors' training code: where the paper has plain log-likelihoods, the code has focal
losses weighted by how well the true position agrees with the centre of the matched cell or pixel.
Only true matches are trained on; the softmax pushes the others down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.networks.efficient_loftr import (
    CELL,
    EfficientLoFTRConfig,
    cell_position,
    first_stage_log_confidence,
    second_stage_offsets,
    window_position,
)
from sfm_matchers.training.data.pair_batch import PairGeometry

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
CONFIDENCE_RANGE = (1e-6, 1 - 1e-6)
LOCAL_WEIGHT = 0.25  # of the second refinement stage beside the others


@dataclass(frozen=True)
class CoarseTruth:
    """True matches of coarse cells.

    Attributes:
        batch_ids: (N,) int64, the pair of images.
        ids0: (N,) int64, row-major cell of image 0.
        ids1: (N,) int64, row-major cell of image 1.
        weights: (N,) 1 where the warped cell meets the other exactly, 0 half a cell away.
    """

    batch_ids: Tensor
    ids0: Tensor
    ids1: Tensor
    weights: Tensor


@dataclass(frozen=True)
class FineTruth:
    """True matches of the pixels of matched windows.

    Attributes:
        window_ids: (N,) int64, the pair of windows.
        pixels0: (N,) int64, row-major pixel of the 8 x 8 window of image 0.
        pixels1: (N,) int64, row-major pixel of the 8 x 8 window of image 1.
        offsets: (N, 2) x and y from that pixel to the true position, in [-0.5, 0.5] px.
        weights: (N,) 1 where the offset is zero, 0 half a pixel away.
    """

    window_ids: Tensor
    pixels0: Tensor
    pixels1: Tensor
    offsets: Tensor
    weights: Tensor


def coarse_truth(
    geometry: PairGeometry,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    *,
    scale0: Tensor,
    scale1: Tensor,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
    only_visible: bool = False,
) -> CoarseTruth:
    """Find the cells that are each other's nearest after warping.

    Args:
        geometry: the truth between the images in the caller's pixels.
        grid0: (h0, w0) cells of image 0.
        grid1: (h1, w1) cells of image 1.
        scale0: (B, 2) factors of x and y that take input pixels of image 0 to the caller's.
        scale1: (B, 2), the same for image 1.
        mask0: (B, h0, w0) bool, False in padded cells.
        mask1: (B, h1, w1) bool.
        only_visible: leave out cells that the geometry calls hidden. The authors keep them and
            rely on the nearest cells being mutual.
    """
    position0, nearest1 = _nearest_cells(
        geometry, 0, grid0, grid1, scale0, scale1, mask0, only_visible
    )
    _, nearest0 = _nearest_cells(geometry, 1, grid1, grid0, scale1, scale0, mask1, only_visible)
    cells0 = torch.arange(nearest1.shape[1], device=nearest1.device)
    returned = nearest0.gather(1, nearest1.clamp(min=0))
    mutual = (nearest1 >= 0) & (returned == cells0)
    mutual[:, 0] = False  # as the authors, for whom cell 0 means none
    batch_ids, ids0 = mutual.nonzero(as_tuple=True)
    position = position0[batch_ids, ids0]
    return CoarseTruth(
        batch_ids, ids0, nearest1[batch_ids, ids0], _overlap_weight(position - position.round())
    )


def _nearest_cells(
    geometry: PairGeometry,
    source: int,
    grid: tuple[int, int],
    target_grid: tuple[int, int],
    scale: Tensor,
    target_scale: Tensor,
    mask: Tensor | None,
    only_visible: bool,
) -> tuple[Tensor, Tensor]:
    """Positions (B, L, 2) of cells in the other image's cells, and the nearest (B, L) or -1."""
    cells = torch.arange(grid[0] * grid[1], device=scale.device)
    points = cell_position(cells, grid[1]) * scale[:, None]
    warped, visible = geometry.warp(points, source)
    position = warped / (CELL * target_scale[:, None])
    x, y = position.round().unbind(-1)
    valid = (x >= 0) & (x < target_grid[1]) & (y >= 0) & (y < target_grid[0])
    if only_visible:
        valid &= visible
    if mask is not None:
        valid &= mask.flatten(1)
    return position, torch.where(valid, y * target_grid[1] + x, -1).long()


@torch.no_grad()
def fine_truth(
    geometry: PairGeometry,
    batch_ids: Tensor,
    ids0: Tensor,
    ids1: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    *,
    scale0: Tensor,
    scale1: Tensor,
) -> FineTruth:
    """Find the pixels of window 0 whose visible true position lies in the matched window 1.

    Args:
        geometry: the truth between the images in the caller's pixels.
        batch_ids: (M,) the pair of images of each match.
        ids0: (M,) matched cells of image 0.
        ids1: (M,) matched cells of image 1.
        grid0: (h0, w0) cells of image 0.
        grid1: (h1, w1) cells of image 1.
        scale0: (B, 2) factors of x and y that take input pixels of image 0 to the caller's.
        scale1: (B, 2), the same for image 1.
    """
    device = ids0.device
    cells = cell_position(torch.arange(grid0[0] * grid0[1], device=device), grid0[1])
    pixels = window_position(torch.arange(CELL**2, device=device))
    points = (cells[:, None] + pixels).flatten(0, 1) * scale0[:, None]
    warped, visible = geometry.warp(points, 0)
    warped = warped.unflatten(1, (-1, CELL**2))[batch_ids, ids0]  # (M, 64, 2)
    visible = visible.unflatten(1, (-1, CELL**2))[batch_ids, ids0]

    origin = cell_position(ids1, grid1[1])[:, None] + window_position(ids1.new_zeros(()))
    position = warped / scale1[batch_ids, None] - origin
    nearest = position.round()
    window_ids, pixels0 = (visible & ((nearest >= 0) & (nearest < CELL)).all(-1)).nonzero(
        as_tuple=True
    )
    x, y = nearest[window_ids, pixels0].long().unbind(-1)
    offsets = (position - nearest)[window_ids, pixels0]
    return FineTruth(window_ids, pixels0, y * CELL + x, offsets, _overlap_weight(offsets))


def _overlap_weight(residual: Tensor) -> Tensor:
    """1 where a rounding residual (N, 2) is zero, falling to 0 where it is a half."""
    return (1 - 2 * residual.abs()).prod(dim=-1)


def focal_loss(log_confidence: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the focal loss of true matches (N,); 0 if there are none."""
    confidence = log_confidence.exp().clamp(*CONFIDENCE_RANGE)
    loss = -FOCAL_ALPHA * (1 - confidence) ** FOCAL_GAMMA * confidence.log()
    return (loss * weights).sum() / max(len(loss), 1)


def coarse_loss(logits: Tensor, truth: CoarseTruth) -> Tensor:
    """Focal loss of the dual softmax of similarities (B, L0, L1) at the true matches."""
    batch_ids, ids0, ids1 = truth.batch_ids, truth.ids0, truth.ids1
    row_sums = logits.logsumexp(dim=2)[batch_ids, ids0]
    column_sums = logits.logsumexp(dim=1)[batch_ids, ids1]
    log_confidence = 2 * logits[batch_ids, ids0, ids1] - row_sums - column_sums
    return focal_loss(log_confidence, truth.weights)


def fine_loss(windows0: Tensor, windows1: Tensor, truth: FineTruth) -> Tensor:
    """Focal loss of the first refinement stage; windows as `first_stage_log_confidence`."""
    log_confidence = first_stage_log_confidence(windows0, windows1)
    return focal_loss(log_confidence[truth.window_ids, truth.pixels0, truth.pixels1], truth.weights)


def local_loss(
    windows0: Tensor, windows1: Tensor, truth: FineTruth, config: EfficientLoFTRConfig
) -> Tensor:
    """Mean squared error (px^2) of the second refinement stage; 0 if there are no true matches."""
    offsets = second_stage_offsets(
        windows0, windows1, truth.window_ids, truth.pixels0, truth.pixels1, config
    )
    return (offsets - truth.offsets).square().sum() / max(len(offsets), 1)
