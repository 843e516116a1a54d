"""Two photographs to matches, by any matcher."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_matchers.confs import Conf, DetectorFreeConf, SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.features.base import FeatureExtractor
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.matchers.compiling import compile_matcher
from sfm_matchers.matchers.pair_matcher import PairMatcher
from sfm_matchers.matchers.protocols import Arrays, DetectorFreeMatcher, Matches, SparseMatcher
from sfm_matchers.matchers.registry import (
    default_device,
    load_detector_free_matcher,
    load_sparse_matcher,
)
from sfm_matchers.photos.images import read_image_and_orientation
from sfm_matchers.photos.masks import read_opacity

DEFAULT_MATCHER = "aliked+mambaglue"

PhotoOrPath = str | os.PathLike[str] | np.ndarray


class PhotoMatcher(ABC):
    """A matcher of either kind behind one call that takes two photos."""

    matcher: SparseMatcher | DetectorFreeMatcher
    name: str  # of its conf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def match(
        self,
        photo0: PhotoOrPath,
        photo1: PhotoOrPath,
        *,
        mask0: np.ndarray | None = None,
        mask1: np.ndarray | None = None,
    ) -> Matches:
        """Match two photos.

        Args:
            photo0: a path, or an RGB image (H, W, 3) uint8, best upright (of a file, EXIF tells).
            photo1: the same.
            mask0: (H, W) bool of photo 0 as stored, False where it is to be ignored; transparent
                parts of a file are ignored too.
            mask1: of photo 1.

        Returns:
            Matched points in pixels of the photos as stored (EXIF rotation not applied), and their
            scores.

        Raises:
            InputError: a photo cannot be read, or its mask has another size.
        """
        return self._match(_Given.of(photo0, mask0), _Given.of(photo1, mask1))

    @abstractmethod
    def _match(self, photo0: _Given, photo1: _Given) -> Matches:
        """Match two photos that are read."""


class ImagePhotoMatcher(PhotoMatcher):
    """A matcher of images.

    Args:
        matcher: what matches.
        conf: how it gets the photos.
    """

    def __init__(self, matcher: DetectorFreeMatcher, conf: DetectorFreeConf) -> None:
        self.matcher, self.name = matcher, conf.name
        self._pair_matcher = PairMatcher(matcher, conf.preprocessing)

    def _match(self, photo0: _Given, photo1: _Given) -> Matches:
        photos = (
            self._pair_matcher.photo(given.image, given.orientation, given.mask)
            for given in (photo0, photo1)
        )
        return self._pair_matcher.match(*photos)


class FeaturePhotoMatcher(PhotoMatcher):
    """A front-end, and a matcher of its features.

    Args:
        extractor: the front-end.
        matcher: what matches.
        conf: how the front-end gets the photos.
    """

    def __init__(
        self, extractor: FeatureExtractor, matcher: SparseMatcher, conf: SparseConf
    ) -> None:
        self.matcher = self._sparse = matcher
        self.name = conf.name
        self._extractor, self._preprocessing = extractor, conf.features.preprocessing

    def _match(self, photo0: _Given, photo1: _Given) -> Matches:
        arrays0, arrays1 = map(self._features, (photo0, photo1))
        matches0, scores0 = self._sparse.match(arrays0, arrays1)
        chosen = matches0 >= 0
        return Matches(
            arrays0["keypoints"][chosen],
            arrays1["keypoints"][matches0[chosen]],
            scores0[chosen].astype(np.float32),
        )

    def _features(self, photo: _Given) -> Arrays:
        return extract_image(
            self._extractor, self._preprocessing, photo.image, photo.mask, photo.orientation
        )


@dataclass(frozen=True)
class _Given:
    """A photo as a caller gives it, read.

    Attributes:
        image: RGB (H, W, 3) uint8.
        mask: (H, W) bool, which pixels may be used; None: all of them.
        orientation: of EXIF; 1 of an array.
    """

    image: np.ndarray
    mask: np.ndarray | None
    orientation: int = 1

    @classmethod
    def of(cls, photo: PhotoOrPath, mask: np.ndarray | None) -> _Given:
        """Read a photo."""
        if isinstance(photo, np.ndarray):
            image, orientation, opaque = photo, 1, None
        else:
            image, orientation = read_image_and_orientation(Path(photo))
            opaque = read_opacity(Path(photo))
        if mask is not None and mask.shape != image.shape[:2]:
            raise InputError(f"a mask has the shape {mask.shape}, its photo {image.shape[:2]}")
        if mask is None or opaque is None:
            return cls(image, opaque if mask is None else mask.astype(bool), orientation)
        return cls(image, opaque & mask.astype(bool), orientation)


def make_photo_matcher(
    conf: Conf, weights: str = "bundled", device: str = "cpu", *, compile: bool = False
) -> PhotoMatcher:
    """Load the matcher of a conf; arguments as of `load_matcher`, the device a torch device."""
    made: PhotoMatcher
    if isinstance(conf, SparseConf):
        extractor = load_extractor(conf.features.model, device, conf.features.where)
        made = FeaturePhotoMatcher(extractor, load_sparse_matcher(conf, weights, device), conf)
    else:
        made = ImagePhotoMatcher(load_detector_free_matcher(conf, weights, device), conf)
    if compile:
        compile_matcher(made.matcher)
    return made


def load_matcher(
    name: str = DEFAULT_MATCHER,
    weights: str = "bundled",
    device: str = "auto",
    *,
    compile: bool = False,
) -> PhotoMatcher:
    """Load a matcher by the name of its conf.

    Example:
        >>> matcher = load_matcher("sift")
        >>> blank = np.zeros((64, 64, 3), dtype=np.uint8)
        >>> len(matcher.match(blank, blank))
        0

    Args:
        name: a conf that comes with the package (``sift``, ``jamma``, ..., see `list_matchers`) or
            a conf file.
        weights: ``bundled``, ``official`` (downloaded), or a checkpoint file.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        compile: use torch.compile; the first pairs then take a minute or more.

    Raises:
        InputError: unknown conf or device, or ``compile`` where there is nothing to compile with.
        WeightsError: the weights cannot be loaded; the message says what to do.
    """
    return make_photo_matcher(load_conf(name), weights, default_device(device), compile=compile)
