"""Whether photos of other places of the map would be localized where a query was.

The opposite side of a building may look like the side at hand, and the map know one of them better:
a query then matches the wrong one only, and nothing of its matches speaks against it. But the map
knows where its own photos were taken. Where one of them, matched with the points that support a
pose, fits a pose that it does not have, these points look like others elsewhere. What is left must
be enough to say where the query is: the surroundings, for example. Where few of these match, they
are looked for where the pose says they are, see `surroundings`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pycolmap

from sfm_matchers.localization.certainty import is_elsewhere
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.local_features import LocalFeatures
from sfm_matchers.localization.plausibility import MIN_KEYPOINTS, implausibility
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.localization.resectioning import ALTERNATIVE_TRIALS, Matches, Solution, solve
from sfm_matchers.localization.surroundings import Points, is_among, surroundings
from sfm_matchers.mapping.sparse_scene import nearest
from sfm_matchers.pairs.retrieval import mutual_matches

logger = logging.getLogger(__name__)

FeaturesOf = Callable[[str], LocalFeatures | None]
"""A photo of the map -> its local features, or None: not known."""

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


def photos_to_describe(
    names: Iterable[str], lookup: IndexedModel, similar_to: SimilarTo
) -> list[str]:
    """Photos of a map whose local features say whether queries matched with some may be elsewhere:
    these, and those that are similar to one of them but show other points.

    Args:
        names: photos of the map that queries are matched with.
        lookup: the map.
        similar_to: ranks the photos of the map.
    """
    chosen = [name for name in dict.fromkeys(names) if name in lookup.image_ids]
    others = (other for name in chosen for other in _elsewhere(name, lookup, similar_to))
    return list(dict.fromkeys([*chosen, *others]))


def _elsewhere(name: str, lookup: IndexedModel, similar_to: SimilarTo) -> list[str]:
    """Photos that are similar to one, but see other points."""
    ids = lookup.point_ids(name)
    ids = ids[ids >= 0]
    others: list[str] = []
    for other in similar_to(name)[:MAX_SIMILAR]:
        if len(others) == MAX_OTHERS:
            break
        if np.isin(lookup.point_ids(other), ids).sum() <= MAX_SHARED:
            others.append(other)
    return others


def nearest_photos(lookup: IndexedModel) -> SimilarTo:
    """Rank photos of a map by how near they were taken, where nothing says how similar they are."""
    names = sorted(lookup.image_ids)
    centres = np.array([lookup.centres[lookup.image_ids[name]] for name in names])

    def similar_to(name: str) -> list[str]:
        distances = np.linalg.norm(centres - lookup.centres[lookup.image_ids[name]], axis=1)
        order = np.argsort(distances, kind="stable").tolist()
        return [names[row] for row in order if names[row] != name]

    return similar_to


class LookAlikes:
    """Places of a map that look alike; found when a pose rests on them, and then known.

    Args:
        lookup: the map.
        features_of: gives local features.
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
        self._is_blind = False  # features of a photo were missing, which was said
        self._known = functools.lru_cache(maxsize=None)(self._find)

    def check(self, found: LocalizedQuery, features: LocalFeatures | None = None) -> None:
        """Doubt a localized query where its pose rests on such places, and believe one that was
        doubted for a rival where it does not.

        Args:
            found: the query; its status may change.
            features: of the query, where they are known.
        """
        if found.status is not Status.LOCALIZED and found.rival is None:
            return
        ids = found.point_ids[found.inliers]
        supporting = self._supporting(ids, found.database_names)
        is_alike, other = np.zeros(len(ids), dtype=bool), ""
        for name, rows in supporting:
            for there, keypoints in self._known(name).items():
                near = self._near(name, ids[rows], keypoints)
                if near.sum() > is_alike.sum():
                    other = there
                is_alike[rows] |= near
        matched = found.keypoints[found.inliers]
        every, unique = (len(np.unique(some, axis=0)) for some in (matched, matched[~is_alike]))
        enough = unique >= max(MIN_KEYPOINTS, MIN_UNIQUE_SHARE * every)
        if found.rival is None and enough:
            return
        if features is not None and self._shows_surroundings(found, features, supporting):
            found.status, found.reason = Status.LOCALIZED, ""
            return
        if found.rival is not None:
            return
        found.status = Status.LOW_CONFIDENCE
        found.reason = (
            f"{every - unique} of the {every} keypoints that fit its pose show what {other} sees "
            "elsewhere: the map has places that look alike"
        )

    def _shows_surroundings(
        self,
        found: LocalizedQuery,
        features: LocalFeatures,
        supporting: Sequence[tuple[str, np.ndarray]],
    ) -> bool:
        """Whether a query shows what stands around the place that looks like another."""
        seen = []
        for name, _ in supporting:
            here, known = self._features_of(name), self._known(name)
            if here is None or not known:  # nobody knows what looks like others
                continue
            rows = np.flatnonzero(here.point_ids >= 0)
            ids = here.point_ids[rows]
            pixels, alike = self._pixels(name, ids), np.concatenate(list(known.values()))
            around = ~is_among(pixels, alike, self._radius(name))
            places = np.array([self._lookup.model.points3D[i].xyz for i in ids.tolist()])
            seen.append(Points(ids, places, here.descriptors[:, rows], around))
        return bool(seen) and surroundings(found, features, seen).is_enough

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
        """Photos that look like one but are elsewhere, and where it does: keypoints (M, 2)."""
        here = self._features_of(name)
        if here is None:
            if not self._is_blind:
                self._is_blind = True
                logger.warning(
                    "%s has no local features with which to look for places of the map that look "
                    "alike: they are not told apart; give local_features, such as SIFT's",
                    name,
                )
            return {}
        found = {}
        for other in _elsewhere(name, self._lookup, self._similar_to):
            there = self._features_of(other)
            if there is None:
                continue
            fitting = self._fitting_keypoints(here, other, there)
            if len(fitting):
                found[other] = here.keypoints[fitting]
        return found

    def _pixels(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Where a photo sees some points (N,): (N, 2)."""
        image = self._lookup.model.images[self._lookup.image_ids[name]]
        row_of = {point: row for row, point in enumerate(self._lookup.point_ids(name).tolist())}
        rows = [row_of[point] for point in ids.tolist()]
        return np.array([image.points2D[row].xy for row in rows]).reshape(-1, 2)

    def _radius(self, name: str) -> float:
        """In pixels of a photo."""
        image = self._lookup.model.images[self._lookup.image_ids[name]]
        camera = self._lookup.model.cameras[image.camera_id]
        return RADIUS * float(np.hypot(camera.width, camera.height))

    def _near(self, name: str, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Whether a photo sees some points (N,) near some places (M, 2) in it, bool (N,)."""
        _, distances = nearest(places, self._pixels(name, ids), 1)
        return np.asarray(distances[:, 0] <= self._radius(name))

    def _fitting_keypoints(
        self, here: LocalFeatures, other: str, there: LocalFeatures
    ) -> np.ndarray:
        """Keypoints (M,) of a photo by whose 3D points another one would be localized, wrongly."""
        has_point = np.flatnonzero(here.point_ids >= 0)
        matched = mutual_matches(here.descriptors[:, has_point], there.descriptors, RATIO)
        if len(matched) < MIN_KEYPOINTS:
            return np.zeros(0, dtype=np.int64)
        rows = has_point[matched[:, 0]]
        keypoints = there.keypoints[matched[:, 1]]
        return rows[self._fit_wrongly(other, keypoints, here.point_ids[rows])]

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
