"""Reading textures at any place and size: bilinear, prefiltered, linear light."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfm_matchers.synthetic.arrays import FloatArray

_TO_LINEAR = ((np.arange(256) / 255) ** 2.2).astype(np.float32)


def remap(source: NDArray[Any], x: FloatArray, y: FloatArray, interpolation: int) -> NDArray[Any]:
    """`source` (H, W, ...) at the positions x, y, each (N,): cv2.remap for lists of any length."""
    count, width = len(x), 1024  # cv2.remap takes at most 32767 columns
    padded = -(-count // width) * width
    maps = np.zeros((2, padded), np.float32)
    maps[0, :count], maps[1, :count] = x, y
    columns, rows = maps.reshape(2, -1, width)
    values = cv2.remap(source, columns, rows, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return values.reshape(padded, *source.shape[2:])[:count]


class Mipmap:
    """A texture and its halved copies side by side in one atlas, so that one remap reads all."""

    def __init__(self, texture: NDArray[np.uint8]) -> None:
        levels = [texture]
        while max(levels[-1].shape[:2]) > 2:
            height, width = levels[-1].shape[:2]
            half = max(1, width // 2), max(1, height // 2)
            halved = cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(halved, np.uint8))
        corners = np.zeros((len(levels), 2), np.int32)
        corners[1:, 0] = texture.shape[1]
        corners[2:, 1] = np.cumsum([level.shape[0] for level in levels[1:-1]])
        sizes = np.array([level.shape[1::-1] for level in levels], np.int32)
        width, height = (corners + sizes).max(axis=0)
        self.atlas = np.zeros((height, width, 3), np.uint8)
        for (x, y), level in zip(corners, levels, strict=True):
            self.atlas[y : y + level.shape[0], x : x + level.shape[1]] = level
        self.corners = corners.astype(np.float32)  # (levels, 2) x, y of each copy in the atlas
        self.sizes = sizes.astype(np.float32)  # (levels, 2) width, height

    def read(self, a: FloatArray, b: FloatArray, level: NDArray[np.integer]) -> NDArray[np.float32]:
        """Linear RGB (N, 3) at texture coordinates a, b in [0, 1] of the levels, each (N,)."""
        size, corner = self.sizes[level], self.corners[level]
        x = np.clip(a * size[:, 0] - 0.5, 0, size[:, 0] - 1) + corner[:, 0]
        y = np.clip(b * size[:, 1] - 0.5, 0, size[:, 1] - 1) + corner[:, 1]
        texels = remap(self.atlas, x, y, cv2.INTER_LINEAR)
        return np.asarray(cv2.LUT(texels, _TO_LINEAR), np.float32)
