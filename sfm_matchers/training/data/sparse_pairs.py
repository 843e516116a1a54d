"""Pairs of images as MambaGlue is trained on: the features of both, and which are one point.

A network that finds features takes longer than a step of training. Its features are computed once
and kept: those of a number of views of each posed photograph, any two of which make a pair whose
truth their depth tells, and those of a number of made pairs. What is drawn from them differs each
time: which two views, and which part of their keypoints. SIFT's are cheap, and always new.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfm_matchers.evaluation.pair_lists import SceneInfo
from sfm_matchers.features.base import FeatureExtractor
from sfm_matchers.features.extraction import load_extractor
from sfm_matchers.networks.mambaglue import LocalFeatures
from sfm_matchers.training.data.kept import Kept
from sfm_matchers.training.data.megadepth import PosedPhotographs
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.photometry import vary_appearance
from sfm_matchers.training.data.sift_features import extract_sift
from sfm_matchers.training.losses.mambaglue import (
    IGNORED,
    UNMATCHED,
    GroundTruthMatches,
    ground_truth_matches,
)
from sfm_matchers.training.options import FEATURE_NETWORKS
from sfm_matchers.training.schedule import MISMATCHED_SHARE, REAL_SHARE, sample_made_pairs

MAX_KEYPOINTS = 2048  # of one image, best first, as the confs have it
# Most keypoints of an image, drawn for each batch, until a share of the run: few show more pairs
# for the same work, and users have many.
KEYPOINTS = {0.4: (256, 384, 512), 1.0: (512, 768, 1024)}
KEYPOINTS_OF_BATCH_SIZE = 512  # of the pairs that a batch size counts
NEGATIVE_THRESHOLD = 5.0  # pixels; the authors' recipe for posed photographs
# What is kept of a front-end that takes long.
VIEWS = 3  # of each posed photograph
MADE_BATCHES = 48
MADE_BATCH_SIZE = 12  # pairs of `REFERENCE_AREA`, fewer of larger images
# Views of a posed photograph.
MAX_LOG2_REDUCTION = 1.0
ROLL = 12.0  # degrees, standard deviation
TURNED_VIEWS = 0.5  # of one kind of views: the share that is turned by any angle allowed

Image = dict[str, Tensor]
"""One image of a pair: ``image_size`` (2,), and for each of M keypoints a row of ``keypoints`` (2),
``descriptors`` (D), ``scores``, ``scales`` and ``oris`` where the front-end has them, ``places``
(2) in the image that the truth speaks of, and what `PairGeometry.warp` says of these: ``warped``
(2) and ``visible``."""

PER_KEYPOINT = ("keypoints", "descriptors", "scores", "scales", "oris")


@dataclass
class SparsePairBatch:
    """Pairs of images by their features.

    Attributes:
        features0: of image 0.
        features1: of image 1.
        truth: which of them match.
    """

    features0: LocalFeatures
    features1: LocalFeatures
    truth: GroundTruthMatches

    def __len__(self) -> int:
        return len(self.features0.keypoints)

    def mismatched(self) -> SparsePairBatch:
        """Each image 0 with the image 1 of the next pair."""
        order = [(pair + 1) % len(self) for pair in range(len(self))]
        features0, features1 = self.features0, self.features1.select(order)
        no_match = (
            torch.where(features.valid, UNMATCHED, IGNORED) for features in (features0, features1)
        )
        return SparsePairBatch(features0, features1, GroundTruthMatches(*no_match))


@dataclass
class KnownWarps:
    """Where the keypoints of both images fall in the other one; a `PairGeometry` for these alone.

    Attributes:
        warped: (B, M, 2) and (B, N, 2).
        visible: (B, M) and (B, N) bool.
    """

    warped: tuple[Tensor, Tensor]
    visible: tuple[Tensor, Tensor]

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        return self.warped[source], self.visible[source]


class FeatureSource:
    """The features of one front-end for training.

    Args:
        name: ``sift``, ``aliked`` or ``disk``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.takes_long = name in FEATURE_NETWORKS
        self._extractor: FeatureExtractor | None = None
        self._lock = threading.Lock()

    def extract(self, images: Tensor, max_keypoints: int = MAX_KEYPOINTS) -> list[Image]:
        """Features of each of the images (B, 3, H, W), RGB in 0..1, best first."""
        if self.name == "sift":
            features = extract_sift(images, max_keypoints)
            return [_of_one(features, index) for index in range(len(images))]
        with self._lock:
            if self._extractor is None:
                model = {"name": FEATURE_NETWORKS[self.name], "max_num_keypoints": MAX_KEYPOINTS}
                self._extractor = load_extractor(model, str(images.device))
            pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            found = [self._extractor.extract(one[None])[0] for one in pixels]
        size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32)
        return [
            {
                "keypoints": torch.from_numpy(features.keypoints),
                "descriptors": torch.from_numpy(features.descriptors.T.copy()),
                "scores": torch.from_numpy(features.scores),
                "image_size": size,
            }
            for features in (one.best_first(max_keypoints) for one in found)
        ]


class SparsePairs:
    """Where the pairs of a run come from.

    Args:
        source: of the features.
        kept: where features that take long are kept.
        max_turn: see `sample_made_pairs`; of posed photographs the same share is turned.
    """

    def __init__(self, source: FeatureSource, kept: Kept, max_turn: float) -> None:
        self.source = source
        self.kept = kept
        self.max_turn = max_turn

    def sample(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> SparsePairBatch:
        """Draw a batch: posed photographs in half of the cases, where there are some.

        Args:
            photographs: to make pairs of.
            batch_size: number of pairs of `KEYPOINTS_OF_BATCH_SIZE` keypoints.
            progress: of the run, 0 to 1.
            generator: from which everything is drawn.
            device: of the tensors.
        """
        limits = next(limits for until, limits in KEYPOINTS.items() if progress <= until)
        limit = limits[_draw(len(limits), generator)]
        count = max(1, round(batch_size * KEYPOINTS_OF_BATCH_SIZE / limit))
        if photographs.posed and _uniform(generator) < REAL_SHARE:
            batch = self.posed_pairs(photographs.posed, count, limit, generator, device)
        else:
            pairs = self._made_pairs(photographs, count, progress, generator, device)
            pairs = [tuple(_fewer(image, limit, generator) for image in pair) for pair in pairs]
            batch = batched(pairs, device)
        is_mismatched = _uniform(generator) < MISMATCHED_SHARE
        return batch.mismatched() if is_mismatched and len(batch) > 1 else batch

    def _made_pairs(
        self,
        photographs: Photographs,
        count: int,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> list[tuple[Image, ...]]:
        """Pairs of views of a photograph, or of a rendered scene."""
        if not self.source.takes_long:
            batch = sample_made_pairs(
                photographs, count, progress, generator, device, self.max_turn
            )
            return self.with_truth(batch)
        number = _draw(MADE_BATCHES, generator)

        def make() -> dict[str, Tensor]:
            own = torch.Generator().manual_seed(number)
            late = 0.5 + 0.5 * _uniform(own)  # the larger sizes of the schedule
            batch = sample_made_pairs(
                photographs, MADE_BATCH_SIZE, late, own, device, self.max_turn
            )
            return _flat(self.with_truth(batch))

        pairs = _unflat(self.kept.get(f"{self.source.name}-made-{number}", make))
        order = torch.randperm(len(pairs), generator=generator)[:count].tolist()
        return [pairs[pair] for pair in order]

    def with_truth(
        self, batch: PairBatch, max_keypoints: int = MAX_KEYPOINTS
    ) -> list[tuple[Image, ...]]:
        """The features of both images of each pair, and where they fall in the other image."""
        sides = [
            self.source.extract(image, max_keypoints) for image in (batch.image0, batch.image1)
        ]
        for source, images in enumerate(sides):
            points = pad_sequence([image["keypoints"] for image in images], batch_first=True)
            warped, visible = batch.geometry.warp(points.to(batch.image0.device), source)
            for index, image in enumerate(images):
                count = len(image["keypoints"])
                image["places"] = image["keypoints"]
                image["warped"] = warped[index, :count].cpu()
                image["visible"] = visible[index, :count].cpu()
        return list(zip(*sides, strict=True))

    def posed_pairs(
        self,
        posed: PosedPhotographs,
        count: int,
        limit: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> SparsePairBatch:
        """Draw pairs of views of posed photographs; `limit` is the most keypoints of an image."""
        pairs = []
        for _ in range(count):
            scene, pair = posed.draw_pair(generator)
            images = [
                _fewer(self._view(posed, scene, index, generator), limit, generator)
                for index in pair
            ]
            depths = [torch.from_numpy(posed.read(scene, index)[1])[None] for index in pair]
            unit = torch.ones(1, 2)
            geometry = posed.geometry(
                [(scene, pair)], (depths[0], depths[1]), (unit, unit), torch.device("cpu")
            )
            for source, image in enumerate(images):
                warped, visible = geometry.warp(image["places"][None], source)
                image["warped"], image["visible"] = warped[0], visible[0]
            pairs.append(tuple(images))
        return batched(pairs, device, NEGATIVE_THRESHOLD)

    def _view(
        self, posed: PosedPhotographs, scene: SceneInfo, index: int, generator: torch.Generator
    ) -> Image:
        """A view of a posed photograph: one of those kept, or a new one."""
        number = _draw(VIEWS, generator)
        if not self.source.takes_long:
            return dict(self._new_view(posed, scene, index, number, generator))
        stem = str(scene.image_paths[index]).replace("/", "-")

        def make() -> dict[str, Tensor]:
            seed = zlib.crc32(f"{stem} {number}".encode())
            return self._new_view(posed, scene, index, number, torch.Generator().manual_seed(seed))

        return dict(self.kept.get(f"{self.source.name}-view-{stem}-{number}", make))

    def _new_view(
        self,
        posed: PosedPhotographs,
        scene: SceneInfo,
        index: int,
        number: int,
        generator: torch.Generator,
    ) -> Image:
        """Number 0 is the photograph as it is; others are turned, reduced and look different."""
        photo = posed.read(scene, index)[0]
        height, width = photo.shape[:2]
        photo_from_view = np.eye(2, 3)
        if number:
            angle = float(torch.randn((), generator=generator)) * ROLL
            if number == VIEWS - 1 and _uniform(generator) < TURNED_VIEWS:
                angle += (2 * _uniform(generator) - 1) * self.max_turn
            scale = 2.0 ** (-MAX_LOG2_REDUCTION * _uniform(generator))
            size = (round(width * scale), round(height * scale))
            reduced = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            middle = ((size[0] - 1) / 2, (size[1] - 1) / 2)
            turn = cv2.getRotationMatrix2D(middle, angle, 1.0)
            photo = np.asarray(cv2.warpAffine(reduced, turn, size, borderMode=cv2.BORDER_REPLICATE))
            photo_from_view = cv2.invertAffineTransform(turn) * [
                [width / size[0]],
                [height / size[1]],
            ]
            photo_from_view[:, 2] += 0.5 * np.array([width / size[0], height / size[1]]) - 0.5
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
        if number:
            pixels = vary_appearance(pixels, _uniform(generator), generator)
        view = self.source.extract(pixels)[0]
        affine = torch.from_numpy(photo_from_view).float()
        view["places"] = view["keypoints"] @ affine[:, :2].T + affine[:, 2]
        return view


def batched(
    pairs: Sequence[tuple[Image, ...]],
    device: torch.device,
    negative_threshold: float = 3.0,
) -> SparsePairBatch:
    """Put pairs together, padded to one number of keypoints, and tell which of them match."""
    sides: list[list[Image]] = [list(side) for side in zip(*pairs, strict=True)]
    features, places, warped, visible = [], [], [], []
    for images in sides:

        def stacked(name: str, images: list[Image] = images) -> Tensor:
            rows = pad_sequence([image[name] for image in images], batch_first=True)
            if rows.shape[1] == 0:  # no image has keypoints, and a batch has one at least
                rows = rows.new_zeros(len(images), 1, *rows.shape[2:])
            return (rows if rows.dtype == torch.bool else rows.float()).to(device)

        counts = torch.tensor([len(image["keypoints"]) for image in images], device=device)
        present = [name for name in PER_KEYPOINT if name in images[0]]
        size = torch.stack([image["image_size"] for image in images]).to(device)
        fields = {name: stacked(name) for name in present}
        features.append(LocalFeatures(**fields, image_size=size, num_keypoints=counts))
        places.append(LocalFeatures(stacked("places"), fields["descriptors"], num_keypoints=counts))
        warped.append(stacked("warped"))
        visible.append(stacked("visible"))
    geometry = KnownWarps((warped[0], warped[1]), (visible[0], visible[1]))
    truth = ground_truth_matches(
        places[0], places[1], geometry, negative_threshold=negative_threshold
    )
    return SparsePairBatch(features[0], features[1], truth)


def _of_one(features: LocalFeatures, index: int) -> Image:
    """The features of one image of a batch, without padding."""
    count = int(features.counts[index])
    image = {name: getattr(features, name) for name in PER_KEYPOINT}
    image = {name: rows[index, :count].cpu() for name, rows in image.items() if rows is not None}
    return image | {"image_size": features.require("image_size")[index].cpu()}


def _fewer(image: Image, limit: int, generator: torch.Generator) -> Image:
    """`limit` keypoints at most: the best ones, or, as often, any."""
    count = len(image["keypoints"])
    order = torch.arange(min(limit, count))
    if count > limit and _uniform(generator) < 0.5:
        order = torch.randperm(count, generator=generator)[:limit].sort().values
    return {name: rows if name == "image_size" else rows[order] for name, rows in image.items()}


def _flat(pairs: Sequence[tuple[Image, ...]]) -> dict[str, Tensor]:
    return {
        f"{pair}.{side}.{name}": rows.half() if name == "descriptors" else rows
        for pair, images in enumerate(pairs)
        for side, image in enumerate(images)
        for name, rows in image.items()
    }


def _unflat(tensors: dict[str, Tensor]) -> list[tuple[Image, ...]]:
    count = 1 + max(int(name.split(".")[0]) for name in tensors)
    pairs: list[tuple[Image, ...]] = [({}, {}) for _ in range(count)]
    for name, rows in tensors.items():
        pair, side, field = name.split(".")
        pairs[int(pair)][int(side)][field] = rows
    return pairs


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
