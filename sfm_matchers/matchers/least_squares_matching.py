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
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from sfm_matchers.geometry.local_affine_maps import local_affine_maps
from sfm_matchers.matchers.protocols import Matches

if TYPE_CHECKING:
    import torch

# Of numpy on the processor, where OpenCV samples them, and of torch on a GPU. What both understand
# is written once; torch, which takes a second to import, is not needed for the former.
Array = Any

SEEN_SIDE = 1024  # pixels, longer side at which networks place points to a pixel or so
RADIUS = 5  # samples of a patch to each side of its centre; larger ones are less often flat
WINDOW = 0.6 * RADIUS  # standard deviation of the weights of samples
BLUR = 0.7  # standard deviation over the distance of samples
NUM_STEPS = 10
FIRST_STEPS, STANDING = 4, 0.01  # after which those that move by fewer samples stay
DAMPING = 1e-3  # of the mean curvature
MAX_STEP = 1.0  # samples
MAX_SHEAR = 0.2  # change of the affine map in a step
REACH = 3.0  # samples; points that move farther are taken for lost
LAST_STEP = 0.05  # samples; points that still move by more are taken for lost
MIN_CORRELATION = 0.7  # of the patches in the end
TILE = 16_000  # pixels; OpenCV samples images of less than 32,767
CHUNK = 256  # matches aligned at once, for the processor's cache
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
    on_cpu = str(device).split(":")[0] == "cpu"
    chunk = CHUNK if on_cpu else CHUNK_GPU
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
        seen: list[Array] = [blurred(*both) for both in zip(images, spacings, strict=True)]
        places: list[Array] = [points0, points1, linear * spacings[0]]
        places = [array.astype(np.float32) for array in places]
        if not on_cpu:
            import torch

            seen, places = (
                [torch.from_numpy(array).to(device) for array in arrays]
                for arrays in (seen, places)
            )
        aligned = [
            align_patches(
                *seen,
                *(array[start : start + chunk] for array in places),
                spacing=spacings[0],
                affine=affine,
            ).points
            for start in range(0, len(points0), chunk)
        ]
        points1 = np.concatenate([part if on_cpu else part.cpu().numpy() for part in aligned])
    return Matches(points0, points1, matches.scores)


def _passes(longer_side: int) -> list[tuple[float, bool]]:
    """Return of each pass the pixels between samples, and whether the affine map is free."""
    coarsest = max(0, round(math.log2(longer_side / SEEN_SIDE)))
    levels = [2.0**level for level in range(coarsest, -1, -1)]
    return [(levels[0], False), *((spacing, True) for spacing in levels)]


def blurred(image: np.ndarray, spacing: float) -> np.ndarray:
    """Return the image (H, W), with nothing finer left than samples can tell."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR * spacing))


class Alignment(NamedTuple):
    """What came out for each of M patches.

    Attributes:
        points: (M, 2) in image 1; those that could not be aligned unchanged.
        succeeded: (M,) bool.
        correlation: (M,) of the patches in the end, whether it succeeded or not.
        texture: (M,) how much the patch of image 0 changes, in its own deviations, when it moves by
            a sample in the direction in which it changes least: mean of the squares.
    """

    points: Array
    succeeded: Array
    correlation: Array
    texture: Array


def align_patches(
    image0: Array,
    image1: Array,
    points0: Array,
    points1: Array,
    linear: Array,
    *,
    spacing: float,
    affine: bool,
) -> Alignment:
    """Align patches: arrays of numpy, or tensors on any device, all float32.

    Args:
        image0: (H, W) as `blurred`.
        image1: (H, W) likewise.
        points0: (M, 2) pixels.
        points1: (M, 2) pixels.
        linear: (M, 2, 2) from samples of a patch to pixels of image 1.
        spacing: of samples in image 0, pixels.
        affine: whether `linear` is free too, not only the point.
    """
    xp, put = _library(image0), _putting_beside(image0)
    weights = put(_weights())
    template, steepest = _template(image0, points0, spacing, affine)
    weighted = steepest * weights
    curvature = weighted @ steepest.swapaxes(1, 2)
    number = curvature.shape[1]
    damping = DAMPING * (curvature * put(_one(number))).sum((1, 2)) / number + 1e-6
    inverse = xp.linalg.inv(curvature + damping[:, None, None] * put(_one(number)))
    first = _seen(image1, points1, linear)
    begun = _Moving(template, weighted, inverse, points1, linear, first, 0 * points1)
    done = _moved(begun, image1, FIRST_STEPS, affine)
    (rows,) = xp.where((done.shift * done.shift).sum(-1) > STANDING**2)
    further = _Moving(*(array[rows] for array in done))
    further = _moved(further, image1, NUM_STEPS - FIRST_STEPS, affine)
    for name in ("points", "seen", "shift", *["linear"] * affine):  # the others are as they were
        getattr(done, name)[rows] = getattr(further, name)
    before, after = ((template * found * weights).sum(-1) for found in (first, done.seen))
    placed, shift = done.points, done.shift
    moved = xp.linalg.solve(done.linear, (placed - points1)[..., None])[..., 0]
    inside = (placed >= 0) & (placed <= put(_last_pixel(*image1.shape)))
    succeeded = (
        (after >= before)
        & (after > MIN_CORRELATION)
        & ((moved * moved).sum(-1) < REACH**2)
        & ((shift * shift).sum(-1) < LAST_STEP**2)
        & inside.all(-1)
    )
    texture = xp.linalg.eigvalsh(curvature[:, :2, :2])[:, 0]
    return Alignment(xp.where(succeeded[:, None], placed, points1), succeeded, after, texture)


class _Moving(NamedTuple):
    """M patches on their way: of image 0 and what a step is made with; where they are by now."""

    template: Array
    weighted: Array
    inverse: Array
    points: Array
    linear: Array
    seen: Array  # (M, P) in image 1, as `template`
    shift: Array  # (M, 2) samples, of the last step


def _moved(patches: _Moving, image1: Array, num_steps: int, affine: bool) -> _Moving:
    """The patches after some steps."""
    xp, put = _library(image1), _putting_beside(image1)
    template, weighted, inverse, points, linear, seen, shift = patches
    for _ in range(num_steps):
        step = (inverse @ (weighted @ (seen - template)[..., None]))[..., 0]
        shift = xp.clip(step[:, :2], -MAX_STEP, MAX_STEP)
        if affine:
            change = xp.clip(step[:, 2:].reshape(-1, 2, 2), -MAX_SHEAR, MAX_SHEAR)
            linear = linear @ xp.linalg.inv(change + put(_one(2)))
        points = points - (linear @ shift[..., None])[..., 0]
        seen = _seen(image1, points, linear)
    return _Moving(template, weighted, inverse, points, linear, seen, shift)


def _seen(image: Array, points: Array, linear: Array) -> Array:
    """The standardised patches (M, P) of an image around points."""
    put = _putting_beside(image)
    places = points[:, None] + put(_samples(RADIUS)) @ linear.swapaxes(1, 2)
    return _standardised(_sampled(image, places), put(_weights()))[0]


def _template(image: Array, points: Array, spacing: float, affine: bool) -> tuple[Array, Array]:
    """Return the patches of image 0 and how they change with each parameter.

    Returns:
        Standardised patches (M, P), and their derivatives (M, 2 or 6, P) by the shift and the rows
        of the affine map, without what a change of brightness and contrast does too.
    """
    xp, put = _library(image), _putting_beside(image)
    side, weights = 2 * RADIUS + 1, put(_weights())
    ring = points[:, None] + spacing * put(_samples(RADIUS + 1))
    wide = _sampled(image, ring).reshape(-1, side + 2, side + 2)
    along_x = ((wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2).reshape(-1, side**2)
    along_y = ((wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2).reshape(-1, side**2)
    inner = wide[:, 1:-1, 1:-1].reshape(-1, side**2)
    template, deviation = _standardised(inner, weights)
    gradient = xp.stack([along_x, along_y], 1) / deviation[..., None]
    steepest = gradient
    if affine:
        by_map = gradient[:, :, None] * put(_samples(RADIUS)).T
        steepest = xp.concatenate([gradient, by_map.reshape(-1, 4, side**2)], 1)
    free = xp.stack([xp.ones_like(template), template], 1)  # of length 1, and at right angles
    shares = steepest @ (free * weights).swapaxes(1, 2)
    return template, steepest - shares @ free


@functools.lru_cache(maxsize=4)
def _samples(radius: int) -> np.ndarray:
    """Return the places (P, 2) of the samples of a patch, row by row."""
    line = np.arange(-radius, radius + 1, dtype=np.float32)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


@functools.lru_cache(maxsize=1)
def _weights() -> np.ndarray:
    """Return the weights (P,) of the samples of a patch."""
    weights = np.exp(-(_samples(RADIUS) ** 2).sum(-1) / (2 * WINDOW**2))
    return np.asarray(weights / weights.sum())


@functools.lru_cache(maxsize=4)
def _one(size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _last_pixel(height: int, width: int) -> np.ndarray:
    return np.array([width - 1, height - 1], np.float32)


def _library(array: Array) -> Any:
    """The module whose functions take an array: numpy or torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _putting_beside(array: Array) -> Any:
    """What brings a constant of numpy to where an array is."""
    if isinstance(array, np.ndarray):
        return lambda constant: constant
    return lambda constant: _on_device(constant.tobytes(), constant.shape, array.device)


# Constants are made once for each device: to upload them again takes a GPU longer than the step.
@functools.lru_cache(maxsize=64)
def _on_device(values: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.frombuffer(values, np.float32).reshape(shape).copy()).to(device)


def _sampled(image: Array, places: Array) -> Array:
    """Return the values (M, P) of the image at places (M, P, 2) in pixels, edges repeated."""
    if isinstance(image, np.ndarray):
        return _remapped(image, places)
    import torch.nn.functional as F

    scaled = places * (2 / _putting_beside(image)(_last_pixel(*image.shape))) - 1
    values = F.grid_sample(image[None, None], scaled[None], "bicubic", "border", align_corners=True)
    return values[0, 0]


def _remapped(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`_sampled` of numpy's arrays."""
    if not len(places):
        return np.zeros(places.shape[:2], np.float32)
    if max(image.shape) > 2 * TILE:
        values = np.zeros(places.shape[:2], np.float32)
        tiles = places[:, 0] // TILE
        for tile in np.unique(tiles, axis=0):
            corner = np.clip(tile * TILE - TILE // 2, 0, _last_pixel(*image.shape)).astype(int)
            part = image[corner[1] :, corner[0] :][: 2 * TILE, : 2 * TILE]
            rows = (tiles == tile).all(1)
            values[rows] = _remapped(part, places[rows] - corner.astype(np.float32))
        return values
    values = cv2.remap(  # type: ignore[call-overload]
        image, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(values)


def _standardised(patches: Array, weights: Array) -> tuple[Array, Array]:
    """Return patches (M, P) of mean 0 and deviation 1, and the deviations (M, 1) they had."""
    centered = patches - (patches @ weights)[:, None]
    deviation = ((centered * centered) @ weights)[:, None] ** 0.5 + 1e-3
    return centered / deviation, deviation
