"""Two photographs to matches, by any matcher."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sfm_matchers.confs import Conf, SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.matchers.closer_looks import closer_looks
from sfm_matchers.matchers.compiling import compile_matcher
from sfm_matchers.matchers.protocols import (
    DetectorFreeMatcher,
    Matches,
    SparseMatcher,
)
from sfm_matchers.matchers.quarter_turns import QuarterTurns, unturned_matches
from sfm_matchers.matchers.registry import (
    default_device,
    load_detector_free_matcher,
    load_sparse_matcher,
)
from sfm_matchers.photos.images import quarters_to_upright, read_image
from sfm_matchers.photos.masks import inside_mask, read_opacity

Photo = str | os.PathLike[str] | np.ndarray
_TwoImages = tuple[np.ndarray, np.ndarray]
_TwoMasks = tuple[np.ndarray | None, np.ndarray | None]


class PhotoMatcher:
    """A matcher of either kind behind one call that takes two photos."""

    def __init__(self, conf: Conf, weights: str, device: str, compile: bool = False) -> None:
        matcher: SparseMatcher | DetectorFreeMatcher
        if isinstance(conf, SparseConf):
            self._preprocessing = conf.features.preprocessing
            self._extractor = load_extractor(conf.features.model, device)
            matcher = self._sparse = load_sparse_matcher(conf, weights, device)
            self._match = self._match_features
        else:
            matcher = self._detector_free = load_detector_free_matcher(conf, weights, device)
            self._turns = QuarterTurns(matcher) if conf.preprocessing.quarter_turns else None
            self._looks = closer_looks(matcher, conf.preprocessing)
            self._match = self._match_images
        if compile:
            compile_matcher(matcher)

    def match(
        self,
        photo0: Photo,
        photo1: Photo,
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
        images = _decoded(photo0), _decoded(photo1)
        masks = _usable(photo0, images[0], mask0), _usable(photo1, images[1], mask1)
        return self._match((photo0, photo1), images, masks)

    def _match_images(
        self, photos: tuple[Photo, Photo], images: _TwoImages, masks: _TwoMasks
    ) -> Matches:
        image0, image1 = images
        sizes = (image0.shape[1::-1], image1.shape[1::-1])
        quarters = (0, 0)
        if self._turns is not None:
            upright = (_quarters_to_upright(photos[0]), _quarters_to_upright(photos[1]))
            (image0, image1), quarters = self._turns.alike((image0, image1), upright)
        matcher = self._detector_free
        matches = matcher.match_encoded(matcher.encode(image0), matcher.encode(image1))
        for look_closer in self._looks:
            matches = look_closer(image0, image1, matches)
        matches = unturned_matches(matches, quarters, sizes)
        kept = inside_mask(matches.keypoints0, masks[0]) & inside_mask(matches.keypoints1, masks[1])
        return Matches(matches.keypoints0[kept], matches.keypoints1[kept], matches.scores[kept])

    def _match_features(
        self, photos: tuple[Photo, Photo], images: _TwoImages, masks: _TwoMasks
    ) -> Matches:
        arrays0, arrays1 = (
            extract_image(self._extractor, self._preprocessing, image, mask)
            for image, mask in zip(images, masks, strict=True)
        )
        matches0, scores0 = self._sparse.match(arrays0, arrays1)
        chosen = matches0 >= 0
        return Matches(
            arrays0["keypoints"][chosen],
            arrays1["keypoints"][matches0[chosen]],
            scores0[chosen].astype(np.float32),
        )


def _decoded(photo: Photo) -> np.ndarray:
    return photo if isinstance(photo, np.ndarray) else read_image(Path(photo))


def _usable(photo: Photo, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Which pixels of a photo may be used, (H, W) bool; None where all of them."""
    if mask is not None and mask.shape != image.shape[:2]:
        raise InputError(f"a mask has the shape {mask.shape}, its photo {image.shape[:2]}")
    opaque = None if isinstance(photo, np.ndarray) else read_opacity(Path(photo))
    if mask is None or opaque is None:
        return opaque if mask is None else mask.astype(bool)
    return opaque & mask.astype(bool)


def _quarters_to_upright(photo: Photo) -> int:
    return 0 if isinstance(photo, np.ndarray) else quarters_to_upright(Path(photo))


def load_matcher(
    name: str, weights: str = "bundled", device: str = "auto", *, compile: bool = False
) -> PhotoMatcher:
    """Load a matcher by the name of its conf.

    Example:
        >>> matcher = load_matcher("sift")
        >>> blank = np.zeros((64, 64, 3), dtype=np.uint8)
        >>> len(matcher.match(blank, blank))
        0

    Args:
        name: a conf that comes with the package (``sift``, ``jamma``, ...) or a conf file.
        weights: ``bundled``, ``official`` (downloaded), or a checkpoint file.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        compile: use torch.compile; the first pairs then take a minute or more.

    Raises:
        InputError: unknown conf or device, or ``compile`` where there is nothing to compile with.
        WeightsError: the weights cannot be loaded; the message says what to do.
    """
    return PhotoMatcher(load_conf(name), weights, default_device(device), compile)
