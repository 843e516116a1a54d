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
from sfm_matchers.localization.poses import LocalizedQuery

# Of the photo's diagonal: how far from where a pose says a point may be found again; and how far
# around keypoints that fit elsewhere too everything may do so.
RADIUS, AROUND_RIVAL = 0.012, 0.05
# Features are alike where their similarity is that of this share of the inliers', least first.
LEAST_ALIKE = 0.25
# Points around that must be found again, and their share of those that should be seen. Of rendered
# towers whose sides are the same, photos on the wrong side show at most one, in the right place a
# third to all of them.
MIN_FOUND, MIN_SHARE = 3, 0.25
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


def shows_surroundings(
    found: LocalizedQuery, features: LocalFeatures, seen: Sequence[Points]
) -> bool:
    """Whether a query shows the surroundings of where its pose is; arguments as of `counts`."""
    shown, should_be = counts(found, features, seen)
    return shown >= max(MIN_FOUND, MIN_SHARE * should_be)


def counts(
    found: LocalizedQuery, features: LocalFeatures, seen: Sequence[Points]
) -> tuple[int, int]:
    """How many points around are found again in a query, and how many should be.

    Args:
        found: the query with its pose and inliers.
        features: of the query.
        seen: points by photo of the map.
    """
    inliers = found.point_ids[found.inliers]
    rival = found.keypoints[found.rival] if found.rival is not None else np.zeros((0, 2))
    beside = AROUND_RIVAL * np.hypot(found.camera.width, found.camera.height)
    alike, around = [np.zeros(0)], [np.zeros((0, 2))]
    for points in seen:
        projected, inside, similarity = _found_again(found, features, points)
        alike.append(similarity[np.isin(points.ids, inliers) & (similarity > -1)])
        inside[inside] = ~is_among(projected[inside], rival, beside)
        rows = np.flatnonzero(inside & points.is_around)
        around.append(np.stack([points.ids[rows], similarity[rows]], axis=1))
    every, (ids, similarities) = np.concatenate(alike), np.concatenate(around).T
    if not len(every):
        return 0, len(np.unique(ids))
    least = np.quantile(every, LEAST_ALIKE)
    return len(np.unique(ids[similarities >= least])), len(np.unique(ids))


def _found_again(
    found: LocalizedQuery, features: LocalFeatures, points: Points
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where points (N,) would be in the photo, which are, and how alike the best keypoint there is.

    Similarities are cosines; -1 where there is no keypoint.
    """
    assert found.cam_from_world is not None
    in_camera = found.cam_from_world * points.places
    projected = np.nan_to_num(found.camera.img_from_cam(in_camera), nan=-1.0)
    size = [found.camera.width, found.camera.height]
    inside = (in_camera[:, 2] > 0) & (projected >= 0).all(axis=1) & (projected < size).all(axis=1)
    similarity = np.full(len(projected), -1.0)
    descriptors = features.descriptors.astype(np.float32)
    rows = np.flatnonzero(inside & bool(len(features.keypoints)))
    for some in (rows[start : start + ROWS] for start in range(0, len(rows), ROWS)):
        squares = ((projected[some, None] - features.keypoints) ** 2).sum(axis=2)
        cosines = points.descriptors[:, some].T.astype(np.float32) @ descriptors
        cosines[squares > (RADIUS * np.hypot(*size)) ** 2] = -1.0
        similarity[some] = cosines.max(axis=1)
    return projected, inside, similarity


def is_among(places: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """Whether places (N, 2) lie in the convex hull of others (M, 2) or so near it, bool (N,)."""
    if not len(others):
        return np.zeros(len(places), dtype=bool)
    hull = cv2.convexHull(others.astype(np.float32))
    depths = [cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in places]
    return np.array(depths, dtype=np.float64).reshape(-1) >= -radius
