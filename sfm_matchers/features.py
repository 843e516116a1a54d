"""Sparse front-ends: keypoints and descriptors of one photo, and their extraction to HDF5.

Every front-end is a `FeatureExtractor`: an RGB image in, `Features` out. Keypoints are float32
pixels of the image given, (0, 0) at the centre of its top-left pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pycolmap
from tqdm import tqdm

from .confs import build
from .errors import InputError
from .images import inside_mask, network_size, read_image, read_mask, resize_image, to_original
from .storage import StagedFile, fingerprint


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

    def to_original(self, scale: tuple[float, float]) -> Features:
        """Map features of a resized image to the photo; `scale` is original / resized (x, y)."""
        keypoints = to_original(self.keypoints, scale)
        scales = None if self.scales is None else self.scales * np.float32(np.mean(scale))
        return Features(keypoints, self.descriptors, self.scores, scales, self.orientations)

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
            arrays["oris"] = self.orientations.astype(np.float32)
        return arrays


class FeatureExtractor(Protocol):
    """A sparse front-end."""

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of an RGB image (H, W, 3) uint8."""


class SiftExtractor:
    """COLMAP's SIFT with RootSIFT descriptors (L1 root, 0..255/512 as in COLMAP's database).

    Order: COLMAP's, octave by octave from fine to coarse; a keypoint with two orientations appears
    twice. Scores are the scales, since COLMAP prefers large features when it must choose.

    Args:
        max_num_features: COLMAP's limit. It counts locations per octave, so that some more
            features can come out.
        peak_threshold: difference-of-Gaussians contrast, COLMAP's default 0.02 / 3.
    """

    def __init__(self, max_num_features: int = 8192, peak_threshold: float = 0.02 / 3) -> None:
        options = pycolmap.FeatureExtractionOptions()
        options.sift.max_num_features = max_num_features
        options.sift.peak_threshold = peak_threshold
        self._extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)

    def extract(self, image: np.ndarray) -> Features:
        """Return the SIFT features of an RGB image (H, W, 3) uint8."""
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image)).clone_as_grey()
        keypoints, descriptors = self._extractor.extract(bitmap)
        table = pycolmap.keypoints_to_matrix(keypoints).reshape(-1, 4)
        return Features(
            keypoints=table[:, :2].astype(np.float32) - 0.5,
            descriptors=descriptors.data.T.astype(np.float16) / np.float16(512),
            scores=table[:, 2].astype(np.float32),
            scales=table[:, 2].astype(np.float32),
            orientations=table[:, 3].astype(np.float32),
        )


EXTRACTORS: dict[str, Callable[..., FeatureExtractor]] = {"sift": SiftExtractor}


def load_extractor(model: Mapping[str, Any]) -> FeatureExtractor:
    """Build a front-end from the ``model`` part of a features conf: its name and its options."""
    options = dict(model)
    name = options.pop("name")
    if name not in EXTRACTORS:
        raise InputError(f"unknown front-end {name!r}, expected one of {', '.join(EXTRACTORS)}")
    return build(EXTRACTORS[name], options, f"front-end {name}")


def extract_features(
    conf: Mapping[str, Any],
    image_dir: Path,
    image_fingerprints: Mapping[str, str],
    feature_path: Path,
    mask_dir: Path | None = None,
) -> list[str]:
    """Extract the features of photos to a feature file; photos that are in it already are kept.

    Args:
        conf: ``{"model": {...}, "preprocessing": {"resize_max": pixels}}``.
        image_dir: the photos.
        image_fingerprints: image name -> fingerprint of its content (and mask).
        feature_path: the HDF5 file to make or complete.
        mask_dir: COLMAP-style masks; features on masked-out pixels are dropped.

    Returns:
        The names whose features were computed now.
    """
    staged = StagedFile(feature_path)
    wanted = {name: fingerprint(conf, digest) for name, digest in image_fingerprints.items()}
    missing = [name for name in sorted(wanted) if not staged.is_current(name, wanted[name])]
    if missing:
        extractor = load_extractor(conf["model"])
        for name in tqdm(missing, desc=f"Features ({conf['model']['name']})", unit="photo"):
            arrays = _extract_one(extractor, conf, image_dir, name, mask_dir)
            staged.add({name: arrays}, wanted)
    staged.commit()
    return missing


def _extract_one(
    extractor: FeatureExtractor,
    conf: Mapping[str, Any],
    image_dir: Path,
    name: str,
    mask_dir: Path | None,
) -> dict[str, np.ndarray]:
    image = read_image(Path(image_dir) / name)
    mask = read_mask(mask_dir, name, (image.shape[1], image.shape[0])) if mask_dir else None
    return extract_image(extractor, conf, image, mask)


def extract_image(
    extractor: FeatureExtractor,
    conf: Mapping[str, Any],
    image: np.ndarray,
    mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the datasets of a feature file for one photo.

    Args:
        extractor: the front-end of `conf`.
        conf: see `extract_features`; a longer side above ``resize_max`` is reduced to it.
        image: RGB (H, W, 3) uint8.
        mask: (H, W) bool, False where features are dropped.
    """
    size = (image.shape[1], image.shape[0])
    resize_max = conf.get("preprocessing", {}).get("resize_max")
    if resize_max and max(size) > resize_max:
        resized = resize_image(image, network_size(size, resize_max, multiple=1))
        features = extractor.extract(resized.pixels).to_original(resized.scale)
    else:
        features = extractor.extract(image)
    return features.select(inside_mask(features.keypoints, mask)).to_arrays(size)
