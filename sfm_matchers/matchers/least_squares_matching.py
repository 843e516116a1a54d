"""Move matched points until the photos around them agree: least squares matching.

A network tells to a pixel or so, of the pixels that it sees, where a point of photo 0 lies in
photo 1. The photos tell it to a tenth: the patch around the one point, carried over by an affine
map, must look like the patch around the other (Gruen, Adaptive least squares correlation, 1985).
Here it is solved by the inverse compositional steps of Baker and Matthews (Lucas-Kanade 20 years
on, 2004), brightness and contrast of the patches being free.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.geometry.local_affine_maps import local_affine_maps
from sfm_matchers.matchers.protocols import Matches

SEEN_SIDE = 1024  # pixels, longer side at which networks place points to a pixel or so
RADIUS = 5  # samples of a patch to each side of its centre; larger ones are less often flat
WINDOW = 0.6 * RADIUS  # standard deviation of the weights of samples
BLUR = 0.7  # standard deviation over the distance of samples
NUM_STEPS = 10
DAMPING = 1e-3  # of the mean curvature
MAX_STEP = 1.0  # samples
MAX_SHEAR = 0.2  # change of the affine map in a step
REACH = 3.0  # samples; points that move farther are taken for lost
LAST_STEP = 0.05  # samples; points that still move by more are taken for lost
MIN_CORRELATION = 0.7  # of the patches in the end
CHUNK = 1024  # matches aligned at once, for the processor's cache
CHUNK_GPU = 1 << 14  # a few hundred megabytes


def least_squares_matching(
    image0: np.ndarray, image1: np.ndarray, matches: Matches, device: str | torch.device = "cpu"
) -> Matches:
    """Move the points of photo 1 until the patches around them look like those of photo 0.

    Large photos are aligned coarsely first. Points stay where they are if their patches cannot be
    aligned: nothing to see, too far off, or another place.

    Args:
        image0: RGB (H, W, 3) uint8, photo 0.
        image1: photo 1, as it was matched.
        matches: of the whole photos.
        device: where to compute.

    Returns:
        The same matches in the same order, with other `keypoints1`.
    """
    chunk = CHUNK if torch.device(device).type == "cpu" else CHUNK_GPU
    images = [
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (image0, image1)
    ]
    points0, points1 = matches.keypoints0, matches.keypoints1
    for spacing, affine in _passes(max(max(image.shape) for image in images)):
        linear = local_affine_maps(points0, points1)
        if linear is None:
            return matches
        # Samples are never denser than the pixels of the photo that shows less.
        zoom = math.sqrt(np.median(np.linalg.det(linear)))
        spacings = (spacing / min(zoom, 1.0), spacing * max(zoom, 1.0))
        seen0, seen1 = (blurred(*both).to(device) for both in zip(images, spacings, strict=True))
        chunks = (
            torch.from_numpy(array.astype(np.float32)).to(device).split(chunk)
            for array in (points0, points1, linear * spacings[0])
        )
        aligned = [
            align_patches(seen0, seen1, *some, spacing=spacings[0], affine=affine).points
            for some in zip(*chunks, strict=True)
        ]
        points1 = torch.cat(aligned).cpu().numpy()
    return Matches(points0, points1, matches.scores)


def _passes(longer_side: int) -> list[tuple[float, bool]]:
    """Return of each pass the pixels between samples, and whether the affine map is free."""
    coarsest = max(0, round(math.log2(longer_side / SEEN_SIDE)))
    levels = [2.0**level for level in range(coarsest, -1, -1)]
    return [(levels[0], False), *((spacing, True) for spacing in levels)]


def blurred(image: np.ndarray, spacing: float) -> Tensor:
    """Return the image (1, 1, H, W), with nothing finer left than samples can tell."""
    return torch.from_numpy(cv2.GaussianBlur(image, (0, 0), BLUR * spacing))[None, None]


class Alignment(NamedTuple):
    """What came out for each of M patches.

    Attributes:
        points: (M, 2) in image 1; those that could not be aligned unchanged.
        succeeded: (M,) bool.
        correlation: (M,) of the patches in the end, whether it succeeded or not.
        texture: (M,) how much the patch of image 0 changes, in its own deviations, when it moves by
            a sample in the direction in which it changes least: mean of the squares.
    """

    points: Tensor
    succeeded: Tensor
    correlation: Tensor
    texture: Tensor


def align_patches(
    image0: Tensor,
    image1: Tensor,
    points0: Tensor,
    points1: Tensor,
    linear: Tensor,
    *,
    spacing: float,
    affine: bool,
) -> Alignment:
    """Align patches.

    Args:
        image0: (1, 1, H, W) as `blurred`.
        image1: (1, 1, H, W) likewise.
        points0: (M, 2) pixels.
        points1: (M, 2) pixels.
        linear: (M, 2, 2) from samples of a patch to pixels of image 1.
        spacing: of samples in image 0, pixels.
        affine: whether `linear` is free too, not only the point.
    """
    samples, weights = _window(points0.device, points0.dtype)
    template, steepest = _template(image0, points0, spacing, samples, weights, affine)
    weighted = (steepest * weights[:, None]).mT
    curvature = weighted @ steepest
    damping = DAMPING * curvature.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
    inverse = torch.linalg.inv(
        curvature + torch.diag_embed(damping[:, None].expand(-1, curvature.shape[1]))
    )

    def patches(points: Tensor, linear: Tensor) -> Tensor:
        places = points[:, None] + samples @ linear.mT
        return _standardised(_sampled(image1, places), weights)[0]

    one = torch.eye(2, dtype=linear.dtype, device=linear.device)
    placed, first = points1, patches(points1, linear)
    seen = first
    for _ in range(NUM_STEPS):
        step = (inverse @ (weighted @ (seen - template)[..., None]))[..., 0]
        shift = step[:, :2].clamp(-MAX_STEP, MAX_STEP)
        if affine:
            change = step[:, 2:].unflatten(1, (2, 2)).clamp(-MAX_SHEAR, MAX_SHEAR)
            linear = linear @ torch.linalg.inv(change + one)
        placed = placed - (linear @ shift[..., None])[..., 0]
        seen = patches(placed, linear)
    before, after = ((template * found * weights).sum(-1) for found in (first, seen))
    moved = torch.linalg.solve(linear, placed - points1)
    height, width = image1.shape[-2:]
    inside = (placed >= 0) & (placed <= _corner(width, height, placed.device, placed.dtype))
    succeeded = (
        (after >= before)
        & (after > MIN_CORRELATION)
        & (moved.norm(dim=-1) < REACH)
        & (shift.norm(dim=-1) < LAST_STEP)
        & inside.all(-1)
    )
    texture = torch.linalg.eigvalsh(curvature[:, :2, :2])[:, 0]
    return Alignment(torch.where(succeeded[:, None], placed, points1), succeeded, after, texture)


def _template(
    image: Tensor, points: Tensor, spacing: float, samples: Tensor, weights: Tensor, affine: bool
) -> tuple[Tensor, Tensor]:
    """Return the patches of image 0 and how they change with each parameter.

    Returns:
        Standardised patches (M, P), and their derivatives (M, P, 2 or 6) by the shift and the rows
        of the affine map, without what a change of brightness and contrast does too.
    """
    side = 2 * RADIUS + 1
    ring = points[:, None] + spacing * _grid(RADIUS + 1, points.device, points.dtype)
    wide = _sampled(image, ring).unflatten(1, (side + 2, side + 2))
    along_x = ((wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2).flatten(1)
    along_y = ((wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2).flatten(1)
    template, deviation = _standardised(wide[:, 1:-1, 1:-1].flatten(1), weights)
    gradient = torch.stack([along_x, along_y], -1) / deviation[..., None]
    steepest = gradient
    if affine:
        by_map = gradient[..., :, None] * samples[:, None, :]
        steepest = torch.cat([gradient, by_map.flatten(2)], -1)
    for free in (torch.ones_like(template), template):
        share = (steepest * (free * weights)[..., None]).sum(1, keepdim=True)
        steepest = steepest - free[..., None] * share
    return template, steepest


# Constants are made once for each device: to upload them again takes a GPU longer than the step.


@functools.lru_cache(maxsize=8)
def _grid(radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the places (P, 2) of the samples of a patch, row by row."""
    line = torch.arange(-radius, radius + 1)
    return torch.cartesian_prod(line, line).flip(-1).to(device, dtype)


@functools.lru_cache(maxsize=4)
def _window(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the places (P, 2) of the samples of a patch, and their weights (P,)."""
    samples = _grid(RADIUS, device, dtype)
    weights = torch.exp(-samples.square().sum(-1) / (2 * WINDOW**2))
    return samples, weights / weights.sum()


@functools.lru_cache(maxsize=8)
def _corner(width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the last pixel (2,) of an image."""
    return torch.tensor([width - 1, height - 1]).to(device, dtype)


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    """Return the values (M, P) of the image at places (M, P, 2) in pixels, edges repeated."""
    height, width = image.shape[-2:]
    scaled = places * (2 / _corner(width, height, places.device, places.dtype)) - 1
    values = F.grid_sample(image, scaled[None], "bicubic", "border", align_corners=True)
    return values[0, 0]


def _standardised(patches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return patches (M, P) of mean 0 and deviation 1, and the deviations (M, 1) they had."""
    centered = patches - (patches * weights).sum(-1, keepdim=True)
    deviation = (centered.square() * weights).sum(-1, keepdim=True).sqrt() + 1e-3
    return centered / deviation, deviation
