"""A teacher for photographs without depth: the matches of a matcher that is better on them.

The photographs of a place are matched once before the training, and what fits one epipolar geometry
is kept, in memory and in a folder; a resumed run does not match again.
"""

from __future__ import annotations

import itertools
import logging
import math
import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.features.base import FeatureExtractor
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.files.names import in_natural_order
from sfm_matchers.geometry.local_affine_maps import local_affine_maps
from sfm_matchers.geometry.robust_estimation import agree_with_one_epipolar_geometry
from sfm_matchers.machine.progress import progress
from sfm_matchers.matchers.protocols import Arrays, SparseMatcher
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.photos.folders import find_images
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.kept import Kept
from sfm_matchers.training.data.photographs import Photographs, load_photographs
from sfm_matchers.training.data.teacher_pairs import MatchedPair, TeacherPairs

logger = logging.getLogger(__name__)

TEACHER = "aliked+mambaglue"
LONGER_SIDE = 800  # pixels of a photograph: room for views of 640
GROUP = 16  # photographs, neighbours by name, of which each is matched with each
MAX_ERROR = 1.0  # pixels from an epipolar line
MIN_INLIERS = 30
MIN_SHARE = 0.6  # of the matches of a pair: the teacher's are right or wrong together


class Teacher(Protocol):
    """What matches the photographs."""

    def features(self, image: np.ndarray) -> Arrays:
        """What is found in one photograph, RGB (H, W, 3) uint8."""
        ...

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Matched pixels (M, 2) of both."""
        ...


class SparseTeacher:
    """A matcher of features; its networks are loaded when first needed.

    Args:
        device: torch device.
        name: of a sparse conf.
    """

    def __init__(self, device: str, name: str = TEACHER) -> None:
        conf = load_conf(name)
        assert isinstance(conf, SparseConf)
        self._conf, self._device = conf, device

    @cached_property
    def _networks(self) -> tuple[FeatureExtractor, SparseMatcher]:
        extractor = load_extractor(self._conf.features.model, self._device)
        return extractor, load_sparse_matcher(self._conf, "bundled", self._device)

    def features(self, image: np.ndarray) -> Arrays:
        """See `Teacher.features`.

        Raises:
            WeightsError: the weights are not there.
        """
        return extract_image(self._networks[0], self._conf.features.preprocessing, image)

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `Teacher.match`."""
        partners, _ = self._networks[1].match(features0, features1)
        chosen = partners >= 0
        return features0["keypoints"][chosen], features1["keypoints"][partners[chosen]]


def load_teacher_pairs(
    folder: Path, teacher: Teacher, kept: Path, hold_out: Sequence[str], device: str
) -> TeacherPairs | None:
    """Read photographs of places, and match those of each place with each other.

    Of the places that are held out, one in ten by a hash of the name as of posed scenes, nothing is
    used; unless there are no others.

    Args:
        folder: each subfolder is a place, and so are the photographs beside them.
        teacher: what matches them.
        kept: folder of what has been matched, by this run or an earlier one.
        hold_out: names of further places to hold out.
        device: of the photographs.

    Returns:
        The pairs; None, with a warning, if the weights of the teacher are not there.

    Raises:
        InputError: there are no photographs, or no two of them match.
    """
    photographs = load_photographs(folder, find_images(folder), max_side=LONGER_SIDE, device=device)
    groups = _groups_by_place(photographs.names, folder.name, hold_out)
    store = Kept(kept)
    places = []
    with progress(total=sum(map(len, groups.values())), title="Teacher", unit="group") as bar:
        for place, its_groups in groups.items():
            matched: list[MatchedPair] = []
            for group in its_groups:
                images = [_pixels(photographs, index) for index in group]
                key = f"{place}-{_digest(images):08x}"
                try:
                    entry = store.get(key, partial(_match, images, teacher))
                except WeightsError as error:
                    logger.warning("training without a teacher: %s", error)
                    return None
                matched += _unflat(entry, group)
                bar.update(1)
            if matched:
                places.append(matched)
    if not places:
        raise InputError(f"no two photographs in {folder} match: give photographs that overlap")
    count = sum(map(len, places))
    logger.info("the teacher's matches of %d pairs of %d places", count, len(places))
    return TeacherPairs(photographs, places)


def _groups_by_place(
    names: Sequence[str], beside: str, hold_out: Sequence[str]
) -> dict[str, list[list[int]]]:
    """Indices of the photographs of each place that is not held out, in groups alike in size."""
    index_of = {name: index for index, name in enumerate(names)}
    places: dict[str, list[int]] = {}
    for name in in_natural_order(names):
        place, _, inside = name.partition("/")
        places.setdefault(place if inside else beside, []).append(index_of[name])
    used = [place for place in places if not is_held_out(place) and place not in hold_out]
    return {
        place: [
            group.tolist()
            for group in np.array_split(places[place], math.ceil(len(places[place]) / GROUP))
        ]
        for place in used or places
    }


def _pixels(photographs: Photographs, index: int) -> np.ndarray:
    return photographs.pyramids[index][0].permute(1, 2, 0).contiguous().cpu().numpy()


def _digest(images: Sequence[np.ndarray]) -> int:
    """A number that tells photographs, in their order, from others."""
    digest = 0
    for image in images:
        digest = zlib.crc32(image.tobytes(), zlib.crc32(str(image.shape).encode(), digest))
    return digest


def _match(images: Sequence[np.ndarray], teacher: Teacher) -> dict[str, Tensor]:
    """Match each photograph of a group with each: ``<first>.<second>.<field of MatchedPair>``."""
    features = [teacher.features(image) for image in images]
    found: dict[str, Tensor] = {}
    for first, second in itertools.combinations(range(len(images)), 2):
        fields = fitted_matches(*teacher.match(features[first], features[second]))
        if fields is not None:
            found |= {f"{first}.{second}.{name}": value for name, value in fields.items()}
    return found


def _unflat(entry: dict[str, Tensor], group: Sequence[int]) -> list[MatchedPair]:
    pairs = sorted({tuple(map(int, key.split(".")[:2])) for key in entry})
    return [
        MatchedPair(
            (group[first], group[second]),
            *(entry[f"{first}.{second}.{name}"] for name in ("points0", "points1", "linear")),
        )
        for first, second in pairs
    ]


def fitted_matches(points0: np.ndarray, points1: np.ndarray) -> dict[str, Tensor] | None:
    """Keep the matches of a pair that fit one epipolar geometry, if they are enough.

    Args:
        points0: (M, 2) pixels of photograph 0.
        points1: (M, 2) matched pixels of photograph 1.

    Returns:
        `points0`, `points1` and `linear` of `MatchedPair`; None if they are too few.
    """
    if len(points0) < MIN_INLIERS:
        return None
    fits = agree_with_one_epipolar_geometry(points0, points1, MAX_ERROR)
    if fits.sum() < max(MIN_INLIERS, MIN_SHARE * len(fits)):
        return None
    points0, points1 = points0[fits], points1[fits]
    linear = local_affine_maps(points0, points1)
    if linear is None:
        return None
    arrays = {"points0": points0, "points1": points1, "linear": linear}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
