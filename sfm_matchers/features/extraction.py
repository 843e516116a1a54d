"""Features of all photos of a folder to hloc's HDF5 file."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfm_matchers.confs import FrontEnd, Preprocessing, build, check_options
from sfm_matchers.errors import InputError, PhotoChangedError, listed
from sfm_matchers.features.base import FeatureExtractor, ParallelFeatureExtractor
from sfm_matchers.features.kornia import AlikedExtractor, DiskExtractor
from sfm_matchers.features.sift import PARALLEL_PIXELS, SiftExtractor
from sfm_matchers.features.superpoint import SuperPointExtractor
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.hdf5 import UPRIGHT
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.machine.memory import large_blocks_apart
from sfm_matchers.machine.progress import progress
from sfm_matchers.photos.checked import StoredPhoto, read_photo
from sfm_matchers.photos.decoding_budget import DECODING
from sfm_matchers.photos.images import decoding_bytes, quarters_to_upright
from sfm_matchers.photos.masks import inside_mask
from sfm_matchers.photos.resizing import ResizedImage, network_size, resize_image, turned

logger = logging.getLogger(__name__)

READ_AHEAD = 4  # photos decoded by a thread while the front-end works
READ_AHEAD_BYTES = 1 << 29  # that they take while they are decoded, at most

EXTRACTORS: dict[str, Callable[..., FeatureExtractor]] = {
    "sift": SiftExtractor,
    "aliked-n16": partial(AlikedExtractor, name="aliked-n16"),
    "aliked-n16rot": partial(AlikedExtractor, name="aliked-n16rot"),
    "disk": DiskExtractor,
    "superpoint": SuperPointExtractor,
}


def check_front_end(front_end: FrontEnd) -> None:
    """Raise InputError if there is no such front-end, or none with such options."""
    where = front_end.where
    check_options(_extractor(front_end.name, where), front_end.options, where)


def _extractor(name: str, where: str) -> Callable[..., FeatureExtractor]:
    if name not in EXTRACTORS:
        known = ", ".join(EXTRACTORS)
        raise InputError(f"{where}: unknown front-end {name!r}, expected one of {known}")
    return EXTRACTORS[name]


def load_extractor(
    model: Mapping[str, Any], device: str = "cpu", where: str = ""
) -> FeatureExtractor:
    """Build a front-end from the ``model`` part of a features conf: its name and its options.

    Args:
        model: ``{"name": ..., options}``.
        device: torch device.
        where: what messages about its options begin with; "": with its name.

    Raises:
        InputError: unknown front-end or option, or a licence that is not accepted.
        MissingExtraError: the front-end needs a library that is not installed.
        WeightsError: its weights cannot be loaded; the message says what to do.
    """
    options = dict(model)
    name = options.pop("name")
    where = where or f"front-end {name}"
    return build(_extractor(name, where), {**options, "device": device}, where)


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
        extractor = load_extractor(front_end.model, device, front_end.where)
        unusable: dict[str, str] = {}
        preprocessing = front_end.preprocessing
        photos = _read_photos(
            preprocessing, extractor, image_dir, missing, mask_dir, image_fingerprints, unusable
        )
        label = f"Features ({front_end.name})"
        # Blocks of a pyramid are large and few; those of a network are many.
        is_parallel = isinstance(extractor, ParallelFeatureExtractor)
        with (
            large_blocks_apart() if is_parallel else nullcontext(),
            progress(total=len(missing), title=label, unit="photo") as bar,
        ):
            for batch in _batches(photos, extractor):
                staged.add(_extract_batch(extractor, batch), wanted)
                bar.update(len(batch))
        if unusable:
            raise PhotoChangedError(unusable)
    staged.commit()
    return missing


def seen_size(
    preprocessing: Preprocessing, size: tuple[int, int], extractor: FeatureExtractor
) -> tuple[int, int]:
    """Return the (width, height) at which a front-end sees a photo of `size` (width, height).

    Memory goes by the pixels, `resize_max` by the longer side: a front-end with a limit of pixels
    sees squares no larger than it. Who asks for a larger side gets what a photo of 4:3 has then.
    """
    resize_max = preprocessing.resize_max
    seen = network_size(size, resize_max or max(size), multiple=1)
    if resize_max is not None and isinstance(extractor, ParallelFeatureExtractor):
        most = max(extractor.max_pixels, 3 * resize_max**2 // 4)
        if seen[0] * seen[1] > most:
            return network_size(size, math.isqrt(most * max(size) // min(size)), multiple=1)
    return seen


def extract_image(
    extractor: FeatureExtractor,
    preprocessing: Preprocessing,
    image: np.ndarray,
    mask: np.ndarray | None = None,
    orientation: int = 1,
) -> dict[str, np.ndarray]:
    """Return the datasets of a feature file for one photo.

    Args:
        extractor: the front-end.
        preprocessing: how it gets the photo.
        image: RGB (H, W, 3) uint8, as stored.
        mask: (H, W) bool, False where features are dropped.
        orientation: of EXIF.
    """
    stored = StoredPhoto(image, mask, orientation)
    photo = _prepare_photo(preprocessing, extractor, "image", stored)
    return _extract_batch(extractor, [photo])[photo.name]


@dataclass(frozen=True)
class _Photo:
    """A photo as a front-end sees it, and what leads back from there.

    Attributes:
        size: (width, height) as stored.
        quarters: that it was turned by, counter-clockwise, before it was resized.
        mask: of the photo as stored.
    """

    name: str
    size: tuple[int, int]
    quarters: int
    resized: ResizedImage
    mask: np.ndarray | None


def _read_photos(
    preprocessing: Preprocessing,
    extractor: FeatureExtractor,
    image_dir: Path,
    names: Iterable[str],
    mask_dir: Path | None,
    image_fingerprints: Mapping[str, str],
    unusable: dict[str, str],
) -> Iterator[_Photo]:
    """Read photos, some ahead; those that cannot be used are noted with the reason."""

    reduced = []

    def read(name: str) -> _Photo | None:
        with DECODING.share(decoding_bytes(image_dir / name)):
            try:
                stored = read_photo(
                    image_dir,
                    name,
                    mask_dir,
                    image_fingerprints[name],
                    with_orientation=extractor.wants_upright,
                )
            except InputError as error:
                unusable[name] = str(error)
                return None
            photo = _prepare_photo(preprocessing, extractor, name, stored)
        if max(photo.resized.pixels.shape) < min(max(photo.size), preprocessing.resize_max or 0):
            reduced.append(name)
        return photo

    with ThreadPoolExecutor(1) as thread:
        coming: deque[tuple[int, Future[_Photo | None]]] = deque()
        for name in names:
            size = decoding_bytes(image_dir / name)
            while coming and (
                len(coming) > READ_AHEAD
                or size + sum(each for each, _ in coming) > READ_AHEAD_BYTES
            ):
                if photo := coming.popleft()[1].result():
                    yield photo
            coming.append((size, thread.submit(read, name)))
        while coming:
            if photo := coming.popleft()[1].result():
                yield photo
    if reduced:
        logger.warning(
            "%s: features of images reduced to fewer pixels, for the memory that they take: %s",
            image_dir,
            listed(reduced),
        )


def _prepare_photo(
    preprocessing: Preprocessing,
    extractor: FeatureExtractor,
    name: str,
    stored: StoredPhoto,
) -> _Photo:
    size = (stored.image.shape[1], stored.image.shape[0])
    quarters = quarters_to_upright(stored.orientation) if extractor.wants_upright else 0
    image = turned(stored.image, quarters)
    seen = seen_size(preprocessing, (image.shape[1], image.shape[0]), extractor)
    return _Photo(name, size, quarters, resize_image(image, seen), stored.mask)


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
        features = features.to_original(photo.resized.scale).unturned(photo.quarters, photo.size)
        chosen = inside_mask(features.keypoints, photo.mask)
        entry = features.select(chosen).to_arrays(photo.size)
        entries[photo.name] = entry | _way_up(photo.quarters)
    return entries


def _way_up(quarters: int) -> dict[str, np.ndarray]:
    """Return what a feature file says of a photo that lies on its side."""
    return {UPRIGHT: np.array([quarters % 4])} if quarters % 4 else {}
