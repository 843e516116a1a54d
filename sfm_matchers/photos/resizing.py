"""Photos resized for a network, and points carried back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ResizedImage:
    """A photo at the size a network sees it.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, or (h, w) gray.
        scale: (original width / w, original height / h); the two differ slightly in general.
    """

    pixels: np.ndarray
    scale: tuple[float, float]


def to_original(points: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Map points (N, 2) of a resized image to pixels of the photo, as float32.

    Centres of top-left pixels are (0, 0) in both: ``(p + 0.5) * scale - 0.5``.
    """
    factors = np.asarray(scale, dtype=np.float64)
    return ((np.asarray(points, dtype=np.float64) + 0.5) * factors - 0.5).astype(np.float32)


def turned(image: np.ndarray, quarters: int) -> np.ndarray:
    """Turn an image (H, W[, C]) counter-clockwise by quarters."""
    return np.ascontiguousarray(np.rot90(image, quarters))


def unturned(points: np.ndarray, quarter_turns: int, size: tuple[int, int]) -> np.ndarray:
    """Map points of an image turned by `turned` back to the image as it was.

    Args:
        points: (N, 2) pixels (x, y) of the turned image.
        quarter_turns: counter-clockwise.
        size: (width, height) of the image as it was.

    Returns:
        (N, 2) float32.
    """
    x, y = np.asarray(points, dtype=np.float32).reshape(-1, 2).T
    right, bottom = size[0] - 1, size[1] - 1
    columns = {0: (x, y), 1: (right - y, x), 2: (right - x, bottom - y), 3: (y, bottom - x)}
    return np.stack(columns[quarter_turns % 4], axis=1)


def turned_points(points: np.ndarray, quarters: int, size: tuple[int, int]) -> np.ndarray:
    """Map points (N, 2) of an image of `size` (width, height) to the image after `turned`."""
    return unturned(points, -quarters, turned_size(size, quarters))


def turned_size(size: tuple[int, int], quarters: int) -> tuple[int, int]:
    """Return the (width, height) after `turned` of an image of `size`."""
    return (size[1], size[0]) if quarters % 2 else size


def network_size(
    size: tuple[int, int], resize_max: int, multiple: int, *, enlarge: bool = False
) -> tuple[int, int]:
    """Return the (width, height) at which a network sees a photo of `size` (width, height).

    The longer side becomes `resize_max`, of a smaller photo only if `enlarge`; then each side is
    cut to a multiple of `multiple`, and is never less than one multiple.
    """
    factor = resize_max / max(size)
    if not enlarge:
        factor = min(1.0, factor)
    width, height = (max(multiple, round(side * factor) // multiple * multiple) for side in size)
    return width, height


def reduced(image: np.ndarray, longer_side: int) -> np.ndarray:
    """Reduce a photo (H, W[, 3]) uint8 to a longer side in pixels; a smaller one is left as it is.

    By area: for copies that are only looked at, faster than `resize_image`.
    """
    import cv2

    height, width = image.shape[:2]
    size = network_size((width, height), longer_side, multiple=1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> ResizedImage:
    """Resize a photo (H, W[, 3]) uint8 to `size` (width, height), antialiased bicubic."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return ResizedImage(image, (1.0, 1.0))

    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(image).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    resized = interpolate(planes, (size[1], size[0]), mode="bicubic", antialias=True)
    pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
    shape = (size[1], size[0]) if image.ndim == 2 else (size[1], size[0], 3)
    return ResizedImage(pixels.reshape(shape), (width / size[0], height / size[1]))
