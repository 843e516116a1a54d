"""Tensors of several pairs in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from sfm_matchers.matchers.protocols import (
    EncodedImage,
    Matches,
)
from sfm_matchers.photos.resizing import to_original

BATCH_SIZE_GPU = 8  # pairs


def batch_size_on(device: torch.device) -> int:
    """How many pairs to match at once: a CPU gains nothing by more than one."""
    return 1 if device.type == "cpu" else BATCH_SIZE_GPU


def stack_features(features: Sequence[Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    """Put the tensors (1, ...) of several images together; those of one stay as they are."""
    parts = zip(*features, strict=True)
    return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]


def split_matches(
    batch_ids: torch.Tensor,
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    scores: torch.Tensor,
    pairs: Sequence[tuple[EncodedImage, EncodedImage]],
) -> list[Matches]:
    """The matches (N,) of each pair of a batch, in pixels of the photos."""
    counts = torch.bincount(batch_ids, minlength=len(pairs)).tolist()
    parts = (tensor.float().cpu().split(counts) for tensor in (keypoints0, keypoints1, scores))
    return [
        Matches(
            to_original(points0.numpy(), image0.scale),
            to_original(points1.numpy(), image1.scale),
            scores_of_pair.numpy(),
        )
        for (image0, image1), points0, points1, scores_of_pair in zip(pairs, *parts, strict=True)
    ]


def pad_maps(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Pad (B, C, h, w) with zeros at the right and bottom to `size` (height, width)."""
    return torch.nn.functional.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return how much memory tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
