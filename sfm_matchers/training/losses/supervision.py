"""Labels and losses that several networks share."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.training.data.pair_batch import PairGeometry, pixel_grid

IGNORED = -1
UNMATCHED_WEIGHT = 0.5  # of `unmatched_loss` beside the loss of the cells that have a partner


class CellTruth(NamedTuple):
    """What is known of the cells of both images, L = (H // stride) * (W // stride) each.

    Attributes:
        labels0: (B, L) row-major cells of image 1, `IGNORED` where the point is not visible there.
        labels1: (B, L) cells of image 0.
        unmatched0: (B, L) bool, cells without a partner: hidden in the other image, outside it, or
            covered here. Cells of which nothing is known are not among them.
        unmatched1: (B, L) bool.
    """

    labels0: Tensor
    labels1: Tensor
    unmatched0: Tensor
    unmatched1: Tensor


def cell_truth(
    geometry: PairGeometry,
    image_size: tuple[int, int],
    stride: int,
    offset: float,
    device: torch.device | str,
) -> CellTruth:
    """Find for every cell the cell of the other image nearest to its true position.

    Args:
        geometry: the truth between the images.
        image_size: (H, W), the same for both images.
        stride: side of a cell in pixels.
        offset: pixel position of the point that stands for cell (0, 0), along both axes.
        device: where the labels are made.
    """
    rows, columns = image_size[0] // stride, image_size[1] // stride
    cells = pixel_grid(rows, columns, device).reshape(1, -1, 2)
    labels, unmatched = [], []
    for source in (0, 1):
        warped, visible = geometry.warp(cells * stride + offset, source)
        nearest = ((warped - offset) / stride).clamp(-1e6, 1e6).round().long()
        x, y = nearest.unbind(-1)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & visible
        labels.append(torch.where(inside, y * columns + x, IGNORED))
        unmatched.append(~visible & warped.isfinite().all(-1))
    return CellTruth(*labels, *unmatched)


def unmatched_loss(similarity: Tensor, unmatched0: Tensor, unmatched1: Tensor) -> Tensor:
    """-log(1 - p) of the largest softmax entry p of each row, and column, without a partner.

    Cross-entropy says nothing of such rows, and the network then matches them with confidence.

    Args:
        similarity: (B, L0, L1) logits.
        unmatched0: (B, L0) bool of `cell_truth`.
        unmatched1: (B, L1) bool.

    Returns:
        Scalar: mean over the rows plus mean over the columns (0 for none).
    """
    total = similarity.new_zeros(())
    for logits, unmatched in ((similarity, unmatched0), (similarity.transpose(1, 2), unmatched1)):
        largest = logits[unmatched].log_softmax(-1).amax(-1)
        loss = -torch.log1p(-largest.clamp(max=-1e-4).exp())
        total = total + loss.sum() / max(len(loss), 1)
    return total


def dual_cross_entropy(similarity: Tensor, labels0: Tensor, labels1: Tensor) -> Tensor:
    """Cross-entropy of the softmax over each row and over each column, labelled entries only.

    Args:
        similarity: (B, L0, L1) logits.
        labels0: (B, L0) true column of each row, or `IGNORED`.
        labels1: (B, L1) true row of each column, or `IGNORED`.

    Returns:
        Scalar: mean over labelled rows plus mean over labelled columns (0 for none).
    """
    total = similarity.new_zeros(())
    for logits, labels in ((similarity, labels0), (similarity.transpose(1, 2), labels1)):
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total = total + loss / (labels != IGNORED).sum().clamp(min=1)
    return total


@torch.no_grad()
def label_accuracy(similarity: Tensor, labels0: Tensor) -> Tensor:
    """Share of the labelled rows whose largest entry is the true one: scalar."""
    labelled = labels0 != IGNORED
    correct = (similarity.argmax(-1) == labels0) & labelled
    return correct.sum() / labelled.sum().clamp(min=1)


@torch.no_grad()
def confident_precision(probability: Tensor, truth: CellTruth, threshold: float) -> Tensor:
    """Share of the rows with an entry above the threshold in which the largest is the true one.

    Rows of which nothing is known do not count. Scalar; 1 where there is no such row.
    """
    largest, best = probability.max(-1)
    confident = (largest > threshold) & ((truth.labels0 != IGNORED) | truth.unmatched0)
    correct = confident & (best == truth.labels0)
    return correct.sum() / confident.sum() if confident.any() else largest.new_ones(())


def sample_labelled_cells(
    labels0: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw cells of image 0 that have a true partner, with replacement.

    Where a pair has none at all, any of its cells are drawn, with cell 0 as partner.

    Args:
        labels0: (B, L0) of `cell_truth`.
        count: number of draws per pair.
        generator: CPU generator.

    Returns:
        (B, count) cells of image 0 and (B, count) their partners in image 1.
    """
    labelled = labels0 != IGNORED
    weights = (labelled | ~labelled.any(1, keepdim=True)).float().cpu()
    cells0 = torch.multinomial(weights, count, replacement=True, generator=generator)
    cells0 = cells0.to(labels0.device)
    return cells0, labels0.gather(1, cells0).clamp(min=0)


def window_points(
    cells: Tensor, columns: int, coarse_stride: int, fine_stride: int, size: int
) -> Tensor:
    """Pixels of the windows around cells whose point is their top-left pixel.

    Args:
        cells: (B, N) row-major indices.
        columns: cells in a row of the image.
        coarse_stride: side of a cell in pixels.
        fine_stride: distance between neighbouring points of a window in pixels.
        size: points along each side of a window, odd.

    Returns:
        (B, N, size * size, 2), row-major, the middle one at (column, row) * coarse_stride.
    """
    centre = torch.stack([cells % columns, cells // columns], dim=-1) * coarse_stride
    offsets = (pixel_grid(size, size, cells.device) - size // 2) * fine_stride
    return centre[:, :, None].float() + offsets.reshape(-1, 2)


def window_labels(
    geometry: PairGeometry, points0: Tensor, points1: Tensor, fine_stride: int
) -> tuple[Tensor, Tensor]:
    """Find for every point of a window the point of the partner window nearest to the truth.

    Args:
        geometry: the truth between the images.
        points0: (B, N, P, 2) of `window_points` in image 0.
        points1: (B, N, P, 2) of the partner windows in image 1.
        fine_stride: distance between neighbouring points of a window in pixels.

    Returns:
        (B, N, P) labels of image 0's points and (B, N, P) of image 1's, `IGNORED` where the true
        position is not visible or outside the partner window.
    """
    count, points = points0.shape[1:3]
    size = round(points**0.5)
    labels = []
    for source, (here, there) in enumerate([(points0, points1), (points1, points0)]):
        warped, visible = geometry.warp(here.flatten(1, 2), source)
        relative = warped.unflatten(1, (count, points)) - there[:, :, :1]
        nearest = (relative / fine_stride).clamp(-1e6, 1e6).round().long()
        inside = ((nearest >= 0) & (nearest < size)).all(-1) & visible.unflatten(1, (count, points))
        labels.append(torch.where(inside, nearest[..., 1] * size + nearest[..., 0], IGNORED))
    return labels[0], labels[1]
