"""COLMAP's SIFT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycolmap

from sfm_matchers.errors import (
    InputError,
)
from sfm_matchers.features.base import Features
from sfm_matchers.features.networks import check_keypoint_limit
from sfm_matchers.files.colmap_database import quiet_colmap, read_image_ids
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.files.space import Space
from sfm_matchers.machine.memory import available_memory
from sfm_matchers.machine.threads import num_threads
from sfm_matchers.photos.decoding_budget import DECODING

# Given together: few threads wait for the last photo, and each takes memory once for several, which
# costs a tenth of SIFT. A run that is killed loses the keypoints of so many.
PHOTOS_PER_THREAD = 8
PARALLEL_PIXELS = 128 * 1024**2  # of the photos that are given together: 400 MB
SIFT_BYTES = 160  # of a keypoint and its descriptor in a database
SIFT_BYTES_PER_PIXEL = 300  # the pyramid: 18 levels of floats, from twice the image's size on
MEMORY_SHARE = 0.25  # of what is free
NUMBERS = np.arange(256, dtype=np.float16) / np.float16(512)  # that the bytes of descriptors mean
LARGEST_PIXELS = 3200 * 2400  # of a photo, a usual one at COLMAP's size: 2.2 GB


class SiftExtractor:
    """COLMAP's SIFT with RootSIFT descriptors (L1 root, 0..255/512 as in COLMAP's database).

    COLMAP's threads work on images of a folder only, and fill a database: both are temporary ones.

    Order: COLMAP's, octave by octave from fine to coarse; a keypoint with two orientations appears
    twice. Scores are the scales, since COLMAP prefers large features when it must choose.

    Args:
        max_num_features: COLMAP's limit. It counts locations per octave, so that some more
            features can come out.
        peak_threshold: difference-of-Gaussians contrast, COLMAP's default 0.02 / 3.
        max_num_keypoints: the largest ones stay; None keeps all.
        device: has no effect: SIFT runs on the CPU, so that every machine finds the same features.
    """

    batch_pixels = 0
    wants_upright = False  # it turns each descriptor itself
    max_pixels = LARGEST_PIXELS

    def __init__(
        self,
        max_num_features: int = 8192,
        peak_threshold: float = 0.02 / 3,
        max_num_keypoints: int | None = None,
        device: str = "cpu",
    ) -> None:
        check_keypoint_limit(max_num_features, "max_num_features")
        if max_num_keypoints is not None:
            check_keypoint_limit(max_num_keypoints)
        if not 0 < peak_threshold < 1:
            raise InputError(f"peak_threshold is {peak_threshold}, it must be between 0 and 1")
        self._max_num_keypoints = max_num_keypoints
        self._options = pycolmap.FeatureExtractionOptions()
        self._options.sift.max_num_features = max_num_features
        self._options.sift.peak_threshold = peak_threshold
        self._num_threads = num_threads()
        self.batch_photos = PHOTOS_PER_THREAD * self._num_threads

    def extract(self, images: np.ndarray) -> list[Features]:
        """See `FeatureExtractor.extract`."""
        return self.extract_all(list(images))

    def extract_all(self, images: Sequence[np.ndarray]) -> list[Features]:
        """See `ParallelFeatureExtractor.extract_all`."""
        options = self._options
        options.max_image_size = max(max(image.shape) for image in images)  # as large as they are
        largest = max(image.shape[0] * image.shape[1] for image in images)
        options.num_threads = self._threads_for(largest)
        names = [f"{number}.bmp" for number in range(len(images))]
        with scratch_folder() as folder:
            pixels = sum(image.shape[0] * image.shape[1] for image in images)
            features = len(images) * options.sift.max_num_features
            Space(folder / "database.db").take(pixels + SIFT_BYTES * features)
            for name, image in zip(names, images, strict=True):
                bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image)).clone_as_grey()
                bitmap.write(folder / name)
            taken = min(options.num_threads, len(images)) * SIFT_BYTES_PER_PIXEL * largest
            with quiet_colmap(), DECODING.share(taken):
                pycolmap.extract_features(
                    folder / "database.db",
                    folder,
                    names,
                    pycolmap.CameraMode.PER_IMAGE,
                    extraction_options=options,
                    device=pycolmap.Device.cpu,
                )
            with pycolmap.Database.open(folder / "database.db") as database:
                ids = read_image_ids(database)
                found = [_read_sift(database, ids[name]) for name in names]
        return [features.largest(self._max_num_keypoints) for features in found]

    def _threads_for(self, pixels: int) -> int:
        """As many threads as find memory for an image of so many pixels each."""
        memory = available_memory()
        if memory is None:
            return self._num_threads
        fitting = int(MEMORY_SHARE * memory / (SIFT_BYTES_PER_PIXEL * pixels))
        return max(1, min(self._num_threads, fitting))


def _read_sift(database: pycolmap.Database, image_id: int) -> Features:
    """Read what COLMAP has found in an image."""
    x, y, a11, a12, a21, a22 = database.read_keypoints(image_id).reshape(-1, 6).T
    scales = (np.sqrt(a11 * a11 + a21 * a21) + np.sqrt(a12 * a12 + a22 * a22)) / np.float32(2)
    return Features(
        # COLMAP's origin is the corner of the top-left pixel.
        keypoints=np.stack([x, y], axis=1) - np.float32(0.5),
        descriptors=NUMBERS[database.read_descriptors(image_id).data].T,
        scores=scales,
        scales=scales,
        orientations=np.arctan2(a21, a11),
    )
