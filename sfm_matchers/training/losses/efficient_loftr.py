"""Ground truth and losses of Efficient LoFTR (Wang et al., CVPR 2024, supervision).

As in the authors' training code: where the paper has plain log-likelihoods, the code has focal
losses weighted by how well the true position agrees with the centre of the matched cell or pixel.
Only true matches are trained on; the softmax pushes the others down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.networks.coarse_matching import CoarseMatches
from sfm_matchers.networks.efficient_loftr import (
    CELL,
    EfficientLoFTR,
    EfficientLoFTRConfig,
    cell_position,
    first_stage_log_confidence,
    match_windows,
    second_stage_offsets,
    window_position,
)
from sfm_matchers.training.data.pair_batch import PairGeometry

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
CONFIDENCE_RANGE = (1e-6, 1 - 1e-6)
COARSE_WEIGHT, FINE_WEIGHT, LOCAL_WEIGHT = 1.0, 1.0, 0.25
FINE_SHARE = 0.3  # matches the fine stage is trained on, as a share of the cells
MIN_TRUE_MATCHES = 200  # of these, at least so many come from the ground truth


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


@dataclass(frozen=True)
class EfficientLoFTRLoss:
    """Scalars: `total` is what is minimised, the weighted sum of the three others.

    Attributes:
        total: coarse + fine + 0.25 local.
        coarse: focal loss of true cells.
        fine: focal loss of true pixels within their windows (first refinement stage).
        local: squared error of the subpixel offset (second refinement stage), px^2.
    """

    total: Tensor
    coarse: Tensor
    fine: Tensor
    local: Tensor


@torch.no_grad()
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


def draw_fine_matches(
    predicted: CoarseMatches, truth: CoarseTruth, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the coarse matches that the fine stage is trained on.

    Predictions, or as many random ones of them as leave room for 200 true matches; the rest of
    `count` is filled with random true matches. Draws are with replacement.

    Args:
        predicted: matches of the network.
        truth: true matches; where there are none, only predictions are drawn.
        count: number of matches returned (if there is anything to draw from).
        generator: a CPU generator.

    Returns:
        (N,) batch ids, cells of image 0 and cells of image 1.
    """
    predictions = torch.stack([predicted.batch_ids, predicted.ids0, predicted.ids1])
    truths = torch.stack([truth.batch_ids, truth.ids0, truth.ids1])

    def draw(ids: Tensor, number: int) -> Tensor:
        chosen = torch.randint(max(ids.shape[1], 1), (number,), generator=generator)
        return ids[:, chosen.to(ids.device)]

    room = count - min(MIN_TRUE_MATCHES, count) if truths.shape[1] else count
    if predictions.shape[1] > room:
        predictions = draw(predictions, room)
    if truths.shape[1]:
        truths = draw(truths, count - predictions.shape[1])
    batch_ids, ids0, ids1 = torch.cat([predictions, truths], dim=1)
    return batch_ids, ids0, ids1


def efficient_loftr_loss(
    network: EfficientLoFTR,
    image0: Tensor,
    image1: Tensor,
    geometry: PairGeometry,
    *,
    scale0: Tensor | None = None,
    scale1: Tensor | None = None,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
    only_visible: bool = False,
    generator: torch.Generator | None = None,
) -> EfficientLoFTRLoss:
    """The loss of a batch of pairs.

    Args:
        network: in the training form; its config should have `padding="pool"` if masks are given,
            as in the authors' training.
        image0: (B, 1, H0, W0) grey in [0, 1].
        image1: (B, 1, H1, W1).
        geometry: the truth between the images in the caller's pixels.
        scale0: (B, 2) factors of x and y that take input pixels to the caller's; 1 by default.
        scale1: (B, 2).
        mask0: (B, H0/8, W0/8) bool, False in padded cells.
        mask1: (B, H1/8, W1/8) bool.
        only_visible: see `coarse_truth`.
        generator: CPU generator that draws the matches the fine stage is trained on. Without, the
            fine stage sees all predictions and nothing else, as in the authors' validation.
    """
    scale0 = image0.new_ones(len(image0), 2) if scale0 is None else scale0
    scale1 = image1.new_ones(len(image1), 2) if scale1 is None else scale1
    features0, features1 = network.encode_pair(image0, image1)
    coarse0, coarse1 = network.transform(features0, features1, mask0, mask1)
    logits = network.coarse_logits(coarse0, coarse1, mask0, mask1)
    grid0, grid1 = _grid(coarse0), _grid(coarse1)
    truth = coarse_truth(
        geometry,
        grid0,
        grid1,
        scale0=scale0,
        scale1=scale1,
        mask0=mask0,
        mask1=mask1,
        only_visible=only_visible,
    )

    predicted = network.match_coarse(coarse0, coarse1, mask0, mask1)
    ids = (predicted.batch_ids, predicted.ids0, predicted.ids1)
    if generator is not None:
        count = max(1, int(FINE_SHARE * _candidates(coarse0, coarse1, mask0, mask1)))
        ids = draw_fine_matches(predicted, truth, count, generator)
    windows0, windows1 = match_windows(
        *network.fine_maps(features0, features1, coarse0, coarse1), *ids
    )
    pixels = fine_truth(geometry, *ids, grid0, grid1, scale0=scale0, scale1=scale1)

    coarse = coarse_loss(logits, truth)
    fine = fine_loss(windows0, windows1, pixels)
    local = local_loss(windows0, windows1, pixels, network.config)
    total = COARSE_WEIGHT * coarse + FINE_WEIGHT * fine + LOCAL_WEIGHT * local
    return EfficientLoFTRLoss(total, coarse, fine, local)


def _grid(coarse: Tensor) -> tuple[int, int]:
    return coarse.shape[2], coarse.shape[3]


def _candidates(
    coarse0: Tensor, coarse1: Tensor, mask0: Tensor | None, mask1: Tensor | None
) -> int:
    """Number of matches a batch could have at most."""
    if mask0 is None or mask1 is None:
        return len(coarse0) * max(coarse0[0, 0].numel(), coarse1[0, 0].numel())
    return int(torch.minimum(mask0.flatten(1).sum(1), mask1.flatten(1).sum(1)).sum())
