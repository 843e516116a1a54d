"""The loss of Efficient LoFTR's authors (Wang et al., CVPR 2024), whole, as their code has it.

Its parts are those of `training.losses.efficient_loftr`; training weighs them otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.networks.coarse_matching import CoarseMatches
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, match_windows
from sfm_matchers.training.data.pair_batch import PairGeometry
from sfm_matchers.training.losses.efficient_loftr import (
    LOCAL_WEIGHT,
    CoarseTruth,
    coarse_loss,
    coarse_truth,
    fine_loss,
    fine_truth,
    local_loss,
)

COARSE_WEIGHT, FINE_WEIGHT = 1.0, 1.0
FINE_SHARE = 0.3  # matches the fine stage is trained on, as a share of the cells
MIN_TRUE_MATCHES = 200  # of these, at least so many come from the ground truth


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
