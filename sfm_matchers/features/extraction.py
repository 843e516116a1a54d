"""Features of all photos of a folder to hloc's HDF5 file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfm_matchers.confs import FrontEnd, Preprocessing, build
from sfm_matchers.errors import (
    InputError,
    PhotoChangedError,
)
from sfm_matchers.features.base import FeatureExtractor, ParallelFeatureExtractor
from sfm_matchers.features.kornia import AlikedExtractor, DiskExtractor
from sfm_matchers.features.sift import PARALLEL_PIXELS, SiftExtractor
from sfm_matchers.features.superpoint import SuperPointExtractor
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.machine.progress import progress
from sfm_matchers.photos.checked import read_photo
from sfm_matchers.photos.masks import inside_mask
from sfm_matchers.photos.resizing import ResizedImage, network_size, resize_image

READ_AHEAD = 4  # photos decoded by a thread while the front-end works

EXTRACTORS: dict[str, Callable[..., FeatureExtractor]] = {
    "sift": SiftExtractor,
    "aliked-n16": partial(AlikedExtractor, name="aliked-n16"),
    "aliked-n16rot": partial(AlikedExtractor, name="aliked-n16rot"),
    "disk": DiskExtractor,
    "superpoint": SuperPointExtractor,
}


def load_extractor(model: Mapping[str, Any], device: str = "cpu") -> FeatureExtractor:
    """Build a front-end from the ``model`` part of a features conf: its name and its options.

    Args:
        model: ``{"name": ..., options}``.
        device: torch device.

    Raises:
        InputError: unknown front-end or option, or a licence that is not accepted.
        MissingExtraError: the front-end needs a library that is not installed.
        WeightsError: its weights cannot be loaded; the message says what to do.
    """
    options = dict(model)
    name = options.pop("name")
    if name not in EXTRACTORS:
        raise InputError(f"unknown front-end {name!r}, expected one of {', '.join(EXTRACTORS)}")
    where = f"front-end {name}"
    return build(EXTRACTORS[name], {**options, "device": device}, where)


def extract_features(
    front_end: FrontEnd,
    image_dir: Path,
    image_fingerprints: Mapping[str, str],
    feature_path: Path,
    mask_dir: Path | None = None,
    device: str = "cpu",
) -> list[str]:
    """Extract the features of photos to a feature file; photos that are in it already are kept.

    Args:
        front_end: its name, its options, and how it gets the photos.
        image_dir: the photos.
        image_fingerprints: image name -> `images.photo_fingerprint`.
        feature_path: the HDF5 file to make or complete.
        mask_dir: COLMAP-style masks; features on masked-out pixels are dropped.
        device: torch device.

    Returns:
        The names whose features were computed now.

    Raises:
        InputError: the front-end has no such option.
        PhotoChangedError: photos have vanished or changed since their fingerprints were taken;
            the others are done.
        MissingExtraError, WeightsError: as `load_extractor`.
    """
    staged = StagedFile(feature_path)
    wanted = {
        name: fingerprint(revisions.FEATURES, front_end.settings(), digest)
        for name, digest in image_fingerprints.items()
    }
    missing = [name for name in sorted(wanted) if not staged.is_current(name, wanted[name])]
    if missing:
        extractor = load_extractor(front_end.model, device)
        unusable: dict[str, str] = {}
        preprocessing = front_end.preprocessing
        photos = _read_photos(
            preprocessing, image_dir, missing, mask_dir, image_fingerprints, unusable
        )
        label = f"Features ({front_end.name})"
        with progress(total=len(missing), title=label, unit="photo") as bar:
            for batch in _batches(photos, extractor):
                staged.add(_extract_batch(extractor, batch), wanted)
                bar.update(len(batch))
        if unusable:
            raise PhotoChangedError(unusable)
    staged.commit()
    return missing


def extract_image(
    extractor: FeatureExtractor,
    preprocessing: Preprocessing,
    image: np.ndarray,
    mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the datasets of a feature file for one photo.

    Args:
        extractor: the front-end.
        preprocessing: how it gets the photo.
        image: RGB (H, W, 3) uint8.
        mask: (H, W) bool, False where features are dropped.
    """
    photo = _prepare_photo(preprocessing, "image", image, mask)
    return _extract_batch(extractor, [photo])[photo.name]


@dataclass(frozen=True)
class _Photo:
    """A photo as a front-end sees it, and what leads back from there."""

    name: str
    size: tuple[int, int]
    resized: ResizedImage
    mask: np.ndarray | None


def _read_photos(
    preprocessing: Preprocessing,
    image_dir: Path,
    names: Iterable[str],
    mask_dir: Path | None,
    image_fingerprints: Mapping[str, str],
    unusable: dict[str, str],
) -> Iterator[_Photo]:
    """Read photos, some ahead; those that cannot be used are noted with the reason."""

    def read(name: str) -> _Photo | None:
        try:
            photo = read_photo(image_dir, name, mask_dir, image_fingerprints[name])
        except InputError as error:
            unusable[name] = str(error)
            return None
        return _prepare_photo(preprocessing, name, photo.image, photo.mask)

    with ThreadPoolExecutor(1) as thread:
        coming: deque[Future[_Photo | None]] = deque()
        for name in names:
            coming.append(thread.submit(read, name))
            if len(coming) > READ_AHEAD and (photo := coming.popleft().result()):
                yield photo
        while coming:
            if photo := coming.popleft().result():
                yield photo


def _prepare_photo(
    preprocessing: Preprocessing, name: str, image: np.ndarray, mask: np.ndarray | None
) -> _Photo:
    size = (image.shape[1], image.shape[0])
    resize_max = preprocessing.resize_max or max(size)
    resized = resize_image(image, network_size(size, resize_max, multiple=1))
    return _Photo(name, size, resized, mask)


def _batches(photos: Iterable[_Photo], extractor: FeatureExtractor) -> Iterator[list[_Photo]]:
    """Put neighbours together that the front-end takes together."""
    batch: list[_Photo] = []
    for photo in photos:
        if batch:
            shape = photo.resized.pixels.shape
            pixels = sum(one.resized.pixels.size // 3 for one in (*batch, photo))
            if isinstance(extractor, ParallelFeatureExtractor):
                is_full = len(batch) == extractor.batch_photos or pixels > PARALLEL_PIXELS
            else:
                is_full = shape != batch[0].resized.pixels.shape or pixels > extractor.batch_pixels
            if is_full:
                yield batch
                batch = []
        batch.append(photo)
    if batch:
        yield batch


def _extract_batch(
    extractor: FeatureExtractor, photos: list[_Photo]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the datasets of a feature file for photos that the front-end sees at one size."""
    entries = {}
    images = [photo.resized.pixels for photo in photos]
    if isinstance(extractor, ParallelFeatureExtractor):
        found = extractor.extract_all(images)
    else:
        found = extractor.extract(np.stack(images))
    for photo, features in zip(photos, found, strict=True):
        features = features.to_original(photo.resized.scale)
        chosen = inside_mask(features.keypoints, photo.mask)
        entries[photo.name] = features.select(chosen).to_arrays(photo.size)
    return entries
