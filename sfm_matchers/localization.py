"""Poses of query photos in a COLMAP model, from matches to its photos.

2D-3D matches are collected as in hloc: a query keypoint gets the 3D points of the map keypoints it
is matched with. HDF5 keypoints have (0, 0) at the centre of the top-left pixel, COLMAP (0.5, 0.5):
0.5 is added in `collect_matches`, and nowhere else.

What became of a query is always said (`Status`), and a pose is never invented: where none is found
the pose of the most similar photo of the map stands in for it in a submission file only.
"""

from __future__ import annotations

import copy
import functools
import glob
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
from tqdm import tqdm

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.intrinsics import Intrinsics, impossibility
from sfm_matchers.names import check_name, name_fault
from sfm_matchers.plausibility import Observers, implausibility, imprecision, is_seen
from sfm_matchers.resectioning import (
    FREEDOMS,
    WRONG_MOVE,
    Matches,
    Solution,
    best_of,
    better_intrinsics,
    centre_covariance,
    doubt,
    guesses,
    solve,
)
from sfm_matchers.storage import Pair, open_h5, read_keypoints, read_matches, read_text, write_text

logger = logging.getLogger(__name__)

CACHED_IMAGES = 512  # of the map, whose tables of 3D points are kept in memory


class Status(str, Enum):
    """What became of a query."""

    LOCALIZED = "localized"
    LOW_CONFIDENCE = "low confidence"  # a pose that few matches or a small share of them support
    FALLBACK = "fallback"  # no pose; that of the most similar photo of the map stands in for it
    FAILED = "failed"  # no pose, and no photo of the map that could stand in


@dataclass(frozen=True)
class Query:
    """A photo to localize.

    Attributes:
        name: of the photo.
        camera: with intrinsics in COLMAP's convention.
        focal_length_is_guess: the camera's focal length is only where to start from: it is
            estimated with the pose. A wrong one gives a wrong pose that many matches support.
        source: whence the intrinsics come, in the user's words.
        alternatives: intrinsics to compare with `camera`, which is preferred.
        may_change: intrinsics that the matches contradict are replaced by an estimate. Those that
            are known stay, and the pose is of low confidence.
    """

    name: str
    camera: pycolmap.Camera
    focal_length_is_guess: bool = False
    source: str = "as given"
    alternatives: Sequence[Intrinsics] = ()
    may_change: bool = False


@dataclass(frozen=True)
class LocalizationOptions:
    """How poses are estimated.

    Attributes:
        max_error: largest reprojection error of an inlier, in pixels, above 0.
        confident_inliers: a pose with fewer inliers is of low confidence.
        confident_ratio: so is one that a smaller share of the matches supports.
        covisibility_clustering: estimate a pose from each group of retrieved photos that share 3D
            points, and keep the one with most inliers.
        estimate_focal_length: refine the focal length of each query with its pose.
        check_intrinsics: hold them, and the errors of inliers, against the matches. Points that are
            inexact together, as those of scans are, look like wrong intrinsics.
    """

    max_error: float = 12.0
    confident_inliers: int = 20
    confident_ratio: float = 0.1
    covisibility_clustering: bool = False
    estimate_focal_length: bool = False
    check_intrinsics: bool = True

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise InputError(f"the largest error of an inlier must be positive: {self.max_error}")


@dataclass
class LocalizedQuery:
    """A query and what became of it.

    Attributes:
        name: of the photo.
        status: see `Status`.
        camera: as given, or with the estimated focal length.
        cam_from_world: the pose; None where it failed. Of status `FALLBACK`, that of
            `database_names[0]`.
        reason: why there is no pose of its own, or what speaks against it, or "".
        database_names: photos of the map that it was matched with, in the order of retrieval.
        num_matches: 2D-3D matches, several per keypoint included.
        keypoints: (N, 2) of the query, in COLMAP's convention, one row per 2D-3D match.
        points: (N, 3) their 3D points in the world.
        point_ids: (N,) ids of these in the model; empty where there is no model.
        inliers: (N,) bool.
        covariance: (6, 6) of the pose for errors of a pixel: rotation in radians and centre, along
            the camera's axes; or None.
        intrinsics: whence the camera's come, and why.
    """

    name: str
    status: Status
    camera: pycolmap.Camera
    cam_from_world: pycolmap.Rigid3d | None = None
    reason: str = ""
    database_names: list[str] = field(default_factory=list)
    num_matches: int = 0
    keypoints: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    point_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    covariance: np.ndarray | None = None
    intrinsics: str = ""

    @property
    def num_inliers(self) -> int:
        """2D-3D matches that support the pose."""
        return int(self.inliers.sum())

    @property
    def inlier_ratio(self) -> float:
        """Their share."""
        return self.num_inliers / max(1, len(self.inliers))

    def without_matches(self) -> LocalizedQuery:
        """The same without the 2D-3D matches, of which only the counts stay."""
        return replace(
            self,
            keypoints=np.zeros((0, 2)),
            points=np.zeros((0, 3)),
            point_ids=np.zeros(0, dtype=np.int64),
        )

    def to_json(self) -> dict[str, Any]:
        """What a log keeps of it."""
        pose = None
        if self.cam_from_world is not None:
            pose = [*_quaternion(self.cam_from_world), *self.cam_from_world.translation.tolist()]
        return {
            "name": self.name,
            "status": self.status.value,
            "reason": self.reason,
            "qw_qx_qy_qz_tx_ty_tz": pose,
            "num_matches": self.num_matches,
            "num_inliers": self.num_inliers,
            "inlier_ratio": round(self.inlier_ratio, 4),
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "camera": {
                "model": self.camera.model.name,
                "width": self.camera.width,
                "height": self.camera.height,
                "params": self.camera.params.tolist(),
            },
            "intrinsics": self.intrinsics,
            "database_names": self.database_names,
        }


# ---------------------------------------------------------------------------------------------
# In a model


def localize_queries(
    model: pycolmap.Reconstruction,
    queries: Sequence[Query],
    pairs: Iterable[Pair],
    feature_path: Path,
    match_path: Path,
    options: LocalizationOptions | None = None,
) -> Iterator[LocalizedQuery]:
    """Localize queries one after the other; memory does not grow with their number.

    Whatever is wrong with one query is said in its `reason`, and the next one follows.

    Args:
        model: its keypoints are those of the match file, point by point.
        queries: photos with intrinsics.
        pairs: (query, photo of the map), best first; others are ignored.
        feature_path: keypoints of the queries.
        match_path: matches between queries and photos of the map, in either direction.
        options: how poses are estimated.
    """
    options = options or LocalizationOptions()
    retrieved = group_by_query(pairs)
    lookup = _Map(model)
    with open_h5(feature_path) as features, open_h5(match_path) as matches:
        for query in tqdm(queries, desc="Localizing", unit="photo"):
            names = retrieved.get(query.name, [])
            known = [name for name in names if name in lookup.image_ids]
            if len(known) < len(names):
                logger.warning(
                    "%s: %d of %d retrieved photos are not in the map",
                    query.name,
                    len(names) - len(known),
                    len(names),
                )
            try:
                result = _localize(query, known, lookup, features, matches, options)
            except InputError as error:
                result = failed_query(query, str(error), known, lookup.pose)
            yield result


def group_by_query(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Return the photos listed for each query, in the order of the list."""
    retrieved: dict[str, list[str]] = {}
    for query, name in pairs:
        retrieved.setdefault(query, []).append(name)
    return retrieved


class _Map:
    """A model as localization sees it: names, poses, and the 3D point of each keypoint."""

    def __init__(self, model: pycolmap.Reconstruction) -> None:
        self.model = model
        self.image_ids = {
            image.name: image_id for image_id, image in model.images.items() if image.has_pose
        }
        self.centres = {i: model.images[i].projection_center() for i in self.image_ids.values()}
        centres = np.array(list(self.centres.values()))
        self.extent = float(np.linalg.norm(np.ptp(centres, axis=0))) if len(centres) else np.inf
        self.point_ids = functools.lru_cache(maxsize=CACHED_IMAGES)(self._read_point_ids)

    def pose(self, name: str) -> pycolmap.Rigid3d:
        return self.model.images[self.image_ids[name]].cam_from_world()

    def observers(
        self, point_ids: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `plausibility.Observers`: who saw some of the points (N,)."""
        rows, centres = [], []
        for row, point_id in enumerate(point_ids[indices].tolist()):
            for element in self.model.points3D[point_id].track.elements:
                if element.image_id in self.centres:
                    rows.append(row)
                    centres.append(self.centres[element.image_id])
        return np.array(rows, dtype=np.int64), np.array(centres).reshape(-1, 3)

    def _read_point_ids(self, name: str) -> np.ndarray:
        """The 3D point of each keypoint of a photo (N,) int64, -1 where there is none."""
        image = self.model.images[self.image_ids[name]]
        ids = np.full(image.num_points2D(), -1, dtype=np.int64)
        observed = np.asarray(image.get_observation_point2D_idxs(), dtype=np.int64)
        ids[observed] = [point.point3D_id for point in image.get_observation_points2D()]
        return ids


def _localize(
    query: Query,
    names: list[str],
    lookup: _Map,
    features: h5py.File,
    matches: h5py.File,
    options: LocalizationOptions,
) -> LocalizedQuery:
    if not names:
        return failed_query(query, "no photo of the map was retrieved for it", names, lookup.pose)
    clusters = [names]
    if options.covisibility_clustering:
        clusters = covisibility_clusters({name: lookup.point_ids(name) for name in names})
    size = (query.camera.width, query.camera.height)
    keypoints = read_keypoints(features, query.name, size)
    best: LocalizedQuery | None = None
    faults: list[str] = []
    for cluster in clusters:
        tables = []
        for name in cluster:
            ids = lookup.point_ids(name)
            try:
                counts = (len(keypoints), len(ids))
                tables.append((read_matches(matches, query.name, name, counts)[0], ids))
            except InputError as error:
                logger.warning("%s", error)
                faults.append(str(error))
        index, point_ids, num_matches = collect_matches(tables)
        points = [lookup.model.points3D[int(point_id)].xyz for point_id in point_ids]
        points3D = np.array(points, dtype=np.float64).reshape(-1, 3)
        found = estimate_pose(
            query,
            keypoints[index] + np.float32(0.5),
            points3D,
            num_matches,
            options,
            lookup.extent,
            functools.partial(lookup.observers, point_ids),
        )
        found.database_names, found.point_ids = names, point_ids
        if best is None or found.num_inliers > best.num_inliers:
            best = found
    assert best is not None
    if best.cam_from_world is None:
        reason = "; ".join([best.reason, *faults[:1]])
        return failed_query(query, reason, names, lookup.pose, best.num_matches)
    return best


def collect_matches(
    tables: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, int]:
    """Bring the matches of a query with several photos of the map together.

    Args:
        tables: per photo of the map, matches (M, 2) of query keypoints and map keypoints, and the
            3D point of each map keypoint (K,), -1 for none.

    Returns:
        Query keypoints (N,) and 3D points (N,), each pair once, ordered by where the keypoint, then
        the pair, appeared first; and the number of matches with a 3D point.
    """
    rows = [np.zeros((0, 2), dtype=np.int64)]
    for matches, point3D_ids in tables:
        point_ids = point3D_ids[matches[:, 1]]
        row = np.stack([matches[:, 0], point_ids], axis=1)
        rows.append(row[point_ids != -1])
    every = np.concatenate(rows)
    pairs, first = np.unique(every, axis=0, return_index=True)
    _, first_of_keypoint, inverse = np.unique(every[:, 0], return_index=True, return_inverse=True)
    keypoint_appeared = first_of_keypoint[inverse][first]
    order = np.lexsort((first, keypoint_appeared))
    return pairs[order, 0], pairs[order, 1], len(every)


def covisibility_clusters(point3D_ids: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Group photos that share 3D points, directly or through others; the largest group first."""
    sees: dict[int, list[str]] = {}
    for name, ids in point3D_ids.items():
        for point_id in np.unique(ids[ids != -1]).tolist():
            sees.setdefault(point_id, []).append(name)
    clusters: list[list[str]] = []
    left = dict.fromkeys(point3D_ids)
    while left:
        waiting, cluster = [next(iter(left))], set()
        while waiting:
            name = waiting.pop()
            if name in cluster:
                continue
            cluster.add(name)
            ids = point3D_ids[name]
            for point_id in np.unique(ids[ids != -1]).tolist():
                waiting += [other for other in sees[point_id] if other not in cluster]
        clusters.append([name for name in left if name in cluster])
        left = {name: None for name in left if name not in cluster}
    return sorted(clusters, key=len, reverse=True)


# ---------------------------------------------------------------------------------------------
# One pose


def estimate_pose(
    query: Query,
    keypoints: np.ndarray,
    points3D: np.ndarray,
    num_matches: int,
    options: LocalizationOptions,
    extent: float = np.inf,
    observers: Observers | None = None,
) -> LocalizedQuery:
    """Estimate a pose, with the intrinsics that the matches support best.

    Args:
        query: its name, camera, and what else its intrinsics may be.
        keypoints: (N, 2) in COLMAP's convention.
        points3D: (N, 3).
        num_matches: to note.
        options: see `LocalizationOptions`.
        extent: of the map's cameras: errors of the pose are measured by it.
        observers: by whom the points of some of the matches were seen, where that is known: points
            that the query would see from the other side do not support its pose.

    Returns:
        Status `LOCALIZED` or `LOW_CONFIDENCE`, or `FAILED` without a pose.
    """
    result = LocalizedQuery(
        query.name,
        Status.FAILED,
        query.camera,
        num_matches=num_matches,
        keypoints=keypoints,
        points=points3D,
        inliers=np.zeros(len(keypoints), dtype=bool),
    )
    if len(keypoints) < 4:
        result.reason = f"{len(keypoints)} matches with 3D points, at least 4 are needed"
        return result
    # Solvers fail and lose digits far from the origin, where maps in UTM coordinates are.
    finite = points3D[np.isfinite(points3D).all(axis=1)]
    origin = np.median(finite, axis=0).astype(np.float64) if len(finite) else np.zeros(3)
    matches = Matches(
        np.asarray(keypoints, dtype=np.float64),
        np.asarray(points3D, dtype=np.float64) - origin,
        options.max_error,
        extent,
    )
    try:
        chosen = _choose_intrinsics(query, matches, options)
    except (ValueError, RuntimeError) as error:
        result.reason = f"its camera cannot be used: {one_line(error)}"
        return result
    if chosen is None:
        result.reason = f"no pose fits its {len(keypoints)} matches with 3D points"
        return result
    found, intrinsics, doubts = chosen
    if options.check_intrinsics:
        doubts = doubts or imprecision(found)
    inliers = _seen_inliers(found, observers, origin)
    if reason := implausibility(found, inliers):
        result.reason = reason
        return result
    result.camera, result.intrinsics, result.reason = found.camera, intrinsics, doubts
    result.cam_from_world = found.cam_from_world * pycolmap.Rigid3d(pycolmap.Rotation3d(), -origin)
    result.inliers, result.covariance = inliers, centre_covariance(found)
    if result.reason:
        logger.warning("%s: low confidence: %s", query.name, result.reason)
    confident = _is_confident(inliers, options) and not result.reason
    result.status = Status.LOCALIZED if confident else Status.LOW_CONFIDENCE
    return result


def _seen_inliers(
    solution: Solution, observers: Observers | None, origin: np.ndarray
) -> np.ndarray:
    """The inliers (N,) bool of a solution that are seen from the side from which the map saw them.

    `origin` of the solution's world is where it lies in the map's.
    """
    inliers = solution.inliers
    indices = np.flatnonzero(inliers)
    if observers is None or not len(indices):
        return inliers
    rows, centres = observers(indices)
    camera_centre = solution.cam_from_world.inverse().translation
    inliers = inliers.copy()
    inliers[indices] = is_seen(
        solution.matches.points[indices], camera_centre, rows, centres - origin
    )
    return inliers


def _is_confident(inliers: np.ndarray, options: LocalizationOptions) -> bool:
    count = int(inliers.sum())
    return count >= options.confident_inliers and count >= options.confident_ratio * len(inliers)


def _choose_intrinsics(
    query: Query, matches: Matches, options: LocalizationOptions
) -> tuple[Solution, str, str] | None:
    """The pose for the intrinsics that the matches support best.

    Returns:
        The solution; whence its intrinsics come, and why; and what speaks against them, or "".
        None where there is no pose.
    """
    estimated = options.estimate_focal_length
    may_change = query.may_change or query.focal_length_is_guess or estimated
    solved: list[tuple[str, Solution]] = []
    for candidate in (Intrinsics(query.camera, query.source), *query.alternatives):
        is_guess = estimated or (query.focal_length_is_guess and candidate.camera is query.camera)
        found = solve(matches, candidate.camera, estimate_focal_length=is_guess)
        if found is not None:
            source = candidate.source + (", focal length estimated" if is_guess else "")
            solved.append((source, found))
    best = best_of(found for _, found in solved)
    is_good = best and _is_confident(best.inliers, options)
    if may_change and options.check_intrinsics and not is_good:
        size = (query.camera.width, query.camera.height)
        solved += [("estimated", guess) for guess in guesses(matches, size)]
        best = best_of(found for _, found in solved)
    if best is None:
        return None
    source = next(source for source, found in solved if found is best)
    others = [f"{name}: {found.summary()}" for name, found in solved if found is not best]
    text = f"{source} ({'; '.join([best.summary(), *others])})" if others else source
    if not options.check_intrinsics:
        return best, text, ""
    level = int("estimated" in source)  # the focal length
    if (better := better_intrinsics(best)) is not None:
        estimate, level = better
        what = FREEDOMS[level - 1]
        is_wrong = estimate.moves_from(best) > WRONG_MOVE
        if not may_change:
            return best, text, _contradiction(best, estimate, what) if is_wrong else ""
        if is_wrong and not query.focal_length_is_guess and not estimated:
            logger.warning(
                "%s: %s: %s; they are estimated",
                query.name,
                source,
                _contradiction(best, estimate, what),
            )
        others = [f"{name}: {found.summary()}" for name, found in solved]
        best = estimate
        text = f"{what} estimated ({'; '.join([best.summary(), *others])})"
    return best, text, doubt(best, level) if may_change else ""


def _contradiction(solution: Solution, better: Solution, what: str) -> str:
    """One line: the matches contradict what of a solution's intrinsics, and what fits better."""
    focal_lengths = [found.camera.mean_focal_length() for found in (better, solution)]
    return (
        f"the matches contradict the {what} of its intrinsics: {better.summary()} with a focal "
        f"length of {focal_lengths[0]:.0f} px, {solution.summary()} with {focal_lengths[1]:.0f} px"
    )


def failed_query(
    query: Query,
    reason: str,
    names: list[str],
    pose_of: Any,
    num_matches: int = 0,
) -> LocalizedQuery:
    """A query without a pose of its own: fallback where a photo of the map can stand in.

    Args:
        query: its name and camera.
        reason: why it has none.
        names: photos of the map, the most similar first.
        pose_of: gives the pose of a photo of the map by name, or is None where there is none.
        num_matches: to note.
    """
    logger.warning("%s: not localized: %s", query.name, reason)
    stands_in = bool(names) and pose_of is not None
    return LocalizedQuery(
        query.name,
        Status.FALLBACK if stands_in else Status.FAILED,
        query.camera,
        pose_of(names[0]) if stands_in else None,
        reason,
        names,
        num_matches,
    )


def add_to_model(
    model: pycolmap.Reconstruction, results: Iterable[LocalizedQuery]
) -> pycolmap.Reconstruction:
    """Return a copy of a model with the localized queries, not those of low confidence.

    Each gets a camera of its own, and its inliers as observations.
    """
    extended = pycolmap.Reconstruction(model)
    for result in results:
        if result.status != Status.LOCALIZED or result.cam_from_world is None:
            continue
        camera_id, image_id = max(extended.cameras) + 1, max(extended.images) + 1
        camera = copy.copy(result.camera)
        camera.camera_id = camera_id
        extended.add_camera_with_trivial_rig(camera)
        keypoints, first = np.unique(result.keypoints, axis=0, return_index=True)
        image = pycolmap.Image(
            name=result.name, keypoints=keypoints, camera_id=camera_id, image_id=image_id
        )
        extended.add_image_with_trivial_frame(image, result.cam_from_world)
        for index, row in enumerate(first.tolist()):
            if result.inliers[row]:
                element = pycolmap.TrackElement(image_id, index)
                extended.add_observation(int(result.point_ids[row]), element)
    return extended


# ---------------------------------------------------------------------------------------------
# Files


def read_queries(pattern: str | Path, *, skip_bad_lines: bool = False) -> list[Query]:
    """Read query lists: lines of ``name MODEL width height params...``.

    A photo that is listed again is left out, with a warning: a submission has one line for each.

    Args:
        pattern: a file, or a pattern of files like ``queries/*_with_intrinsics.txt``.
        skip_bad_lines: say in the log what is wrong with a line, and go on.

    Raises:
        InputError: no such file, or a wrong line, which is named.
    """
    queries: dict[str, Query] = {}
    for path in _matching_files(pattern):
        for number, words in _lines(path):
            try:
                query = _parse_query(words)
            except (ValueError, IndexError, RuntimeError) as error:
                message = (
                    f"{path}, line {number}: expected 'name MODEL width height params...', found "
                    f"{' '.join(words)!r} ({one_line(error)})"
                )
                if not skip_bad_lines:
                    raise InputError(message) from error
                logger.warning("%s: this photo is left out", message)
                continue
            if query.name in queries:
                logger.warning("%s, line %d: %s is listed before", path, number, query.name)
            queries.setdefault(query.name, query)
    return list(queries.values())


def read_image_names(pattern: str | Path) -> list[str]:
    """Read the first word of each line of a list, or of all lists that a pattern matches."""
    return [
        check_name(words[0], f"{path}, line {number}")
        for path in _matching_files(pattern)
        for number, words in _lines(path)
    ]


def _matching_files(pattern: str | Path) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    files = [Path(match) for match in sorted(glob.glob(str(pattern)))]
    if not files:
        raise InputError(f"{pattern}: no such list of photos")
    return files


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is neither blank nor a comment."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.split()


def _parse_query(words: Sequence[str]) -> Query:
    known = set(pycolmap.CameraModelId.__members__) - {"INVALID"}
    # A name may contain spaces: it ends where the camera model begins.
    at = next((index for index, word in enumerate(words) if index and word in known), 1)
    name, model = " ".join(words[:at]), words[at]
    if fault := name_fault(name):
        raise ValueError(fault)
    if model not in known:
        raise ValueError(f"unknown camera model {model}")
    width, height = int(words[at + 1]), int(words[at + 2])
    params = [float(word) for word in words[at + 3 :]]
    if not 0 < min(width, height) <= max(width, height) < 2**31:
        raise ValueError("sizes must be positive")
    camera = pycolmap.Camera.create_from_model_name(1, model, 1.0, width, height)
    if len(params) != len(camera.params):
        raise ValueError(f"{model} takes {camera.params_info}")
    focal_lengths = [params[index] for index in camera.focal_length_idxs()]
    if min(focal_lengths) <= 0 or not np.isfinite(params).all():
        raise ValueError("the focal length must be positive")
    camera.params = params
    if impossible := impossibility(camera):
        raise ValueError(impossible)
    return Query(name, camera)


def write_queries(path: Path, queries: Iterable[Query]) -> None:
    """Write a query list with intrinsics."""
    lines = (
        " ".join(
            [
                query.name,
                query.camera.model.name,
                str(query.camera.width),
                str(query.camera.height),
                *(repr(float(value)) for value in query.camera.params),
            ]
        )
        for query in queries
    )
    write_text(path, "\n".join(lines) + "\n")


def write_results(
    path: Path,
    results: Sequence[LocalizedQuery],
    *,
    prepend_camera_name: bool = False,
    keep_folders: bool = False,
) -> Path:
    """Write a submission file, and beside it a log with the status of each query.

    The submission has a line ``name qw qx qy qz tx ty tz`` (world to camera) for each query with a
    pose, fallback poses included; the log, ``<stem>_log.jsonl``, has all queries and says which
    pose is which.

    Args:
        path: of the submission.
        results: of all queries.
        prepend_camera_name: write ``folder/name`` instead of ``name``, as some benchmarks ask.
        keep_folders: write whole names, which no benchmark takes.

    Returns:
        The path of the log.
    """
    lines = []
    names: Counter[str] = Counter()
    for result in results:
        if result.cam_from_world is None:
            continue
        parts = result.name.split("/")
        name = "/".join(parts[-2:]) if prepend_camera_name else parts[-1]
        name = result.name if keep_folders else name
        names[name] += 1
        numbers = [*_quaternion(result.cam_from_world), *result.cam_from_world.translation]
        lines.append(" ".join([name, *(repr(float(number)) for number in numbers)]))
    for name, count in names.items():
        if count > 1:
            logger.warning("%s: %d photos are called %s there", path, count, name)
    write_text(path, "\n".join(lines) + "\n" if lines else "")
    log_path = path.with_name(path.stem + "_log.jsonl")
    write_text(log_path, "".join(json.dumps(result.to_json()) + "\n" for result in results))
    return log_path


def read_poses(path: Path) -> dict[str, pycolmap.Rigid3d]:
    """Read a submission file: name -> cam_from_world.

    Raises:
        InputError: no such file, or a wrong line, which is named.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    poses = {}
    for number, words in _lines(path):
        try:
            values = np.array([float(word) for word in words[-7:]])
        except ValueError:
            values = np.zeros(0)
        if len(words) < 8 or not np.isfinite(values).all() or not values[:4].any():
            raise InputError(f"{path}, line {number}: expected 'name qw qx qy qz tx ty tz'")
        rotation = pycolmap.Rotation3d(np.roll(values[:4], -1))
        rotation.normalize()  # the file's digits are rounded
        name = check_name(" ".join(words[:-7]), f"{path}, line {number}")
        poses[name] = pycolmap.Rigid3d(rotation, values[4:])
    return poses


# Of the benchmarks: metres and degrees.
RECALL_THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0))


def pose_errors(
    poses: Mapping[str, pycolmap.Rigid3d], truth: Mapping[str, pycolmap.Rigid3d]
) -> dict[str, tuple[float, float]]:
    """Distance of the centres (units of the map) and angle (degrees) for each true pose.

    Both are infinite where there is no pose. Of a name that is not there as a whole the folders do
    not count, which submission files do not have.
    """
    found = {name.rpartition("/")[2]: pose for name, pose in poses.items()}
    errors = {}
    for name, true in truth.items():
        pose = poses.get(name, found.get(name.rpartition("/")[2]))
        errors[name] = (np.inf, np.inf)
        if pose is not None:
            offset = pose.inverse().translation - true.inverse().translation
            turn = (pose.rotation * true.rotation.inverse()).angle()
            errors[name] = (float(np.linalg.norm(offset)), float(np.rad2deg(turn)))
    return errors


def recall_table(
    poses: Mapping[str, pycolmap.Rigid3d], truth: Mapping[str, pycolmap.Rigid3d]
) -> str:
    """Recall at `RECALL_THRESHOLDS`, by condition: what stands before the last ``_`` of a name."""
    by_condition: dict[str, list[tuple[float, float]]] = {}
    for name, error in pose_errors(poses, truth).items():
        condition = name.rpartition("/")[2].rpartition("_")[0] or "queries"
        by_condition.setdefault(condition, []).append(error)
    thresholds = " / ".join(f"({m:g} m, {d:g} deg)" for m, d in RECALL_THRESHOLDS)
    lines = [f"recall at {thresholds}"]
    for condition, errors in sorted(by_condition.items()):
        metres, degrees = np.array(errors).T
        recalls = [100 * ((metres <= m) & (degrees <= d)).mean() for m, d in RECALL_THRESHOLDS]
        numbers = " / ".join(f"{recall:.1f}" for recall in recalls)
        median = f"median {np.median(metres):.3f} m, {np.median(degrees):.3f} deg"
        lines.append(f"{condition}: {numbers} % of {len(errors)} queries; {median}")
    return "\n".join(lines)


def _quaternion(pose: pycolmap.Rigid3d) -> list[float]:
    """qw qx qy qz."""
    x, y, z, w = pose.rotation.quat.tolist()
    return [w, x, y, z]


def count_by_status(results: Iterable[LocalizedQuery]) -> dict[str, int]:
    """Number of queries of each status, those without any included."""
    counts = Counter(result.status for result in results)
    return {status.value: counts[status] for status in Status}


MAX_LISTED = 3  # queries of one source of intrinsics that are named


def intrinsics_by_source(results: Iterable[LocalizedQuery]) -> list[str]:
    """Whence the intrinsics of queries come, a line for each source; why, of a single query.

    Those of queries without a choice, as benchmarks give them, are not listed.
    """
    groups: dict[str, list[LocalizedQuery]] = {}
    for result in results:
        source = result.intrinsics.partition(" (")[0]
        if source and source != Query.source:
            groups.setdefault(source, []).append(result)
    lines = []
    for source, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(result.name for result in group[:MAX_LISTED])
        names += ", ..." if len(group) > MAX_LISTED else ""
        text = source if len(group) > 1 else group[0].intrinsics
        lines.append(f"{len(group)} of {text}: {names}")
    return lines
