"""Local features of photos of a map, with the 3D points they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import Hdf5File
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.mapping.sparse_scene import nearest

# Of a photo's diagonal: so near a keypoint of the model, another one shows the same 3D point.
SAME_POINT = 0.01


@dataclass(frozen=True)
class LocalFeatures:
    """Local features of a photo.

    Attributes:
        keypoints: (N, 2) float64 in COLMAP's convention.
        descriptors: (D, N) of unit length.
        point_ids: (N,) int64 of 3D points, -1 where there is none; of a query all are.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray
    point_ids: np.ndarray

    @classmethod
    def of_query(cls, keypoints: np.ndarray, descriptors: np.ndarray) -> LocalFeatures:
        """Those of a photo that is not in the map; keypoints as a feature file has them."""
        keypoints = keypoints.astype(np.float64) + 0.5
        return cls(keypoints, descriptors, np.full(len(keypoints), -1, dtype=np.int64))


def features_of_map(
    stored: Mapping[str, np.ndarray], lookup: IndexedModel, name: str
) -> LocalFeatures | None:
    """Those of a photo of the map, whose keypoints are those of the model, or None: they are not.

    `stored` is what a feature file has of it.
    """
    ids, keypoints = lookup.point_ids(name), stored["keypoints"].astype(np.float64) + 0.5
    if len(keypoints) != len(ids):
        return None
    return LocalFeatures(keypoints, stored["descriptors"], ids)


def features_beside_map(
    stored: Mapping[str, np.ndarray], lookup: IndexedModel, name: str
) -> LocalFeatures:
    """Those of a photo of the map whose model has other keypoints, those of another matcher.

    Each shows the 3D point of the model's keypoint next to it, if that is near enough.
    """
    image = lookup.model.images[lookup.image_ids[name]]
    camera = lookup.model.cameras[image.camera_id]
    ids, keypoints = lookup.point_ids(name), stored["keypoints"].astype(np.float64) + 0.5
    rows = np.flatnonzero(ids >= 0)
    places = np.array([image.points2D[row].xy for row in rows.tolist()]).reshape(-1, 2)
    shown = np.full(len(keypoints), -1, dtype=np.int64)
    if len(places) and len(keypoints):
        index, distances = (found[:, 0] for found in nearest(places, keypoints, 1))
        near = distances <= SAME_POINT * np.hypot(camera.width, camera.height)
        shown[near] = ids[rows[index[near]]]
    return LocalFeatures(keypoints, stored["descriptors"], shown)


class StoredFeatures:
    """Those of the photos of a map and of queries, in a feature file.

    Args:
        file: it is read when features are asked for.
        lookup: the map.
        beside: the keypoints are not those of the model.
    """

    def __init__(self, file: Hdf5File, lookup: IndexedModel, *, beside: bool = False) -> None:
        self._file, self._lookup, self._beside = file, lookup, beside

    def of_map(self, name: str) -> LocalFeatures | None:
        """Those of a photo of the map, or None where the file has none."""
        stored = self._read(name)
        if stored is None:
            return None
        of = features_beside_map if self._beside else features_of_map
        return of(stored, self._lookup, name)

    def of_query(self, name: str) -> LocalFeatures | None:
        """Those of another photo, or None where the file has none, or where the points of the map
        are only near its keypoints: what stands around is then not told from what looks alike."""
        stored = None if self._beside else self._read(name)
        if stored is None:
            return None
        return LocalFeatures.of_query(stored["keypoints"], stored["descriptors"])

    def _read(self, name: str) -> dict[str, np.ndarray] | None:
        try:
            return self._file.features(name)
        except InputError:  # matched without a detector, or of another file
            return None
