"""Ground truth and losses of JamMa (Lu and Du, CVPR 2025, supervision), as its released code has.

Training supervises JamMa otherwise (`tasks.JamMaTask`); this is the reference: what the paper's
numbers were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.networks.jamma import (
    CELL,
    FINE_CELL,
    WINDOW,
    WINDOW_CELLS,
    JamMa,
    cell_position,
    fine_position,
)
from sfm_matchers.training.data.pair_batch import PairGeometry

FOCAL_ALPHA = 0.25
PROBABILITY_RANGE = (1e-6, 1 - 1e-6)
SUBPIXEL_WEIGHT = 1e4
MAX_EPIPOLAR_ERROR = 1e-4  # squared, in normalised coordinates: above, a match is an outlier
OUTLIER_WEIGHT = 1e-9  # of the sub-pixel loss where all are outliers: no gradient, yet a graph
FINE_WINDOWS = 500  # at most so many windows get a fine loss: bounds its memory


@dataclass(frozen=True)
class PairTruth:
    """What is known of a batch of pairs of one size.

    Attributes:
        geometry: the truth between the images, in the caller's pixels.
        intrinsics0: (B, 3, 3) of image 0, in the caller's pixels.
        intrinsics1: (B, 3, 3).
        cam1_from_cam0: (B, 4, 4).
        scale0: (B, 2) factors of x and y that take input pixels of image 0 to the caller's.
        scale1: (B, 2).
        mask0: (B, H/8, W/8) bool, False in padded cells; or None.
        mask1: (B, H/8, W/8) bool.
    """

    geometry: PairGeometry
    intrinsics0: Tensor
    intrinsics1: Tensor
    cam1_from_cam0: Tensor
    scale0: Tensor
    scale1: Tensor
    mask0: Tensor | None = None
    mask1: Tensor | None = None


@dataclass(frozen=True)
class JamMaLoss:
    """Scalars: `total` is what is minimised.

    Attributes:
        total: coarse + fine + 1e4 subpixel.
        coarse: focal loss of true pairs of coarse cells.
        fine: focal loss within the windows of the matches found.
        subpixel: mean squared symmetric epipolar distance, in normalised coordinates.
    """

    total: Tensor
    coarse: Tensor
    fine: Tensor
    subpixel: Tensor


# Ground truth -------------------------------------------------------------------------------------


@torch.no_grad()
def coarse_truth(truth: PairTruth, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """True pairs of coarse cells: the nearest of every visible cell, from both sides.

    Pairs from 0 to 1 and from 1 to 0 are united, so a cell may have several partners. The cell in
    the top-left corner is nobody's partner: the released code writes "none" with its index.

    Padded cells stand for the pixel (0, 0), as in the released code; `coarse_loss` gives their
    pairs no weight, but counts them.

    Args:
        truth: the pairs.
        grid: (H/8, W/8).

    Returns:
        batch_ids, ids0, ids1: (N,) int64, sorted by batch, then ids0, then ids1.
    """
    batch, cells = len(truth.scale0), grid[0] * grid[1]
    is_pair = torch.zeros(batch, cells, cells, dtype=torch.bool, device=truth.scale0.device)
    nearest1, nearest0 = _nearest_cells(truth, grid, 0), _nearest_cells(truth, grid, 1)
    batch_ids, ids0 = (nearest1 > 0).nonzero(as_tuple=True)
    is_pair[batch_ids, ids0, nearest1[batch_ids, ids0]] = True
    batch_ids, ids1 = (nearest0 > 0).nonzero(as_tuple=True)
    is_pair[batch_ids, nearest0[batch_ids, ids1], ids1] = True
    batch_ids, ids0, ids1 = is_pair.nonzero(as_tuple=True)
    return batch_ids, ids0, ids1


def _nearest_cells(truth: PairTruth, grid: tuple[int, int], source: int) -> Tensor:
    """For each cell of image `source` the nearest of the other image (B, L), -1 where unseen."""
    scales = (truth.scale0[:, None], truth.scale1[:, None])
    cells = torch.arange(grid[0] * grid[1], device=truth.scale0.device)
    points = cell_position(cells, grid[1]) * scales[source]
    mask = (truth.mask0, truth.mask1)[source]
    if mask is not None:
        points = points * mask.flatten(1)[..., None]
    warped, visible = truth.geometry.warp(points, source)
    x, y = (warped / (CELL * scales[1 - source])).round().unbind(-1)
    inside = (x >= 0) & (x < grid[1]) & (y >= 0) & (y < grid[0])
    return torch.where(visible & inside, y * grid[1] + x, -1).long()


@torch.no_grad()
def fine_truth(
    truth: PairTruth, grid: tuple[int, int], batch_ids: Tensor, ids0: Tensor, ids1: Tensor
) -> Tensor:
    """True pairs of cells within pairs of windows: those that are each other's nearest.

    Hidden points count too. The released code writes "outside the window" as cell 0, so a point
    that leaves the window still pairs with cell 0 if that cell points back at it, and cell 0 of
    image 0 is left out altogether; both are kept.

    Args:
        truth: the pairs.
        grid: (H/8, W/8).
        batch_ids: (M,) int64.
        ids0: (M,) int64, coarse cells of image 0.
        ids1: (M,) int64, of image 1.

    Returns:
        (M, 25, 25) bool.
    """
    nearest1 = _nearest_window_cells(truth, grid, 0, batch_ids, ids0, ids1)
    nearest0 = _nearest_window_cells(truth, grid, 1, batch_ids, ids1, ids0)
    cells = torch.arange(WINDOW_CELLS, device=ids0.device)
    mutual = nearest0.gather(1, nearest1) == cells
    mutual[:, 0] = False
    return mutual[..., None] & (nearest1[..., None] == cells)


def _nearest_window_cells(
    truth: PairTruth,
    grid: tuple[int, int],
    source: int,
    batch_ids: Tensor,
    source_ids: Tensor,
    target_ids: Tensor,
) -> Tensor:
    """For the window cells of `source` the nearest cell of the other window (M, 25), else 0."""
    scales = (truth.scale0, truth.scale1)
    cells = torch.arange(grid[0] * grid[1], device=source_ids.device)
    window_cells = torch.arange(WINDOW_CELLS, device=source_ids.device)
    points = fine_position(cells[:, None], window_cells, grid[1]).flatten(0, 1)
    warped, _ = truth.geometry.warp(points * scales[source][:, None], source)
    warped = warped.unflatten(1, (-1, WINDOW_CELLS))[batch_ids, source_ids]
    in_target = warped / scales[1 - source][batch_ids, None]
    middle = cell_position(target_ids, grid[1])[:, None]
    x, y = ((in_target - middle) / FINE_CELL + WINDOW // 2).round().unbind(-1)
    inside = (x >= 0) & (x < WINDOW) & (y >= 0) & (y < WINDOW)
    return torch.where(inside, y * WINDOW + x, 0).long()


# Losses -------------------------------------------------------------------------------------------


def _focal(probability: Tensor) -> Tensor:
    """-alpha (1 - p)^2 log p (Lin et al., "Focal Loss for Dense Object Detection", eq. 5)."""
    p = probability.clamp(*PROBABILITY_RANGE)
    return -FOCAL_ALPHA * (1 - p).square() * p.log()


def coarse_loss(similarity: Tensor, truth: PairTruth, grid: tuple[int, int]) -> Tensor:
    """Mean over the true pairs of focal(P01) + focal(P10), zero at padded cells.

    Args:
        similarity: (B, L, L) logits.
        truth: the pairs.
        grid: (H/8, W/8).
    """
    batch_ids, ids0, ids1 = at = coarse_truth(truth, grid)
    loss = _focal(similarity.softmax(2)[at]) + _focal(similarity.softmax(1)[at])
    for mask, ids in ((truth.mask0, ids0), (truth.mask1, ids1)):
        if mask is not None:
            loss = loss * mask.flatten(1)[batch_ids, ids]
    return loss.sum() / max(len(batch_ids), 1)


def fine_loss(similarity: Tensor, is_true: Tensor) -> Tensor:
    """Mean of focal(P) over the true pairs plus mean of focal(1 - P) over all others.

    P is the product of both softmaxes.

    Args:
        similarity: (M, 25, 25) logits.
        is_true: (M, 25, 25) bool.
    """
    probability = similarity.softmax(1) * similarity.softmax(2)
    positive, negative = _focal(probability[is_true]), _focal(1 - probability[~is_true])
    return sum(
        (losses.sum() / max(len(losses), 1) for losses in (positive, negative)),
        start=similarity.new_zeros(()),
    )


def subpixel_loss(points0: Tensor, points1: Tensor, batch_ids: Tensor, truth: PairTruth) -> Tensor:
    """Mean squared symmetric epipolar distance of matches, outliers left out.

    With normalised points x0, x1, E = [t]x R, l1 = E x0 and l0 = E^T x1:

        d = (x1^T E x0)^2 (1 / (l1_x^2 + l1_y^2) + 1 / (l0_x^2 + l0_y^2))

    Args:
        points0: (N, 2) in the caller's pixels.
        points1: (N, 2).
        batch_ids: (N,) int64.
        truth: the pairs.
    """
    if not len(points0):
        return points0.sum()
    rotation, translation = truth.cam1_from_cam0[:, :3, :3], truth.cam1_from_cam0[:, :3, 3]
    essential = torch.linalg.cross(translation[:, :, None], rotation, dim=1)[batch_ids]
    x0 = _normalize(points0, truth.intrinsics0[batch_ids])
    x1 = _normalize(points1, truth.intrinsics1[batch_ids])
    line1 = (essential @ x0[..., None])[..., 0]
    line0 = (essential.mT @ x1[..., None])[..., 0]
    residual = (x1 * line1).sum(-1).square()
    squared = residual * sum(1 / line[:, :2].square().sum(-1) for line in (line0, line1))
    inlier = squared < MAX_EPIPOLAR_ERROR
    return squared[inlier].mean() if inlier.any() else squared.mean() * OUTLIER_WEIGHT


def _normalize(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (N, 2) to homogeneous normalised coordinates (N, 3); no skew."""
    centre, focal = intrinsics[:, :2, 2], intrinsics[:, [0, 1], [0, 1]]
    return torch.cat(((points - centre) / focal, torch.ones_like(points[:, :1])), dim=1)


def jamma_loss(network: JamMa, image0: Tensor, image1: Tensor, truth: PairTruth) -> JamMaLoss:
    """The loss of a batch of pairs, as in the released code's validation.

    The fine stage sees the coarse matches found; the released training adds random true pairs.

    Args:
        network: its config's thresholds choose the matches.
        image0: (B, 3, H, W), normalised as `JamMa` expects.
        image1: (B, 3, H, W).
        truth: the pairs.
    """
    features0, features1 = network.encode(image0), network.encode(image1)
    coarse0, coarse1 = network.coarse_features(features0, features1)
    grid = (coarse0.shape[2], coarse0.shape[3])
    logits = network.coarse_similarity(coarse0, coarse1, truth.mask0, truth.mask1)
    loss_coarse = coarse_loss(logits, truth, grid)

    matches = network.match_coarse(coarse0, coarse1, truth.mask0, truth.mask1)
    fine0, fine1 = network.fine_maps(features0, features1, coarse0, coarse1)
    ids = torch.stack((matches.batch_ids, matches.ids0, matches.ids1))
    predictions = network.fine_predictions(fine0, fine1, *ids)
    chosen = torch.randperm(ids.shape[1], device=ids.device)[:FINE_WINDOWS]
    loss_fine = fine_loss(predictions.similarity[chosen], fine_truth(truth, grid, *ids[:, chosen]))

    kept, cells0, cells1, _ = network.choose_cells(predictions.similarity)
    offsets = network.subpixel_offsets(predictions.tokens, kept, cells0, cells1)
    batch_ids, ids0, ids1 = ids[:, kept]
    points0 = fine_position(ids0, cells0, grid[1]) + offsets[:, :2]
    points1 = fine_position(ids1, cells1, grid[1]) + offsets[:, 2:]
    loss_subpixel = subpixel_loss(
        points0 * truth.scale0[batch_ids], points1 * truth.scale1[batch_ids], batch_ids, truth
    )
    total = loss_coarse + loss_fine + SUBPIXEL_WEIGHT * loss_subpixel
    return JamMaLoss(total, loss_coarse, loss_fine, loss_subpixel)
