"""The matchers: features or images of two photos in, matches in pixels of the photos out.

`load_matcher` gives a matcher of either kind behind one call that takes two photos.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch

from sfm_matchers import colmap_matching
from sfm_matchers.closer_looks import closer_looks
from sfm_matchers.confs import Conf, DetectorFreeConf, SparseConf, build, check_options, load_conf
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.features import extract_image, load_extractor
from sfm_matchers.images import (
    inside_mask,
    network_size,
    quarters_to_upright,
    read_image,
    read_opacity,
    resize_image,
    to_original,
)
from sfm_matchers.networks import efficient_loftr, jamma
from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRConfig,
    EfficientLoFTRFeatures,
)
from sfm_matchers.networks.jamma import JamMa, JamMaConfig, JamMaFeatures
from sfm_matchers.networks.mambaglue import LocalFeatures, MambaGlue, MambaGlueConfig
from sfm_matchers.networks.precision import default_precision, leave_products_to_compiler
from sfm_matchers.protocols import Arrays, DetectorFreeMatcher, EncodedImage, Matches, SparseMatcher
from sfm_matchers.quarter_turns import QuarterTurns, unturned_matches
from sfm_matchers.weights import NETWORKS, features_of, find_weights, load_network, weights_fingerprint

logger = logging.getLogger(__name__)

Photo = str | os.PathLike[str] | np.ndarray
_TwoImages = tuple[np.ndarray, np.ndarray]
_TwoMasks = tuple[np.ndarray | None, np.ndarray | None]
BATCH_SIZE_GPU = 8  # pairs


# ---------------------------------------------------------------------------------------------
# Sparse


class NearestNeighborMatcher:
    """Mutual nearest neighbours with ratio test on angles between descriptors, as in COLMAP.

    Args:
        ratio: largest allowed ratio of the angle to the nearest descriptor over the angle to the
            second nearest (Lowe, IJCV 2004, section 7.1), asked for in both directions.
        max_distance: largest allowed angle between matched descriptors, in radians.
        device: torch device.
    """

    def __init__(self, ratio: float = 0.8, max_distance: float = 0.7, device: str = "cpu") -> None:
        self.ratio = ratio
        self.max_distance = max_distance
        self.device = torch.device(device)

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `SparseMatcher.match`. Scores are the cosines between matched descriptors."""
        descriptors0, descriptors1 = (
            torch.from_numpy(np.asarray(features["descriptors"], dtype=np.float32).T)
            .contiguous()
            .to(self.device)
            for features in (features0, features1)
        )
        matches0 = torch.full((len(descriptors0),), -1, device=self.device)
        scores0 = torch.zeros(len(descriptors0), device=self.device)
        if descriptors0.shape[1] != descriptors1.shape[1]:
            raise InputError(
                f"descriptors of {descriptors0.shape[1]} and of {descriptors1.shape[1]} numbers "
                "cannot be matched: extract all features with one front-end"
            )
        if len(descriptors0) and len(descriptors1):
            nearest0, cosine0 = self._nearest(descriptors0, descriptors1)
            nearest1, _ = self._nearest(descriptors1, descriptors0)
            index0 = torch.arange(len(nearest0), device=self.device)
            is_mutual = (nearest0 >= 0) & (nearest1[nearest0.clamp(min=0)] == index0)
            matches0[is_mutual] = nearest0[is_mutual]
            scores0[is_mutual] = cosine0[is_mutual]
        return matches0.to(torch.int32).cpu().numpy(), scores0.cpu().numpy()

    def _nearest(
        self, descriptors: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nearest of `others` for each descriptor, -1 if refused, and its cosine."""
        nearest, cosines = [], []
        for block in descriptors.split(256):  # of a size that stays in the CPU's cache
            cosine, index = (block @ others.T).clamp(-1, 1).topk(min(2, len(others)), dim=1)
            angle = cosine.arccos()
            accepted = angle[:, 0] <= self.max_distance
            if len(others) > 1:
                accepted &= angle[:, 0] < self.ratio * angle[:, 1]
            nearest.append(torch.where(accepted, index[:, 0], -1))
            cosines.append(cosine[:, 0])
        return torch.cat(nearest), torch.cat(cosines)


class MambaGlueMatcher:
    """MambaGlue on the features of two photos.

    Args:
        network: a `MambaGlue` in evaluation mode, made for the front-end of the features.
        device: torch device.
        resize_max: longer side, in pixels, to which larger photos were reduced for extraction.
    """

    def __init__(
        self, network: MambaGlue, device: str = "cpu", resize_max: float = math.inf
    ) -> None:
        self.network = network.to(device)
        self.device = torch.device(device)
        self.batch_size = _batch_size(self.device)
        self.resize_max = resize_max
        self.layers_run: list[int] = []

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `SparseMatcher.match`. Scores are MambaGlue's assignment probabilities."""
        return self.match_batch([(features0, features1)])[0]

    @torch.inference_mode()
    def match_batch(
        self, pairs: Sequence[tuple[Arrays, Arrays]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `SparseBatchMatcher.match_batch`."""
        images0, images1 = zip(*pairs, strict=True)
        output = self.network(self._features(images0), self._features(images1))
        self.layers_run = output.stop.tolist()
        matches0 = output.matches0.to(torch.int32).cpu().numpy()
        scores0 = output.matching_scores0.float().cpu().numpy()
        scores0 = np.where(matches0 >= 0, scores0, 0)
        counts = [len(features["keypoints"]) for features in images0]
        return [
            (matches[:count], scores[:count])
            for matches, scores, count in zip(matches0, scores0, counts, strict=True)
        ]

    def _features(self, images: Sequence[Arrays]) -> LocalFeatures:
        """Put the features of several images together, padded to one number."""
        if any("image_size" not in image or "keypoints" not in image for image in images):
            raise InputError("MambaGlue needs keypoints and image_size of each photo")
        counts = torch.tensor([len(image["keypoints"]) for image in images], device=self.device)

        def tensor(name: str, transposed: bool = False) -> torch.Tensor | None:
            if any(name not in image for image in images):
                return None
            values = [torch.from_numpy(np.asarray(image[name], np.float32)) for image in images]
            values = [value.T.contiguous() if transposed else value for value in values]
            return torch.nn.utils.rnn.pad_sequence(values, batch_first=True).to(self.device)

        image_size = cast(torch.Tensor, tensor("image_size"))
        scales, degrees = tensor("scales"), tensor("oris")
        if scales is not None:
            # The network knows scales in pixels of the image that the detector has seen.
            scales = scales / (image_size.amax(1, keepdim=True) / self.resize_max).clamp(min=1)
        scores = tensor("scores")
        return LocalFeatures(
            keypoints=cast(torch.Tensor, tensor("keypoints")),
            descriptors=cast(torch.Tensor, tensor("descriptors", transposed=True)),
            image_size=image_size,
            scales=scales,
            oris=None if degrees is None else degrees.deg2rad(),
            # hloc's DISK and ALIKED call them so.
            scores=tensor("keypoint_scores") if scores is None else scores,
            num_keypoints=counts,
        )


def _batch_size(device: torch.device) -> int:
    """How many pairs to match at once: a CPU gains nothing by more than one."""
    return 1 if device.type == "cpu" else BATCH_SIZE_GPU


def _load_nearest_neighbor(conf: SparseConf, weights: str, device: str) -> NearestNeighborMatcher:
    options = {key: value for key, value in conf.model.items() if key != "name"}
    where = f"conf {conf.name}, model"
    return cast(
        NearestNeighborMatcher,
        build(NearestNeighborMatcher, {**options, "device": device}, where),
    )


def _load_mambaglue(conf: SparseConf, weights: str, device: str) -> MambaGlueMatcher:
    network = load_network("mambaglue", weights, **_network_options(conf, MambaGlueConfig, device))
    resize_max = conf.features.get("preprocessing", {}).get("resize_max", math.inf)
    return MambaGlueMatcher(cast(MambaGlue, network).fuse(), device, resize_max)


def _network_options(conf: Conf, config_type: type, device: str) -> dict[str, Any]:
    """Return a conf's model options as keywords of a network's config, with the precision.

    Raises:
        InputError: the network takes no such option.
    """
    options = {key: value for key, value in conf.model.items() if key != "name"}
    options = check_options(config_type, options, f"conf {conf.name}, model")
    options = {"precision": default_precision(torch.device(device).type), **options}
    logger.info("%s computes in %s", conf.name, options["precision"])
    return options


SPARSE_MATCHERS: dict[str, Callable[[SparseConf, str, str], SparseMatcher]] = {
    "nearest_neighbor": _load_nearest_neighbor,
    colmap_matching.NAME: lambda conf, weights, device: colmap_matching.load(conf),
    "mambaglue": _load_mambaglue,
}


def load_sparse_matcher(conf: SparseConf, weights: str, device: str) -> SparseMatcher:
    """Build the matcher of a sparse conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    return _loader(conf, SPARSE_MATCHERS, "sparse")(conf, weights, device)


# ---------------------------------------------------------------------------------------------
# Detector-free


class JamMaMatcher:
    """JamMa on photos of any size.

    A photo is resized so that its longer side is `resize_max` at most and both sides are multiples
    of 16. Photos of a pair that differ in size are padded to one size after the encoder, on its
    feature maps, with masks; each photo is thus encoded once, unpadded. The official weights were
    trained on images padded to squares, and get those.

    Args:
        network: a `JamMa` in evaluation mode.
        resize_max: longer side in pixels that the network sees.
        device: torch device.
        pad_to_square: pad each image, not its features, to a square of `resize_max`.
    """

    def __init__(
        self,
        network: JamMa,
        resize_max: int = 832,
        device: str = "cpu",
        *,
        pad_to_square: bool = False,
    ) -> None:
        self.network = network.to(device)
        self.resize_max = resize_max
        self.device = torch.device(device)
        self.batch_size = _batch_size(self.device)
        self.pad_to_square = pad_to_square

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> EncodedImage:
        """See `DetectorFreeMatcher.encode`."""
        size = network_size((image.shape[1], image.shape[0]), self.resize_max, jamma.SIZE_MULTIPLE)
        resized = resize_image(image, size)
        pixels = torch.from_numpy(resized.pixels).to(self.device).permute(2, 0, 1).float() / 255
        return self.encode_pixels(pixels[None], resized.scale)

    def encode_pixels(
        self, pixels: torch.Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> EncodedImage:
        """Encode an image that has the network's size already.

        Args:
            pixels: (1, 3, H, W) RGB in 0..1, sides multiples of 16.
            scale: of the photo over the image.
        """
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (jamma.IMAGE_MEAN, jamma.IMAGE_STD)
        )
        normalized = (pixels - mean) / std
        if self.pad_to_square:
            side = -(-max(self.resize_max, *pixels.shape[2:]) // jamma.SIZE_MULTIPLE)
            normalized = _padded(normalized, (side * jamma.SIZE_MULTIPLE,) * 2)
        features = self.network.encode(normalized)
        grid = (pixels.shape[2] // jamma.CELL, pixels.shape[3] // jamma.CELL)
        size = (pixels.shape[3], pixels.shape[2])
        return EncodedImage((features, grid), scale, _num_bytes(features), size)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        """See `DetectorFreeMatcher.match_encoded`."""
        return self.match_batch([(image0, image1)])[0]

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[Matches]:
        """See `DetectorFreeBatchMatcher.match_batch`."""
        (_, grid0), (_, grid1) = (image.features for image in pairs[0])
        features0, features1 = (
            JamMaFeatures(*_stacked([image.features[0] for image in images]))
            for images in zip(*pairs, strict=True)
        )
        canvas = tuple(
            max(sides)
            for sides in zip(features0.eighth.shape[2:], features1.eighth.shape[2:], strict=True)
        )
        features0, features1 = (
            JamMaFeatures(
                _padded(features.fine, (2 * canvas[0], 2 * canvas[1])),
                _padded(features.eighth, canvas),
            )
            for features in (features0, features1)
        )
        is_padded = not grid0 == grid1 == canvas
        masks = (
            self.masks(len(pairs), grid, canvas) if is_padded else None for grid in (grid0, grid1)
        )
        output = self.network.match(features0, features1, *masks)
        return _split_matches(
            output.batch_ids, output.keypoints0, output.keypoints1, output.scores, pairs
        )

    def masks(self, count: int, grid: tuple[int, int], canvas: tuple[int, ...]) -> torch.Tensor:
        mask = torch.zeros(count, *canvas, dtype=torch.bool, device=self.device)
        mask[:, : grid[0], : grid[1]] = True
        return mask


def _stacked(features: Sequence[Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    """Put the tensors (1, ...) of several images together; those of one stay as they are."""
    parts = zip(*features, strict=True)
    return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]


def _split_matches(
    batch_ids: torch.Tensor,
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    scores: torch.Tensor,
    pairs: Sequence[tuple[EncodedImage, EncodedImage]],
) -> list[Matches]:
    """The matches (N,) of each pair of a batch, in pixels of the photos."""
    counts = torch.bincount(batch_ids, minlength=len(pairs)).tolist()
    parts = (tensor.float().cpu().split(counts) for tensor in (keypoints0, keypoints1, scores))
    return [
        Matches(
            to_original(points0.numpy(), image0.scale),
            to_original(points1.numpy(), image1.scale),
            scores_of_pair.numpy(),
        )
        for (image0, image1), points0, points1, scores_of_pair in zip(pairs, *parts, strict=True)
    ]


def _padded(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Pad (B, C, h, w) with zeros at the right and bottom to `size` (height, width)."""
    return torch.nn.functional.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


class EfficientLoFTRMatcher:
    """Efficient LoFTR on photos of any size.

    A photo is resized to gray so that its longer side is `resize_max` at most and both sides are
    multiples of 32. Nothing is padded: the two images may differ in size. The network refines its
    second image, and photo 0 is given as that one, so that photo 0 has the sub-pixel points, as in
    hloc, and photo 1 the points of the 1 px grid.

    Args:
        network: an `EfficientLoFTR` in evaluation mode.
        resize_max: longer side in pixels that the network sees.
        device: torch device.
    """

    def __init__(self, network: EfficientLoFTR, resize_max: int = 832, device: str = "cpu") -> None:
        self.network = network.to(device)
        self.resize_max = resize_max
        self.device = torch.device(device)
        self.batch_size = _batch_size(self.device)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> EncodedImage:
        """See `DetectorFreeMatcher.encode`."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        size = (gray.shape[1], gray.shape[0])
        size = network_size(size, self.resize_max, efficient_loftr.SIZE_MULTIPLE)
        resized = resize_image(gray, size)
        pixels = torch.from_numpy(resized.pixels).to(self.device)[None, None].float() / 255
        return self.encode_pixels(pixels, resized.scale)

    def encode_pixels(
        self, pixels: torch.Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> EncodedImage:
        """Encode an image that has the network's size already.

        Args:
            pixels: (1, 1, H, W) gray in 0..1, sides multiples of 32.
            scale: of the photo over the image.
        """
        features = self.network.encode(pixels)
        size = (pixels.shape[3], pixels.shape[2])
        return EncodedImage(features, scale, _num_bytes(features), size)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        """See `DetectorFreeMatcher.match_encoded`."""
        return self.match_batch([(image0, image1)])[0]

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[Matches]:
        """See `DetectorFreeBatchMatcher.match_batch`."""
        features0, features1 = (
            EfficientLoFTRFeatures(*_stacked([image.features for image in images]))
            for images in zip(*pairs, strict=True)
        )
        output = self.network.match(features1, features0)
        return _split_matches(
            output.batch_ids, output.keypoints1, output.keypoints0, output.scores, pairs
        )


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _load_jamma(conf: DetectorFreeConf, weights: str, device: str) -> JamMaMatcher:
    network = load_network("jamma", weights, **_network_options(conf, JamMaConfig, device))
    checkpoint = find_weights("jamma", weights).checkpoint
    is_official = checkpoint is not None and checkpoint.source == "official"
    resize_max = conf.preprocessing.get("resize_max", 832)
    return JamMaMatcher(cast(JamMa, network), resize_max, device, pad_to_square=is_official)


def _load_efficient_loftr(
    conf: DetectorFreeConf, weights: str, device: str
) -> EfficientLoFTRMatcher:
    network = load_network(
        "eloftr", weights, **_network_options(conf, EfficientLoFTRConfig, device)
    )
    resize_max = conf.preprocessing.get("resize_max", 832)
    return EfficientLoFTRMatcher(cast(EfficientLoFTR, network), resize_max, device)


DETECTOR_FREE_MATCHERS: dict[str, Callable[[DetectorFreeConf, str, str], DetectorFreeMatcher]] = {
    "jamma": _load_jamma,
    "eloftr": _load_efficient_loftr,
}


def load_detector_free_matcher(
    conf: DetectorFreeConf, weights: str, device: str
) -> DetectorFreeMatcher:
    """Build the matcher of a detector-free conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    return _loader(conf, DETECTOR_FREE_MATCHERS, "detector-free")(conf, weights, device)


# ---------------------------------------------------------------------------------------------
# Matchers of other packages

PLUGINS = "sfm_matchers.matchers"
"""Entry-point group: name of a matcher -> ``load(conf, weights, device)``, which returns a
`SparseMatcher` or a `DetectorFreeMatcher` as the conf is of either kind."""


def _loader(conf: Conf, own: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    """The function that loads the matcher of a conf: one of ours, or another package's.

    Raises:
        InputError: there is none of this name, or it cannot be imported.
    """
    name = str(conf.model.get("name"))
    if name in own:
        return own[name]
    plugins = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    if name not in plugins:
        known = ", ".join([*own, *plugins])
        raise InputError(f"conf {conf.name}: unknown {kind} matcher {name!r}, there are {known}")
    try:
        return cast(Callable[..., Any], plugins[name].load())
    except (ImportError, AttributeError) as error:
        raise InputError(f"conf {conf.name}: matcher {name!r} cannot be loaded: {error}") from error


# ---------------------------------------------------------------------------------------------
# Compiling


def compile_matcher(
    matcher: SparseMatcher | DetectorFreeMatcher, backend: str = "inductor"
) -> None:
    """Have torch.compile compile, on first use, the parts in which a network spends its time.

    Each part is one graph for images, or numbers of keypoints, of any size. Between the parts lies
    what depends on the data: coarse matching in blocks, the choice of windows, early exit and
    pruning. The selective scan is one operator of these graphs, run by its usual backend.

    Args:
        matcher: one of this package's networks; changed in place.
        backend: of torch.compile.

    Raises:
        InputError: the matcher is another one, or nothing can be compiled on this machine.
    """
    parts: list[torch.nn.Module]
    fine_maps: list[torch.nn.Module] = []  # on a CPU they are made where matches are
    if isinstance(matcher, JamMaMatcher):
        pair = matcher.network.matcher
        parts = [matcher.network.backbone, pair.joint_mamba, pair.fine_enc]
        fine_maps = [pair.up2, pair.up3]
    elif isinstance(matcher, EfficientLoFTRMatcher):
        network = matcher.network
        parts, fine_maps = [network.backbone, network.loftr_coarse], [network.fine_preprocess]
    elif isinstance(matcher, MambaGlueMatcher):
        parts = list(matcher.network.transformermambas)
    else:
        raise InputError(f"{type(matcher).__name__} has nothing to compile: leave compile away")
    device = matcher.device
    try:
        torch.compile(lambda x: x.exp() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler's own kinds
        needed = "a C++ compiler" if device.type == "cpu" else "triton"
        raise InputError(
            f"torch.compile does not work here, leave compile away (it needs {needed} on "
            f"{device.type}): {one_line(error.__cause__ or error)}"
        ) from error
    # Tables of positions are made anew inside a graph; torch warns that it skips their cache.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    for part in parts if device.type == "cpu" else parts + fine_maps:
        part.compile(dynamic=True, backend=backend)
    leave_products_to_compiler(matcher.network)


# ---------------------------------------------------------------------------------------------
# Choosing and loading


class PhotoMatcher:
    """A matcher of either kind behind one call that takes two photos."""

    def __init__(self, conf: Conf, weights: str, device: str, compile: bool = False) -> None:
        matcher: SparseMatcher | DetectorFreeMatcher
        if isinstance(conf, SparseConf):
            self._features_conf = conf.features
            self._extractor = load_extractor(conf.features["model"], device)
            matcher = self._sparse = load_sparse_matcher(conf, weights, device)
            self._match = self._match_features
        else:
            matcher = self._detector_free = load_detector_free_matcher(conf, weights, device)
            self._turns = QuarterTurns(matcher) if conf.quarter_turns else None
            self._looks = closer_looks(matcher, conf)
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
            extract_image(self._extractor, self._features_conf, image, mask)
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


def matcher_weights_fingerprint(conf: Conf, weights: str) -> str:
    """Return a fingerprint of the weights a conf would be run with; "" if it needs none."""
    name = conf.model.get("name")
    if name not in NETWORKS:
        return ""
    return weights_fingerprint(name, weights, features_of(name, conf.model.get("features")))


def default_device(device: str = "auto") -> str:
    """Return the torch device a user's ``--device`` means; ``auto`` prefers CUDA, then MPS.

    Raises:
        InputError: the device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in available.items() if is_there)
    if not available.get(device, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise InputError(f"device {device!r} is not available here, only: {there}")
    return device
