"""Sparse front-ends: keypoints and descriptors of one photo, and their extraction to HDF5.

Every front-end is a `FeatureExtractor`: RGB images in, `Features` out. Keypoints are float32
pixels of the images given, (0, 0) at the centre of the top-left pixel.

MambaGlue depends on the order of the keypoints, so each front-end has one. The libraries' own
orders of ALIKED and SuperPoint, row by row, turn to best first where a limit cuts; here they are
best first always, as in MambaGlue's published training on SuperPoint.

| front-end | by | order | code and weights |
|---|---|---|---|
| ``sift`` | pycolmap | COLMAP's: octaves from fine to coarse | free; no weights |
| ``aliked-n16``, ``aliked-n16rot`` | kornia | best first | BSD-3-Clause |
| ``disk`` | kornia | row by row | Apache-2.0 |
| ``superpoint`` | transformers | best first | non-commercial, to be accepted by the user |
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import pycolmap
from tqdm import tqdm

from sfm_matchers import revisions
from sfm_matchers.confs import build
from sfm_matchers.errors import InputError, MissingExtraError, PhotoChangedError, WeightsError, one_line
from sfm_matchers.images import (
    ResizedImage,
    inside_mask,
    network_size,
    read_photo,
    resize_image,
    to_original,
)
from sfm_matchers.mapping import quiet_colmap, read_image_ids
from sfm_matchers.memory import available_memory
from sfm_matchers.storage import Space, StagedFile, fingerprint
from sfm_matchers.threads import num_threads
from sfm_matchers.weights import Checkpoint, default_source, find_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn


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


class FeatureExtractor(Protocol):
    """A sparse front-end.

    Attributes:
        batch_pixels: photos of one size are given together up to so many pixels; 0: one by one.
    """

    batch_pixels: int

    def extract(self, images: np.ndarray) -> list[Features]:
        """Return the features of each of some RGB images of one size, (B, H, W, 3) uint8."""


@runtime_checkable
class ParallelFeatureExtractor(FeatureExtractor, Protocol):
    """A front-end that works on several images at once, whatever their sizes; results are the same.

    Attributes:
        batch_photos: how many are best given together.
    """

    batch_photos: int

    def extract_all(self, images: Sequence[np.ndarray]) -> list[Features]:
        """Return the features of each of some RGB images (H, W, 3) uint8."""


# ---------------------------------------------------------------------------------------------
# SIFT

PHOTOS_PER_THREAD = 4
PARALLEL_PIXELS = 128 * 1024**2  # of the photos that are given together: 400 MB
SIFT_BYTES = 160  # of a keypoint and its descriptor in a database
SIFT_BYTES_PER_PIXEL = 300  # the pyramid, which begins at twice the image's size
MEMORY_SHARE = 0.25  # of what is free


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

    def __init__(
        self,
        max_num_features: int = 8192,
        peak_threshold: float = 0.02 / 3,
        max_num_keypoints: int | None = None,
        device: str = "cpu",
    ) -> None:
        _check_limit(max_num_features, "max_num_features")
        if max_num_keypoints is not None:
            _check_limit(max_num_keypoints)
        if not 0 < peak_threshold < 1:
            raise InputError(f"peak_threshold is {peak_threshold}, it must be between 0 and 1")
        self._max_num_keypoints = max_num_keypoints
        self._options = pycolmap.FeatureExtractionOptions()
        self._options.sift.max_num_features = max_num_features
        self._options.sift.peak_threshold = peak_threshold
        self._num_threads = num_threads()
        # With one thread, each photo is safe when it is done; with more, few wait for the last.
        self.batch_photos = 1 if self._num_threads == 1 else PHOTOS_PER_THREAD * self._num_threads

    def extract(self, images: np.ndarray) -> list[Features]:
        """See `FeatureExtractor.extract`."""
        return self.extract_all(list(images))

    def extract_all(self, images: Sequence[np.ndarray]) -> list[Features]:
        """See `ParallelFeatureExtractor.extract_all`."""
        options = self._options
        options.max_image_size = max(max(image.shape) for image in images)  # as large as they are
        options.num_threads = self._threads_for(
            max(image.shape[0] * image.shape[1] for image in images)
        )
        names = [f"{number}.bmp" for number in range(len(images))]
        with tempfile.TemporaryDirectory(prefix="sfm-matchers-") as name:
            folder = Path(name)
            pixels = sum(image.shape[0] * image.shape[1] for image in images)
            features = len(images) * options.sift.max_num_features
            Space(folder / "database.db").take(pixels + SIFT_BYTES * features)
            for name, image in zip(names, images, strict=True):
                bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image)).clone_as_grey()
                bitmap.write(folder / name)
            with quiet_colmap():
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
        descriptors=database.read_descriptors(image_id).data.T.astype(np.float16) / np.float16(512),
        scores=scales,
        scales=scales,
        orientations=np.arctan2(a21, a11),
    )


# ---------------------------------------------------------------------------------------------
# Networks

# Smaller photos have no features: DISK halves its input four times and normalises what is left
# over the image, ALIKED pads to multiples of 32.
MIN_SIDE = 32

# Two photos of 1024 x 1024, or six of 640 x 480: ALIKED and DISK take up to 2.5 kB per pixel
# (measured on a CPU).
CUDA_BATCH_PIXELS = 2 * 1024**2

# Keypoints per photo in MambaGlue's published training on MegaDepth.
MAX_NUM_KEYPOINTS = 2048
LARGEST_LIMIT = 1_000_000  # keypoints of a photo


class NetworkExtractor(ABC):
    """A front-end that is a network; photos with a side below `MIN_SIDE` have no features.

    Args:
        network: with its weights.
        device: torch device.
    """

    descriptor_dim: ClassVar[int]

    def __init__(self, network: nn.Module, device: str) -> None:
        import torch

        self.network = network.eval().to(device)
        self.device = torch.device(device)
        self.batch_pixels = CUDA_BATCH_PIXELS if self.device.type == "cuda" else 0

    def extract(self, images: np.ndarray) -> list[Features]:
        """See `FeatureExtractor.extract`."""
        import torch

        if min(images.shape[1:3]) < MIN_SIDE:
            nothing = torch.zeros(0, self.descriptor_dim)
            return [_to_features(nothing[:, :2], nothing, nothing[:, 0])] * len(images)
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
            return self._detect(pixels)

    @abstractmethod
    def _detect(self, images: Tensor) -> list[Features]:
        """Return the features of each of the images (B, 3, H, W), RGB in 0..1."""


class AlikedExtractor(NetworkExtractor):
    """ALIKED (Zhao et al., IEEE TIM 2023) by kornia, with the authors' weights.

    Order: best first. Keypoints are sub-pixel. A photo without any keypoint above the threshold
    gives those above its mean score, as in the authors' code.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: score 0..1 of a keypoint before its sub-pixel refinement; the authors'
            default. 0 gives the best `max_num_keypoints`, whatever their scores.
        device: torch device.
        name: which of the authors' networks: ``aliked-n16``, or ``aliked-n16rot``, trained on
            turned photos too.

    Raises:
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 128

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.2,
        device: str = "cpu",
        *,
        name: str = "aliked-n16",
    ) -> None:
        from kornia.feature import ALIKED

        _check_limit(max_num_keypoints)
        network = ALIKED(name, max_num_keypoints, detection_threshold)
        # A constant of kornia's detector, which the authors' file does not hold.
        _load_weights(network, name, constants=("dkd.hw_grid",))
        super().__init__(network, device)

    def _detect(self, images: Tensor) -> list[Features]:
        return [
            _to_features(found.keypoints, found.descriptors, found.keypoint_scores).best_first()
            for found in self.network(images)
        ]


class DiskExtractor(NetworkExtractor):
    """DISK (Tyszkiewicz et al., NeurIPS 2020) by kornia, the weights trained with depth.

    Order: row by row, also where the limit cuts. Keypoints are whole pixels, scores are logits.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: least logit of a keypoint; LightGlue's and hloc's default.
        device: torch device.

    Raises:
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 128

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.0,
        device: str = "cpu",
    ) -> None:
        from kornia.feature import DISK

        _check_limit(max_num_keypoints)
        network = DISK()
        _load_weights(network, "disk")
        super().__init__(network, device)
        self.max_num_keypoints = max_num_keypoints
        self.detection_threshold = detection_threshold

    def _detect(self, images: Tensor) -> list[Features]:
        found_in_all = self.network(
            images,
            n=self.max_num_keypoints,
            score_threshold=self.detection_threshold,
            pad_if_not_divisible=True,
        )
        return [
            _to_features(found.keypoints, found.descriptors, found.detection_scores)
            for found in found_in_all
        ]


SUPERPOINT_VARIABLE = "SFM_MATCHERS_ACCEPT_SUPERPOINT_LICENSE"
SUPERPOINT_CELL = 8  # pixels; what does not fill a cell at the right or bottom is not looked at
SUPERPOINT_BORDER = 4  # pixels without keypoints along every side, Magic Leap's value


class SuperPointExtractor(NetworkExtractor):
    """SuperPoint (DeTone et al., CVPRW 2018) by transformers, with Magic Leap's weights.

    Their licence excludes commercial use: nothing runs before the user has accepted it.

    Order: best first. Keypoints are whole pixels.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: least score 0..1; the value of Magic Leap's SuperGlue code and hloc.
        nms_radius: no two keypoints are closer than so many pixels; Magic Leap's default.
        device: torch device.

    Raises:
        InputError: the licence is not accepted.
        MissingExtraError: transformers is not installed.
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 256

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.005,
        nms_radius: int = 4,
        device: str = "cpu",
    ) -> None:
        _check_limit(max_num_keypoints)
        _require_superpoint_licence()
        try:
            from transformers import SuperPointConfig, SuperPointForKeypointDetection
        except ImportError as error:
            raise MissingExtraError(
                "superpoint needs transformers: pip install 'sfm-matchers[superpoint]'"
            ) from error
        # The border and the limit are applied here: transformers leaves keypoints at the right and
        # bottom border, which Magic Leap's code removes before it counts.
        config = SuperPointConfig(
            keypoint_threshold=detection_threshold,
            nms_radius=nms_radius,
            max_keypoints=-1,
            border_removal_distance=0,
        )
        network = SuperPointForKeypointDetection(config)
        _load_weights(network, "superpoint")
        super().__init__(network, device)
        self.max_num_keypoints = max_num_keypoints

    def _detect(self, images: Tensor) -> list[Features]:
        gray = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)[:, None]
        output = self.network(gray)
        size = gray.new_tensor([gray.shape[3], gray.shape[2]])
        end = size // SUPERPOINT_CELL * SUPERPOINT_CELL - SUPERPOINT_BORDER
        # Keypoints come as fractions of the size of the image, padded to the most of the batch.
        keypoints = (output.keypoints * size).round()
        chosen = ((keypoints >= SUPERPOINT_BORDER) & (keypoints < end)).all(2) & output.mask.bool()
        return [
            _to_features(*(values[is_kept] for values in found)).best_first(self.max_num_keypoints)
            for *found, is_kept in zip(
                keypoints, output.descriptors, output.scores, chosen, strict=True
            )
        ]


def _check_limit(limit: int, name: str = "max_num_keypoints") -> None:
    if not isinstance(limit, int) or not 1 <= limit <= LARGEST_LIMIT:
        raise InputError(f"{name} is {limit}, it must be a whole number, 1 to {LARGEST_LIMIT}")


def _require_superpoint_licence() -> None:
    if os.environ.get(SUPERPOINT_VARIABLE) != "1":
        checkpoint = cast(Checkpoint, find_checkpoint("superpoint/official"))
        raise InputError(
            f"superpoint's licence ({checkpoint.licence}) allows {checkpoint.allows}: "
            f"set {SUPERPOINT_VARIABLE}=1 to accept it, or use sift, aliked-n16 or disk"
        )


def _load_weights(network: nn.Module, name: str, constants: Iterable[str] = ()) -> None:
    """Fill a front-end with its bundled weights, else the authors' file.

    Args:
        network: changed in place.
        name: as the registry has it.
        constants: entries that the authors' files lack.

    Raises:
        WeightsError: they cannot be had, or are those of another network.
    """
    from sfm_matchers.weights import check_finite, fetch, load_state_dict_file

    path = fetch(cast(Checkpoint, find_checkpoint(f"{name}/{default_source(name)}")))
    own = network.state_dict()
    state_dict = {**{key: own[key] for key in constants}, **load_state_dict_file(path)}
    check_finite(state_dict, path)
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise WeightsError(f"{path}: not the weights of {name} ({one_line(error)})") from error


def _to_features(keypoints: Tensor, descriptors: Tensor, scores: Tensor) -> Features:
    """Take keypoints (N, 2), descriptors (N, D) and scores (N,) from the device."""
    return Features(
        keypoints=keypoints.float().cpu().numpy(),
        descriptors=descriptors.half().cpu().numpy().T,
        scores=scores.float().cpu().numpy(),
    )


# ---------------------------------------------------------------------------------------------
# Choosing and extracting

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
    return cast(FeatureExtractor, build(EXTRACTORS[name], {**options, "device": device}, where))


def extract_features(
    conf: Mapping[str, Any],
    image_dir: Path,
    image_fingerprints: Mapping[str, str],
    feature_path: Path,
    mask_dir: Path | None = None,
    device: str = "cpu",
) -> list[str]:
    """Extract the features of photos to a feature file; photos that are in it already are kept.

    Args:
        conf: ``{"model": {...}, "preprocessing": {"resize_max": pixels}}``.
        image_dir: the photos.
        image_fingerprints: image name -> `images.photo_fingerprint`.
        feature_path: the HDF5 file to make or complete.
        mask_dir: COLMAP-style masks; features on masked-out pixels are dropped.
        device: torch device.

    Returns:
        The names whose features were computed now.

    Raises:
        InputError: the conf names an unknown option.
        PhotoChangedError: photos have vanished or changed since their fingerprints were taken;
            the others are done.
        MissingExtraError, WeightsError: as `load_extractor`.
    """
    staged = StagedFile(feature_path)
    wanted = {
        name: fingerprint(revisions.FEATURES, conf, digest)
        for name, digest in image_fingerprints.items()
    }
    missing = [name for name in sorted(wanted) if not staged.is_current(name, wanted[name])]
    if missing:
        extractor = load_extractor(conf["model"], device)
        unusable: dict[str, str] = {}
        photos = _read_photos(conf, image_dir, missing, mask_dir, image_fingerprints, unusable)
        label = f"Features ({conf['model']['name']})"
        with tqdm(total=len(missing), desc=label, unit="photo") as progress:
            for batch in _batches(photos, extractor):
                staged.add(_extract_batch(extractor, batch), wanted)
                progress.update(len(batch))
        if unusable:
            raise PhotoChangedError(unusable)
    staged.commit()
    return missing


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
    photo = _prepare_photo(conf, "image", image, mask)
    return _extract_batch(extractor, [photo])[photo.name]


@dataclass(frozen=True)
class _Photo:
    """A photo as a front-end sees it, and what leads back from there."""

    name: str
    size: tuple[int, int]
    resized: ResizedImage
    mask: np.ndarray | None


def _read_photos(
    conf: Mapping[str, Any],
    image_dir: Path,
    names: Iterable[str],
    mask_dir: Path | None,
    image_fingerprints: Mapping[str, str],
    unusable: dict[str, str],
) -> Iterator[_Photo]:
    """Read photos, some ahead; those that cannot be used are noted with the reason."""

    def read(name: str) -> _Photo | None:
        try:
            image, mask = read_photo(image_dir, name, mask_dir, image_fingerprints[name])
        except InputError as error:
            unusable[name] = str(error)
            return None
        return _prepare_photo(conf, name, image, mask)

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
    conf: Mapping[str, Any], name: str, image: np.ndarray, mask: np.ndarray | None
) -> _Photo:
    size = (image.shape[1], image.shape[0])
    resize_max = conf.get("preprocessing", {}).get("resize_max") or max(size)
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
