"""One model instead of several.

COLMAP ends with several models where no single photo of the one sees enough points of the other.
All verified matches between them together may still tell how they lie to each other: points that
match are one point. A robust similarity of these brings the models together, photos that both have
become one, and all is adjusted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.errors import listed
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.mapping.adjustment import (
    adjust_robustly,
    median_error,
    point_positions,
    robust_adjustment,
)
from sfm_matchers.mapping.camera_models import complete_tracks
from sfm_matchers.mapping.database import read_verified_matches
from sfm_matchers.mapping.diagnosis import MatchGraph, count
from sfm_matchers.mapping.models import largest_first, points_of_keypoints

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Of the median distance from a camera to its points: two points that are one are not farther apart.
MAX_DISTANCE = 0.02
MIN_POINTS, MIN_SHARE = 30, 0.5  # that agree, of all that match
FLAT = 0.02  # of the largest extent of the points that agree: along a line they tell no rotation
MAX_ERROR = 8.0  # pixels, median, of points of one model in the photos of the other
MAX_GROWTH = 1.5  # of the median reprojection error, or the models contradict each other


@dataclass(frozen=True)
class Link:
    """What two models have in common.

    Attributes:
        num_photos: in both.
        num_matching: pairs of points that match.
        num_agreeing: of these, under the similarity.
        first_from_second: the similarity; None if there is none that can be trusted.
        reason: why there is none; "" if there is one.
    """

    num_photos: int
    num_matching: int
    num_agreeing: int = 0
    first_from_second: pycolmap.Sim3d | None = None
    reason: str = ""


def merge_models(
    models: Sequence[pycolmap.Reconstruction],
    database_path: Path,
    fixed_cameras: Collection[int] = (),
    *,
    num_threads: int = 1,
) -> tuple[list[pycolmap.Reconstruction], list[str]]:
    """Join models as far as they can be.

    Args:
        models: mapped from the database, with its keypoints; they are left as they are.
        database_path: with the verified matches.
        fixed_cameras: ids of cameras whose intrinsics are kept.
        num_threads: of the adjustment.

    Returns:
        The models, the largest first, those that could not be joined as they were; and a line about
        each two that were joined.
    """
    models, lines = largest_first(models), list[str]()
    matches = read_verified_matches(database_path)
    refused: set[tuple[int, int]] = set()
    while True:
        ordered = itertools.combinations(models, 2)
        pair = next(((a, b) for a, b in ordered if (id(a), id(b)) not in refused), None)
        if pair is None:
            return models, lines
        first, second = pair
        joined, link = None, find_link(first, second, matches)
        if link.first_from_second is not None:
            similarity = link.first_from_second
            joined = _joined(first, second, similarity, database_path, fixed_cameras, num_threads)
        if joined is None:
            refused.add((id(first), id(second)))
            continue
        lines.append(
            f"models of {first.num_reg_images()} and {second.num_reg_images()} photos joined: "
            f"{link.num_agreeing} of {count(link.num_matching, 'matching point')} agree, "
            f"{count(link.num_photos, 'photo')} in both"
        )
        logger.info("%s", lines[-1])
        kept = [model for model in models if model is not first and model is not second]
        models = largest_first([joined, *kept])


def find_link(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    matches: dict[tuple[int, int], IntArray],
) -> Link:
    """Find the similarity between two models of one database."""
    both = set(first.reg_image_ids()).intersection(second.reg_image_ids())
    pairs = _matching_points(first, second, matches)
    if len(pairs) < MIN_POINTS:
        return Link(len(both), len(pairs), reason=f"only {count(len(pairs), 'point')} in common")
    targets = point_positions(first, pairs[:, 0].tolist())
    sources = point_positions(second, pairs[:, 1].tolist())
    options = pycolmap.RANSACOptions(max_error=MAX_DISTANCE * _depth(first), random_seed=0)
    options.max_num_trials = 10_000
    found = pycolmap.estimate_sim3d_robust(sources, targets, options)
    if found is None:
        return Link(len(both), len(pairs), reason="the points in common do not agree")
    similarity: pycolmap.Sim3d = found["tgt_from_src"]  # type: ignore[index]
    for _ in range(2):  # of all that agree
        moved = sources @ (similarity.scale * similarity.rotation.matrix()).T
        distances = np.linalg.norm(moved + similarity.translation - targets, axis=1)
        agree = distances < options.max_error
        similarity = pycolmap.estimate_sim3d(sources[agree], targets[agree]) or similarity
    reason = _why_not_trusted(targets, agree)
    link = Link(len(both), len(pairs), int(agree.sum()), None if reason else similarity, reason)
    if not reason:
        error = _error_across(first, second, similarity, pairs[agree])
        if error > MAX_ERROR:
            reason = f"points of one are {error:.0f} px off in photos of the other"
            return Link(len(both), len(pairs), link.num_agreeing, None, reason)
    return link


def _why_not_trusted(points: FloatArray, agree: NDArray[np.bool_]) -> str:
    """Why the points (N, 3) that agree do not determine a similarity; "" if they do."""
    num = int(agree.sum())
    if num < MIN_POINTS or num < MIN_SHARE * len(agree):
        return f"of {len(agree)} points in common only {num} agree"
    extents = np.linalg.svd(points[agree] - points[agree].mean(axis=0), compute_uv=False)
    return "the points in common lie on a line" if extents[1] < FLAT * extents[0] else ""


def _matching_points(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    matches: dict[tuple[int, int], IntArray],
) -> IntArray:
    """Pairs of point ids (N, 2) that match, each once.

    They match by a keypoint of a photo that both models have, or by a verified match.
    """
    owners = [points_of_keypoints(first), points_of_keypoints(second)]
    found: list[IntArray] = [np.zeros((0, 2), np.int64)]
    for image_id in sorted(owners[0].keys() & owners[1].keys()):
        found.append(np.column_stack([each[image_id] for each in owners]))
    for pair, indices in matches.items():
        for a, b, columns in ((*pair, indices), (*pair[::-1], indices[:, ::-1])):
            if a in owners[0] and b in owners[1]:
                points = owners[0][a][columns[:, 0]], owners[1][b][columns[:, 1]]
                found.append(np.column_stack(points))
    pairs = np.concatenate(found)
    return np.unique(pairs[(pairs >= 0).all(axis=1)], axis=0)


def _depth(model: pycolmap.Reconstruction) -> float:
    """Median distance from a camera to a point that it sees."""
    centers = {i: model.images[i].projection_center() for i in model.reg_image_ids()}
    depths = [
        float(np.linalg.norm(point.xyz - centers[element.image_id]))
        for point in model.points3D.values()
        for element in point.track.elements[:1]
    ]
    return float(np.median(depths))


def _error_across(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    similarity: pycolmap.Sim3d,
    pairs: IntArray,
) -> float:
    """Median error in pixels of the points of one model in the photos of the other; the larger."""
    medians = []
    for model, other, column, moves in (
        (first, second, 0, similarity),
        (second, first, 1, similarity.inverse()),
    ):
        errors = []
        for point_id, other_id in zip(pairs[:, column], pairs[:, 1 - column], strict=True):
            xyz = moves * other.points3D[int(other_id)].xyz
            for element in model.points3D[int(point_id)].track.elements:
                image = model.images[element.image_id]
                projected = image.project_point(xyz)
                xy = image.points2D[element.point2D_idx].xy
                error = np.inf if projected is None else float(np.linalg.norm(projected - xy))
                errors.append(error)
        medians.append(float(np.median(errors)))
    return max(medians)


def _joined(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    first_from_second: pycolmap.Sim3d,
    database_path: Path,
    fixed_cameras: Collection[int],
    num_threads: int,
) -> pycolmap.Reconstruction | None:
    """Join two models and adjust; None if they contradict each other then."""
    moved = pycolmap.Reconstruction(second)
    moved.transform(first_from_second)
    names = {model.images[i].name for model in (first, second) for i in model.reg_image_ids()}
    with quiet_colmap(), pycolmap.Database.open(database_path) as database:
        cache_options = pycolmap.DatabaseCacheOptions(image_names=names)
        cache = pycolmap.DatabaseCache.create(database, cache_options)
    with quiet_colmap():
        model = _union(first, moved, cache)
        graph = cache.correspondence_graph
        manager = pycolmap.ObservationManager(model, graph)
        triangulator = pycolmap.IncrementalTriangulator(graph, model, manager)
        # Looser first: what the models disagree in is adjusted away.
        options = pycolmap.IncrementalTriangulatorOptions(
            random_seed=0,
            merge_max_reproj_error=2 * MAX_ERROR,
            complete_max_reproj_error=2 * MAX_ERROR,
        )
        triangulator.merge_all_tracks(options)
        triangulator.complete_all_tracks(options)
        adjust_robustly(model, robust_adjustment(num_threads), fixed_cameras)
        complete_tracks(model, database_path)
        adjust_robustly(model, robust_adjustment(num_threads), fixed_cameras)
    wanted = set(first.reg_image_ids()).union(second.reg_image_ids())
    before = max(median_error(first), median_error(second))
    if set(model.reg_image_ids()) != wanted or median_error(model) > MAX_GROWTH * before:
        logger.info("two models match, but contradict each other once they are joined")
        return None
    model.update_point_3d_errors()
    return model


def _union(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    cache: pycolmap.DatabaseCache,
) -> pycolmap.Reconstruction:
    """Put two models of one frame into one; the first one's cameras and poses count in both."""
    model = pycolmap.Reconstruction()
    model.load(cache)
    for source in (second, first):
        for image_id in source.reg_image_ids():
            image = source.images[image_id]
            mine = model.cameras[image.camera_id]
            mine.model = source.cameras[image.camera_id].model
            mine.params = source.cameras[image.camera_id].params.tolist()
            frame_id = model.images[image_id].frame_id
            model.frame(frame_id).rig_from_world = image.cam_from_world()
            if frame_id not in model.reg_frame_ids():
                model.register_frame(frame_id)
    taken: set[tuple[int, int]] = set()
    for source in (first, second):
        for point_id in sorted(source.point3D_ids()):
            point = source.points3D[point_id]
            elements = [(each.image_id, each.point2D_idx) for each in point.track.elements]
            free = [each for each in elements if each not in taken]
            if len(free) < 2:
                continue
            taken.update(free)
            track = pycolmap.Track([pycolmap.TrackElement(*each) for each in free])
            model.add_point3D(point.xyz, track, point.color.copy())
    model.tear_down()
    return model


def what_is_missing(models: Sequence[pycolmap.Reconstruction], graph: MatchGraph) -> list[str]:
    """Say what would join each further model with the first one, a line for each."""
    names = [{model.images[i].name for i in model.reg_image_ids()} for model in models]
    return [_what_joins(names[0], other, graph) for other in names[1:]]


def _what_joins(first: set[str], other: set[str], graph: MatchGraph) -> str:
    sides = np.array([(name in first, name in other) for name in graph.names]).reshape(-1, 2)
    one, two = sides[graph.edges[:, 0]], sides[graph.edges[:, 1]]
    crossing = (one[:, 0] & two[:, 1]) | (one[:, 1] & two[:, 0])
    crossing &= ~(one & two).any(axis=1)  # of two photos of one model
    verified, raw = (np.where(crossing, each, 0) for each in (graph.verified, graph.matches))
    who = (
        f"the models of {len(first)} photos ({listed(sorted(first))}) and of {len(other)} "
        f"({listed(sorted(other))})"
    )
    if not raw.any() and not verified.any():
        were_all_tried = crossing.sum() == len(first - other) * len(other - first)
        more = "" if were_all_tried else "more pairs (--pairs exhaustive), or "
        return f"no pair between {who} has matches: {more}photos taken between them would join them"
    best = int((verified if verified.any() else raw).argmax())
    pair = " and ".join(graph.names[row] for row in graph.edges[best])
    what = (
        f"the verified pairs between {who}, the best with "
        f"{count(int(verified[best]), 'match', 'matches')}, are too few or do not agree"
        if verified.any()
        else f"no pair between {who} is verified"
    )
    return f"{what}: a photo taken between {pair} would join them"
