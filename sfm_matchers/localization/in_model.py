"""Poses of queries by matches with the photos of a COLMAP model."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.hdf5 import Hdf5File, open_h5
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.localization.certainty import rivalry
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.local_features import StoredFeatures
from sfm_matchers.localization.look_alikes import LookAlikes, SimilarTo
from sfm_matchers.localization.map_folder import VladIndex, make_index
from sfm_matchers.localization.plausibility import (
    Observers,
    implausibility,
    imprecision,
    is_seen,
    unverified,
)
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    Status,
    failed_query,
    log_outcome,
)
from sfm_matchers.localization.resectioning import (
    FREEDOMS,
    MIDDLE_DEVIATION,
    WRONG_MOVE,
    Matches,
    Solution,
    best_of,
    better_intrinsics,
    centre_covariance,
    doubt,
    guesses,
    solve,
    suspicion,
)
from sfm_matchers.machine.progress import progress
from sfm_matchers.photos.intrinsics import Intrinsics

logger = logging.getLogger(__name__)

# Relative difference of focal lengths below which it is something else that is wrong.
UNCHANGED_FOCAL_LENGTH = 0.005
CHECK_GIVEN = "; check those that are given, or leave them away"


def localize_queries(
    model: pycolmap.Reconstruction,
    queries: Sequence[Query],
    pairs: Iterable[Pair],
    feature_path: Path,
    match_path: Path,
    options: LocalizationOptions | None = None,
    *,
    local_features: Path | None = None,
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
        local_features: of photos of the map, for matchers that have none: by them places of the
            map that look alike are found. Those of `photos_to_describe` do.
    """
    options = options or LocalizationOptions()
    retrieved = group_by_query(pairs)
    lookup = IndexedModel(model)
    local_path = local_features or feature_path
    with (
        open_h5(feature_path) as features,
        open_h5(match_path) as matches,
        open_h5(local_path) as local_file,
    ):
        stored = StoredFeatures(local_file, lookup, beside=local_features is not None)
        similar_to = _similarity(local_path, lookup)
        look_alikes = LookAlikes(lookup, stored.of_map, similar_to, options.max_error)
        for query in progress(queries, title="Localizing", unit="photo"):
            names = retrieved.get(query.name, [])
            known = [name for name in names if name in lookup.image_ids]
            if len(known) < len(names):
                logger.warning(
                    "%s: %d of %d retrieved photos are not in the map",
                    query.name,
                    len(names) - len(known),
                    len(names),
                )
            read = functools.partial(_read_matches, matches, query.name)
            try:
                size = (query.camera.width, query.camera.height)
                keypoints = features.keypoints(query.name, size) if known else np.zeros((0, 2))
                result = localize_query(query, known, lookup, keypoints, read, options)
                look_alikes.check(result, stored.of_query(query.name))
            except InputError as error:
                result = failed_query(query, str(error), known, lookup.pose)
            log_outcome(result)
            yield result


def _similarity(feature_path: Path, lookup: IndexedModel) -> SimilarTo:
    """Rank the photos of a map that have local features by these, once that is asked for."""

    @functools.cache
    def index() -> VladIndex | None:
        try:
            with open_h5(feature_path) as file:
                names = sorted(lookup.image_ids.keys() & set(file.names()))
            return make_index(names, feature_path)
        except InputError as error:
            logger.warning("places of the map that look alike are not looked for: %s", error)
            return None

    def similar_to(name: str) -> list[str]:
        known = index()
        return known.similar_to(name) if known and name in known.names else []

    return similar_to


def group_by_query(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Return the photos listed for each query, in the order of the list."""
    retrieved: dict[str, list[str]] = {}
    for query, name in pairs:
        retrieved.setdefault(query, []).append(name)
    return retrieved


MatchesWith = Callable[[str, tuple[int, int]], np.ndarray]
"""A photo of the map, and how many keypoints the query and it have -> matches (M, 2) int64, column
0 for the query; an InputError where they cannot be had."""


def _read_matches(file: Hdf5File, query: str, name: str, counts: tuple[int, int]) -> np.ndarray:
    return file.matches(query, name, counts)[0]


def localize_query(
    query: Query,
    names: list[str],
    lookup: IndexedModel,
    keypoints: np.ndarray,
    matches_with: MatchesWith,
    options: LocalizationOptions,
) -> LocalizedQuery:
    """Localize one query.

    Args:
        query: with intrinsics.
        names: photos of the map that it is matched with, best first.
        lookup: the map.
        keypoints: (N, 2) of the query; (0, 0) is the centre of the top-left pixel.
        matches_with: gives its matches with one of them.
        options: how poses are estimated.
    """
    if not names:
        return failed_query(query, "no photo of the map was retrieved for it", names, lookup.pose)
    clusters = [names]
    if options.covisibility_clustering:
        clusters = covisibility_clusters({name: lookup.point_ids(name) for name in names})
    best: LocalizedQuery | None = None
    faults: list[str] = []
    for cluster in clusters:
        tables = []
        for name in cluster:
            ids = lookup.point_ids(name)
            try:
                counts = (len(keypoints), len(ids))
                tables.append((matches_with(name, counts), ids))
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
    result = LocalizedQuery(query.name, Status.FAILED, query.camera, num_matches=num_matches)
    result.keypoints, result.points = keypoints, points3D
    result.inliers = np.zeros(len(keypoints), dtype=bool)
    if len(keypoints) < 4:
        result.reason = f"{len(keypoints)} matches with 3D points, at least 4 are needed"
        return result
    # Solvers fail and lose digits far from the origin, where maps in UTM coordinates are.
    origin = _middle(points3D)
    points = np.asarray(points3D, dtype=np.float64) - origin
    pixels = np.asarray(keypoints, dtype=np.float64)
    matches = Matches(pixels, points, options.max_error, extent)
    try:
        chosen = _choose_intrinsics(query, matches, options)
    except (ValueError, RuntimeError) as error:
        result.reason = f"its camera cannot be used: {one_line(error)}"
        return result
    if chosen is None:
        result.reason = f"no pose fits its {len(keypoints)} matches with 3D points"
        return result
    found, doubts = chosen.solution, chosen.doubt
    if options.check_intrinsics:
        doubts = doubts or imprecision(found)
    inliers = _seen_inliers(found, observers, origin)
    if reason := implausibility(found, inliers):
        result.reason = reason
        return result
    result.camera, result.intrinsics, result.reason = found.camera, chosen.source, doubts
    result.contradiction = chosen.contradiction
    result.cam_from_world = found.cam_from_world * pycolmap.Rigid3d(pycolmap.Rotation3d(), -origin)
    result.inliers, result.covariance = inliers, centre_covariance(found)
    _judge(result, found, options)
    return result


def _judge(result: LocalizedQuery, found: Solution, options: LocalizationOptions) -> None:
    """Set the status of a query with a pose; its `reason` says what speaks against intrinsics."""
    confident = options.is_confident(result.inliers) and not result.reason
    rival = rivalry(found) if options.check_intrinsics and not result.reason else None
    if rival is not None:
        result.reason = (
            f"{found.num_inliers} matches fit its pose, and {rival.sum()} others one that is "
            "elsewhere: the map has places that look alike, or the photo is put together of several"
        )
        result.rival = rival if confident else None
    localized = confident and rival is None
    if not localized and not result.reason:
        result.reason = options.weakness(result.inliers)
    result.status = Status.LOCALIZED if localized else Status.LOW_CONFIDENCE


def _middle(points: np.ndarray) -> np.ndarray:
    """The median (3,) of the finite ones of (N, 3) points."""
    finite = points[np.isfinite(points).all(axis=1)]
    return np.median(finite, axis=0).astype(np.float64) if len(finite) else np.zeros(3)


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


@dataclass(frozen=True)
class _Choice:
    """A pose and its intrinsics.

    Attributes:
        solution: both.
        source: whence the intrinsics come, and why.
        doubt: what speaks against them, or "".
        contradiction: which others the matches contradict, in one line, or "".
    """

    solution: Solution
    source: str
    doubt: str = ""
    contradiction: str = ""


def _choose_intrinsics(
    query: Query, matches: Matches, options: LocalizationOptions
) -> _Choice | None:
    """The pose for the intrinsics that the matches support best; None where there is no pose."""
    estimated = options.estimate_focal_length
    may_change = query.may_change or query.focal_length_is_guess or estimated
    solved = _solved(query, matches, options, may_change=may_change)
    best = best_of(found for _, found in solved)
    if best is None:
        return None
    source = next(source for source, found in solved if found is best)
    others = [f"{name}: {found.summary()}" for name, found in solved if found is not best]
    text = f"{source} ({'; '.join([best.summary(), *others])})" if others else source
    if not options.check_intrinsics:
        return _Choice(best, text)
    advice = "" if may_change else CHECK_GIVEN
    level = int("estimated" in source)  # the focal length
    is_known = estimated and not query.focal_length_is_guess and source != "estimated"
    deviation, contradiction = 0.0 if is_known else MIDDLE_DEVIATION, ""
    if (better := better_intrinsics(best)) is not None:
        estimate, level = better
        what = FREEDOMS[level - 1]
        is_wrong = estimate.moves_from(best) > WRONG_MOVE
        if not may_change:
            doubts = _contradiction(best, estimate, what) + advice if is_wrong else ""
            return _Choice(best, text, doubts)
        if is_wrong and not query.focal_length_is_guess and not estimated:
            contradiction = f"{source}: {_contradiction(best, estimate, what)}"
        others = [f"{name}: {found.summary()}" for name, found in solved]
        best, deviation = estimate, MIDDLE_DEVIATION
        text = f"{what} estimated ({'; '.join([best.summary(), *others])})"
    if may_change and (doubts := doubt(best, level, deviation) or unverified(best)):
        return _Choice(best, text, doubts, contradiction)
    is_assumed = not may_change or (query.is_expected and not level)
    focused = suspicion(best) if is_assumed else None
    doubts = _contradiction(best, focused, FREEDOMS[0]) + advice if focused else ""
    return _Choice(best, text, doubts, contradiction)


def _solved(
    query: Query, matches: Matches, options: LocalizationOptions, *, may_change: bool
) -> list[tuple[str, Solution]]:
    """Poses for all intrinsics that a query may have, each with where these are from."""
    estimated = options.estimate_focal_length
    solved: list[tuple[str, Solution]] = []
    for candidate in (Intrinsics(query.camera, query.source), *query.alternatives):
        is_guess = estimated or (query.focal_length_is_guess and candidate.camera is query.camera)
        found = solve(matches, candidate.camera, estimate_focal_length=is_guess)
        if found is not None:
            source = candidate.source + (", focal length estimated" if is_guess else "")
            solved.append((source, found))
    best = best_of(found for _, found in solved)
    is_good = best and options.is_confident(best.inliers)
    if may_change and options.check_intrinsics and not is_good:
        size = (query.camera.width, query.camera.height)
        solved += [("estimated", guess) for guess in guesses(matches, size)]
    return solved


def _contradiction(solution: Solution, better: Solution, what: str) -> str:
    """One line: the matches contradict what of a solution's intrinsics, and what fits better."""
    found, given = (one.camera.mean_focal_length() for one in (better, solution))
    values = f"a focal length of {found:.0f} px", f"{given:.0f} px"
    if abs(found - given) <= UNCHANGED_FOCAL_LENGTH * given:  # which is not what is wrong
        what, values = "lens distortion or principal point", ("others", "these")
    return (
        f"the matches contradict the {what} of its intrinsics: {better.summary()} with "
        f"{values[0]}, {solution.summary()} with {values[1]}"
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
