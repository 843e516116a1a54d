"""Ground truth and loss of MambaGlue, as in the authors' published training recipe.

The loss is LightGlue's (Lindenberger et al., ICCV 2023, section 3.4): the negative log likelihood
of the true assignment after every layer, and a cross-entropy for the confidence regressor. The
paper trains the regressor after the rest; it receives detached states and the rest nothing from
it, so that training both at once is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.networks.mambaglue import LayerOutputs, LocalFeatures
from sfm_matchers.training.data.pair_batch import PairGeometry

UNMATCHED = -1
IGNORED = -2


@dataclass(frozen=True)
class GroundTruthMatches:
    """The true partners of keypoints.

    Attributes:
        matches0: (B, M) int64, index of the partner in image 1, `UNMATCHED` where there is none,
            `IGNORED` where this cannot be told and at padding.
        matches1: (B, N) int64, the same for the keypoints of image 1.
    """

    matches0: Tensor
    matches1: Tensor


@dataclass(frozen=True)
class MambaGlueLoss:
    """The loss of a batch: means over its pairs.

    Attributes:
        total: (), what is minimised: the mean of `assignment` plus the mean of `confidence`.
        assignment: (layers,), the mean of the two next ones.
        matched: (layers,), negative log likelihood of the true matches.
        unmatched: (layers,), negative log likelihood that the unmatched keypoints have no match.
        confidence: (layers - 1,), cross-entropy of the confidence regressor.
    """

    total: Tensor
    assignment: Tensor
    matched: Tensor
    unmatched: Tensor
    confidence: Tensor


def ground_truth_matches(
    features0: LocalFeatures,
    features1: LocalFeatures,
    geometry: PairGeometry,
    positive_threshold: float = 3.0,
    negative_threshold: float = 3.0,
) -> GroundTruthMatches:
    """Decide from the geometry which keypoints are the same point.

    Two keypoints match if each is the nearest to the other, both are visible in both images, and
    both reprojection errors are below `positive_threshold` pixels. A keypoint is unmatched if no
    keypoint lies within `negative_threshold` pixels of where it falls in the other image (the
    recipe: 3 for homographies, 5 for real scenes). All others are ignored, as are those whose
    warped position is not finite because the geometry does not know it.

    Args:
        features0: keypoints in the pixel frame of the geometry.
        features1: the same for image 1.
        geometry: the truth between the images.
        positive_threshold: pixels, exclusive.
        negative_threshold: pixels, at least `positive_threshold`.
    """
    keypoints0, keypoints1 = features0.keypoints, features1.keypoints
    warped0, visible0 = geometry.warp(keypoints0, source=0)
    warped1, visible1 = geometry.warp(keypoints1, source=1)
    known0, known1 = warped0.isfinite().all(dim=-1), warped1.isfinite().all(dim=-1)
    both_valid = features0.valid[:, :, None] & features1.valid[:, None, :]
    error_in1 = _distances(warped0, keypoints1).masked_fill(~both_valid, torch.inf)
    error_in0 = _distances(keypoints0, warped1).masked_fill(~both_valid, torch.inf)

    both_visible = visible0[:, :, None] & visible1[:, None, :]
    error = torch.maximum(error_in0, error_in1).masked_fill(~both_visible, torch.inf)
    nearest0, nearest1 = error.min(dim=2), error.min(dim=1)
    return GroundTruthMatches(
        matches0=_label(
            nearest0.indices,
            _is_mutual(nearest0.indices, nearest1.indices) & (nearest0.values < positive_threshold),
            features0.valid & known0 & (error_in1.amin(dim=2) > negative_threshold),
        ),
        matches1=_label(
            nearest1.indices,
            _is_mutual(nearest1.indices, nearest0.indices) & (nearest1.values < positive_threshold),
            features1.valid & known1 & (error_in0.amin(dim=1) > negative_threshold),
        ),
    )


def _distances(points0: Tensor, points1: Tensor) -> Tensor:
    """Euclidean distances (B, M, N), without the matrix product that is off by tenths of pixels."""
    return torch.cdist(points0, points1, compute_mode="donot_use_mm_for_euclid_dist")


def _is_mutual(nearest: Tensor, nearest_back: Tensor) -> Tensor:
    return nearest_back.gather(1, nearest) == torch.arange(nearest.shape[1], device=nearest.device)


def _label(partner: Tensor, matched: Tensor, unmatched: Tensor) -> Tensor:
    others = torch.where(unmatched, UNMATCHED, IGNORED)
    return torch.where(matched, partner, others)


def mambaglue_loss(outputs: LayerOutputs, truth: GroundTruthMatches) -> MambaGlueLoss:
    """Compare the outputs of all layers with the truth; keypoints that are `IGNORED` have no part.

    Each layer weighs the same. The likelihood of matches and of unmatched keypoints is a mean over
    each pair's own, so that pairs with few matches count as much as others.
    """
    likelihoods = [_log_likelihood(scores, truth) for scores in outputs.log_assignments]
    matched = -torch.stack([positive for positive, _ in likelihoods])
    unmatched = -torch.stack([negative for _, negative in likelihoods])
    assignment = (matched + unmatched) / 2
    confidence = torch.stack(
        [_confidence_loss(outputs, layer) for layer in range(len(outputs.confidence_logits0))]
    )
    total = assignment.mean() + confidence.mean()
    return MambaGlueLoss(total, assignment, matched, unmatched, confidence)


def _log_likelihood(log_assignment: Tensor, truth: GroundTruthMatches) -> tuple[Tensor, Tensor]:
    """Mean log score of the true matches, and of "no match" where there is none: two scalars."""
    partner = truth.matches0.clamp(min=0)[..., None]
    score = log_assignment[:, :-1].gather(2, partner).squeeze(2)
    matched, total = _sum_where(truth.matches0 >= 0, score)
    unmatched0, total0 = _sum_where(truth.matches0 == UNMATCHED, log_assignment[:, :-1, -1])
    unmatched1, total1 = _sum_where(truth.matches1 == UNMATCHED, log_assignment[:, -1, :-1])
    positive = total / matched.clamp(min=1)
    negative = (total0 + total1) / (unmatched0.clamp(min=1) + unmatched1.clamp(min=1))
    return positive.mean(), negative.mean()


def _confidence_loss(outputs: LayerOutputs, layer: int) -> Tensor:
    """Cross-entropy of "the best partner is already the last layer's", mean over both images."""
    now, final = outputs.log_assignments[layer].detach(), outputs.log_assignments[-1].detach()
    settled0 = now[:, :-1].argmax(dim=2) == final[:, :-1].argmax(dim=2)
    settled1 = now[:, :, :-1].argmax(dim=1) == final[:, :, :-1].argmax(dim=1)
    losses = []
    for logits, settled, valid in (
        (outputs.confidence_logits0[layer], settled0, outputs.valid0),
        (outputs.confidence_logits1[layer], settled1, outputs.valid1),
    ):
        entropy = F.binary_cross_entropy_with_logits(logits, settled.to(logits), reduction="none")
        count, total = _sum_where(valid, entropy)
        losses.append((total / count).mean())
    return torch.stack(losses).mean()


def _sum_where(mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Count and sum of the masked values of each pair, (B,) each; others may be infinite."""
    return mask.sum(dim=1), torch.where(mask, values, 0).sum(dim=1)
