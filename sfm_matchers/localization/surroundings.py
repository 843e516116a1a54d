"""Whether a photo shows what stands around a place that looks like another.

Matches do not tell two such places apart where the map knows little of what stands around: a few of
many keypoints are easily wrong. But a pose says where each of the map's points would be in the
photo. Where it is right, features like those of the map are there; where it is not, hardly one is:
a keypoint within some pixels, as alike as those of the pose's inliers, is rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sfm_matchers.localization.local_features import LocalFeatures
from sfm_matchers.localization.plausibility import binomial_tail
from sfm_matchers.localization.poses import LocalizedQuery

# Of the photo's diagonal: how far from where a pose says a point may be found again; and how far
# around keypoints that fit elsewhere too everything may do so.
RADIUS, AROUND_RIVAL = 0.012, 0.05
# Features are alike where their similarity is that of this share of the inliers', least first.
LEAST_ALIKE = 0.25
# Points around that must be found again, and their share of those that should be seen. Of rendered
# towers whose sides are the same, photos on the wrong side show at most one, in the right place
# three to seven where the map knows so many.
MIN_FOUND, MIN_SHARE = 3, 0.25
# As many by chance, as so many radii away in four directions: the largest probability.
DISPLACED, MAX_BY_CHANCE = 5.0, 1e-3
ROWS = 512  # points that are held against all keypoints at once


@dataclass(frozen=True)
class Points:
    """Points of the map as one of its photos sees them.

    Attributes:
        ids: (N,) of the points.
        places: (N, 3) in the world.
        descriptors: (D, N) of unit length.
        is_around: (N,) bool: these look like nothing else in the map.
    """

    ids: np.ndarray
    places: np.ndarray
    descriptors: np.ndarray
    is_around: np.ndarray


@dataclass(frozen=True)
class Count:
    """What is found again.

    Attributes:
        found: keypoints of the query that show points around.
        should_be: points around that its pose puts into the photo.
        by_chance: the share of points that is found where it should not be.
    """

    found: int
    should_be: int
    by_chance: float

    @property
    def is_enough(self) -> bool:
        """Whether the query shows the surroundings."""
        if self.found < max(MIN_FOUND, MIN_SHARE * self.should_be):
            return False
        return binomial_tail(self.found, self.should_be, self.by_chance) <= MAX_BY_CHANCE


def surroundings(found: LocalizedQuery, features: LocalFeatures, seen: Sequence[Points]) -> Count:
    """Look for the surroundings of where the pose of a query is.

    Args:
        found: the query with its pose and inliers.
        features: of the query.
        seen: points by photo of the map.
    """
    diagonal = np.hypot(found.camera.width, found.camera.height)
    inliers = found.point_ids[found.inliers]
    rival = found.keypoints[found.rival] if found.rival is not None else np.zeros((0, 2))
    shifts = DISPLACED * RADIUS * diagonal * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    alike, displaced = [np.zeros(0)], [np.zeros(0)]
    around = [np.zeros((0, 3))]  # point, its keypoint, their similarity
    for points in seen:
        pixels, inside = _projected(found, points.places)
        ids, pixels, descriptors = points.ids[inside], pixels[inside], points.descriptors[:, inside]
        (best, index), *others = (
            _most_alike(pixels + shift, descriptors, features, RADIUS * diagonal)
            for shift in shifts
        )
        alike.append(best[np.isin(ids, inliers) & (best > -1)])
        displaced += [similarity for similarity, _ in others]
        rows = points.is_around[inside] & ~is_among(pixels, rival, AROUND_RIVAL * diagonal)
        around.append(np.stack([ids[rows], index[rows], best[rows]], axis=1))
    every, elsewhere, table = (np.concatenate(parts) for parts in (alike, displaced, around))
    if not len(every):
        return Count(0, len(np.unique(table[:, 0])), 1.0)
    least = np.quantile(every, LEAST_ALIKE)
    shown = table[table[:, 2] >= least]
    count = min(len(np.unique(shown[:, column])) for column in (0, 1))
    by_chance = (1 + (elsewhere >= least).sum()) / (1 + len(elsewhere))
    return Count(count, len(np.unique(table[:, 0])), float(by_chance))


def _projected(found: LocalizedQuery, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a query would show points (N, 3): (N, 2), and whether it does, bool (N,)."""
    assert found.cam_from_world is not None
    in_camera = found.cam_from_world * places
    pixels = np.asarray(found.camera.img_from_cam(in_camera), dtype=np.float64)
    pixels, size = np.nan_to_num(pixels, nan=-1.0), (found.camera.width, found.camera.height)
    return pixels, (in_camera[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < size).all(axis=1)


def _most_alike(
    pixels: np.ndarray, descriptors: np.ndarray, features: LocalFeatures, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the keypoints near each of some places (N, 2), which is most alike, and how much.

    Returns:
        Cosines (N,), -1 where there is no keypoint, and indices (N,).
    """
    similarity, index = np.full(len(pixels), -1.0), np.zeros(len(pixels), dtype=np.int64)
    if not len(features.keypoints):
        return similarity, index
    there = features.descriptors.astype(np.float32)
    for start in range(0, len(pixels), ROWS):
        some = slice(start, start + ROWS)
        squares = ((pixels[some, None] - features.keypoints) ** 2).sum(axis=2)
        cosines = descriptors[:, some].T.astype(np.float32) @ there
        cosines[squares > radius**2] = -1.0
        similarity[some], index[some] = cosines.max(axis=1), cosines.argmax(axis=1)
    return similarity, index


def is_among(places: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """Whether places (N, 2) lie in the convex hull of others (M, 2) or so near it, bool (N,)."""
    if not len(others):
        return np.zeros(len(places), dtype=bool)
    hull = cv2.convexHull(others.astype(np.float32))
    depths = [cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in places]
    return np.array(depths, dtype=np.float64).reshape(-1) >= -radius
