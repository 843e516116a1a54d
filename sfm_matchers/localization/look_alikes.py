"""Whether photos of other places of the map would be localized where a query was.

The opposite side of a building may look like the side at hand, and the map know one of them better:
a query then matches the wrong one only, and nothing of its matches speaks against it. But the map
knows where its own photos were taken. Where one of them, matched with the points that support a
pose, fits a pose that it does not have, these points look like others elsewhere. What is left must
be enough to say where the query is: the surroundings, for example.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pycolmap

from sfm_matchers.localization.certainty import is_elsewhere
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.plausibility import MIN_KEYPOINTS, implausibility
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.localization.resectioning import ALTERNATIVE_TRIALS, Matches, Solution, solve
from sfm_matchers.pairs.retrieval import mutual_matches

logger = logging.getLogger(__name__)

FeaturesOf = Callable[[str], dict[str, np.ndarray] | None]
"""A photo of the map -> its local features as a feature file has them, or None: not known."""

SimilarTo = Callable[[str], Sequence[str]]
"""A photo of the map -> the others, the most similar first."""

# Photos that support a pose; of each, photos of other places, of so many that are similar to it.
MAX_SUPPORTING, MAX_OTHERS, MAX_SIMILAR = 3, 6, 100
# Shared 3D points, up to which two photos show different places: wrong matches leave some.
MAX_SHARED = 8
RATIO = 0.9  # of the distances of descriptors; many wrong matches pass, but no pose fits these
# Of the photo's diagonal: so near points that look like others, points are not told from them.
RADIUS = 0.05
# Of a pose's inliers, those that look like nothing else. On a tower whose sides are the same there
# are at most five keypoints of them, elsewhere all.
MIN_UNIQUE_SHARE = 0.2


class LookAlikes:
    """Places of a map that look alike; found when a pose rests on them, and then known.

    Args:
        lookup: the map.
        features_of: gives local features, keypoint by keypoint those of the model.
        similar_to: ranks the photos of the map.
        max_error: largest reprojection error of an inlier, in pixels.
    """

    def __init__(
        self,
        lookup: IndexedModel,
        features_of: FeaturesOf,
        similar_to: SimilarTo,
        max_error: float,
    ) -> None:
        self._lookup, self._features_of, self._similar_to = lookup, features_of, similar_to
        self._max_error = max_error
        self._known = functools.lru_cache(maxsize=None)(self._find)

    def check(self, found: LocalizedQuery) -> None:
        """Make a localized query one of low confidence where its pose rests on such places."""
        if found.status is not Status.LOCALIZED:
            return
        ids = found.point_ids[found.inliers]
        is_alike, other = np.zeros(len(ids), dtype=bool), ""
        for name, rows in self._supporting(ids, found.database_names):
            for there, keypoints in self._known(name).items():
                near = self._near(name, ids[rows], keypoints)
                if near.sum() > is_alike.sum():
                    other = there
                is_alike[rows] |= near
        matched = found.keypoints[found.inliers]
        every, unique = (len(np.unique(some, axis=0)) for some in (matched, matched[~is_alike]))
        if unique >= max(MIN_KEYPOINTS, MIN_UNIQUE_SHARE * every):
            return
        found.status = Status.LOW_CONFIDENCE
        found.reason = (
            f"{every - unique} of the {every} keypoints that fit its pose show what {other} sees "
            "elsewhere: the map has places that look alike"
        )
        logger.warning("%s: low confidence: %s", found.name, found.reason)

    def _supporting(self, ids: np.ndarray, names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
        """Photos that together see most of some points (N,), with the rows of those each sees."""
        seen = {name: np.isin(ids, self._lookup.point_ids(name)) for name in names}
        chosen: list[tuple[str, np.ndarray]] = []
        left = np.ones(len(ids), dtype=bool)
        while seen and len(chosen) < MAX_SUPPORTING:
            name = max(seen, key=lambda name: int((seen[name] & left).sum()))
            rows = seen.pop(name)
            if (rows & left).sum() < MIN_KEYPOINTS:
                break
            chosen.append((name, np.flatnonzero(rows)))
            left &= ~rows
        return chosen

    def _find(self, name: str) -> dict[str, np.ndarray]:
        """Photos that look like one but are elsewhere, and where: its keypoints (M,) that fit."""
        if self._features_of(name) is None:
            return {}
        found = {}
        for other in self._elsewhere(name):
            if len(fitting := self._fitting_keypoints(name, other)):
                found[other] = fitting
        return found

    def _elsewhere(self, name: str) -> list[str]:
        """Photos that are similar to one, but see other points."""
        ids = self._lookup.point_ids(name)
        ids = ids[ids >= 0]
        others: list[str] = []
        for other in self._similar_to(name)[:MAX_SIMILAR]:
            if len(others) == MAX_OTHERS:
                break
            if np.isin(self._lookup.point_ids(other), ids).sum() <= MAX_SHARED:
                others.append(other)
        return others

    def _near(self, name: str, ids: np.ndarray, fitting: np.ndarray) -> np.ndarray:
        """Whether a photo sees some points (N,) near some of its keypoints (M,), bool (N,)."""
        image = self._lookup.model.images[self._lookup.image_ids[name]]
        camera = self._lookup.model.cameras[image.camera_id]
        pixels = np.array([image.points2D[index].xy for index in fitting.tolist()])
        row_of = {point: row for row, point in enumerate(self._lookup.point_ids(name).tolist())}
        here = np.array([image.points2D[row_of[point]].xy for point in ids.tolist()])
        distances = np.linalg.norm(here[:, None] - pixels, axis=2).min(axis=1)
        return np.asarray(distances <= RADIUS * np.hypot(camera.width, camera.height))

    def _fitting_keypoints(self, name: str, other: str) -> np.ndarray:
        """Keypoints (M,) of a photo by whose 3D points another one would be localized, wrongly."""
        none = np.zeros(0, dtype=np.int64)
        here, there = self._features_of(name), self._features_of(other)
        if here is None or there is None:
            return none
        ids = self._lookup.point_ids(name)
        has_point = np.flatnonzero(ids >= 0)
        matched = mutual_matches(here["descriptors"][:, has_point], there["descriptors"], RATIO)
        if len(matched) < MIN_KEYPOINTS:
            return none
        rows = has_point[matched[:, 0]]
        keypoints = there["keypoints"][matched[:, 1]].astype(np.float64) + 0.5
        return rows[self._fit_wrongly(other, keypoints, ids[rows])]

    def _fit_wrongly(self, name: str, keypoints: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Which matches (N,) of a photo's keypoints with points fit a pose that it does not have.

        Returns:
            Bool (N,).
        """
        model = self._lookup.model
        points = np.array([model.points3D[point_id].xyz for point_id in ids.tolist()])
        origin = np.median(points, axis=0)  # solvers lose digits far from the world's
        camera = model.cameras[model.images[self._lookup.image_ids[name]].camera_id]
        pose = self._lookup.pose(name) * pycolmap.Rigid3d(pycolmap.Rotation3d(), origin)
        matches = Matches(keypoints, points - origin, self._max_error, self._lookup.extent)
        true = Solution(camera, pose, matches)
        fit = np.zeros(len(points), dtype=bool)
        left = np.flatnonzero(~true.inliers)
        if len(left) < MIN_KEYPOINTS:
            return fit
        wrong = solve(matches.some(left), camera, max_trials=ALTERNATIVE_TRIALS)
        if wrong is None or implausibility(wrong, wrong.inliers) or not is_elsewhere(true, wrong):
            return fit
        fit[left[wrong.inliers]] = True
        return fit
