"""Local features of one image, and what makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from sfm_matchers.files.hdf5 import UPRIGHT
from sfm_matchers.photos.resizing import to_original, turned_points, turned_size, unturned


@dataclass(frozen=True)
class Features:
    """The local features of one image, in the order in which the front-end documents them.

    Attributes:
        keypoints: (N, 2) float32, (x, y) in pixels.
        descriptors: (D, N) float16.
        scores: (N,) float32, larger is better.
        scales: (N,) float32 in pixels, or None if the front-end has none.
        orientations: (N,) float32 in radians, or None if the front-end has none.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray
    scores: np.ndarray
    scales: np.ndarray | None = None
    orientations: np.ndarray | None = None

    def select(self, chosen: np.ndarray) -> Features:
        """Return the features picked by booleans or indices (N,)."""
        return Features(
            self.keypoints[chosen],
            self.descriptors[:, chosen],
            self.scores[chosen],
            None if self.scales is None else self.scales[chosen],
            None if self.orientations is None else self.orientations[chosen],
        )

    def best_first(self, limit: int | None = None) -> Features:
        """Return the best features, `limit` at most, by falling score; equal ones row by row."""
        x, y = self.keypoints.T
        return self.select(np.lexsort((x, y, -self.scores))[:limit])

    def largest(self, limit: int | None) -> Features:
        """Return the features with the highest scores, `limit` at most, in the order they have."""
        if limit is None or len(self.scores) <= limit:
            return self
        return self.select(np.sort(np.argsort(-self.scores, kind="stable")[:limit]))

    def to_original(self, scale: tuple[float, float]) -> Features:
        """Map features of a resized image to the photo; `scale` is original / resized (x, y)."""
        keypoints = to_original(self.keypoints, scale)
        scales = None if self.scales is None else self.scales * np.float32(np.mean(scale))
        return Features(keypoints, self.descriptors, self.scores, scales, self.orientations)

    def unturned(self, quarters: int, size: tuple[int, int]) -> Features:
        """Map features of an image that was turned back to it; `size` (width, height) is its own.

        Only of front-ends that have no orientations, which would turn too.
        """
        return replace(self, keypoints=unturned(self.keypoints, quarters, size))

    def to_arrays(self, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return the datasets of a feature file, named as hloc names them."""
        arrays: dict[str, np.ndarray] = {
            "keypoints": self.keypoints.astype(np.float32),
            "descriptors": self.descriptors.astype(np.float16),
            "scores": self.scores.astype(np.float32),
            "image_size": np.asarray(image_size, dtype=np.int64),
        }
        if self.scales is not None:
            arrays["scales"] = self.scales.astype(np.float32)
        if self.orientations is not None:
            arrays["oris"] = np.rad2deg(self.orientations).astype(np.float32)  # hloc's unit
        return arrays


def set_upright(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keypoints and the size of an image as its front-end has seen it, upright.

    Args:
        arrays: datasets of a feature file, in pixels of the photo as stored.
    """
    keypoints, size = arrays["keypoints"], np.asarray(arrays["image_size"])
    quarters = int(np.ravel(arrays.get(UPRIGHT, 0))[0])
    if not quarters:
        return keypoints, size
    width, height = (int(side) for side in size)
    upright = turned_points(keypoints, quarters, (width, height))
    return upright, np.asarray(turned_size((width, height), quarters))


class FeatureExtractor(Protocol):
    """A sparse front-end.

    Attributes:
        batch_pixels: photos of one size are given together up to so many pixels; 0: one by one.
        wants_upright: its descriptors of photos that lie on their side differ, so that it sees
            photos as EXIF sets them upright.
    """

    batch_pixels: int
    wants_upright: bool

    def extract(self, images: np.ndarray) -> list[Features]:
        """Return the features of each of some RGB images of one size, (B, H, W, 3) uint8."""


@runtime_checkable
class ParallelFeatureExtractor(FeatureExtractor, Protocol):
    """A front-end that works on several images at once, whatever their sizes; results are the same.

    Attributes:
        batch_photos: how many are best given together.
        max_pixels: of an image, for the memory that it takes; see `extraction.seen_size`.
    """

    batch_photos: int
    max_pixels: int

    def extract_all(self, images: Sequence[np.ndarray]) -> list[Features]:
        """Return the features of each of some RGB images (H, W, 3) uint8."""
