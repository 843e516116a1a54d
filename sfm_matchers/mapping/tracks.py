"""Tracks as long as the photos allow: find the points of a model in more of its photos.

Matching finds a point in some of the photos that show it. Where the model says that another photo
should show it, it is looked for there; what is found is added to its track, points that turn out to
be one are joined, and the model is adjusted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError, listed
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.machine.memory import available_memory
from sfm_matchers.machine.progress import progress
from sfm_matchers.mapping.adjustment import adjust_robustly
from sfm_matchers.mapping.models import points_of_image
from sfm_matchers.mapping.patch_location import BORDER, Photos, Sightings, locate, sample_spacing
from sfm_matchers.mapping.sparse_scene import FloatArray, IntArray, SparseScene, nearest
from sfm_matchers.photos.masks import inside_mask, usable_pixels

logger = logging.getLogger(__name__)

# In pixels of photos up to `patch_location.SHARP_SIDE`, more in larger ones.
MAX_SHIFT = 2.0  # of what is found from the projection of the point
SAME_KEYPOINT = 1.0  # distance up to which a keypoint that is there is taken

MIN_CORRELATION = 0.9  # of the patches
MAX_DEVIATION = 0.15  # as `Sightings.deviation`; less exact ones draw cameras off
MAX_JOINED_ERROR = 2.0  # pixels, of any observation of two points that are joined
BUDGET = 1 << 30  # bytes for decoded photos, at most a quarter of what is free


@dataclass
class LongerTracks:
    """What was done to a model.

    Attributes:
        track_lengths: mean before and after.
        added: observations.
        joined: pairs of points that became one.
        seconds: it took.
    """

    track_lengths: tuple[float, float]
    added: int = 0
    joined: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        before, after = self.track_lengths
        return (
            f"mean track length {before:.2f} -> {after:.2f}: {self.added} observations added, "
            f"{self.joined} points joined with others"
        )


def lengthen_tracks(
    model: pycolmap.Reconstruction,
    image_dir: Path,
    *,
    mask_dir: Path | None = None,
    rounds: int = 1,
    adjustment: pycolmap.BundleAdjustmentOptions | None = None,
    fixed_cameras: Collection[int] = (),
) -> tuple[pycolmap.Reconstruction, LongerTracks]:
    """Find the points of a model in more of its photos, and adjust it.

    Args:
        model: of any origin; it stays as it is.
        image_dir: its photos. Those that are missing are left out.
        mask_dir: see `images.mask_path`; nothing is added on black pixels.
        rounds: how often; a second one finds a tenth more, and makes cameras no better.
        adjustment: what is refined, see `mapping.adjust_robustly`; all by default.
        fixed_cameras: ids of cameras whose intrinsics are kept.

    Returns:
        The new model, with new keypoints behind those that each image had, and what was done.

    Raises:
        InputError: no photo is there, or one cannot be read or is not that of the model; or what
            the model says contradicts itself, so that no point is left.
    """
    start = time.monotonic()
    before = model.compute_mean_track_length()
    given, model = model, pycolmap.Reconstruction(model)
    done = LongerTracks((before, before))
    missing = _missing(model, image_dir)
    budget = min(BUDGET, (available_memory() or 4 * BUDGET) // 4)
    photos = Photos(image_dir, budget)
    for _ in range(rounds):
        if not model.num_points3D():
            break
        _check_tracks(model)
        scene = SparseScene.of(model)
        found = _search(scene, photos, missing, mask_dir)
        added, doubles = _add(model, scene, found)
        done.added += added
        done.joined += join_points(model, doubles)
        _drop_unseen_points(model)
        with quiet_colmap():
            adjust_robustly(model, adjustment or default_adjustment(), fixed_cameras)
    _check_what_is_left(given, model)
    model.update_point_3d_errors()
    done.track_lengths = before, model.compute_mean_track_length()
    done.seconds = time.monotonic() - start
    logger.info("%s", done)
    return model, done


def default_adjustment() -> pycolmap.BundleAdjustmentOptions:
    """Return the options of COLMAP's last adjustment of all photos."""
    return pycolmap.IncrementalPipelineOptions().get_global_bundle_adjustment()


def _check_tracks(model: pycolmap.Reconstruction) -> None:
    """Raise InputError unless images and points tell the same of who sees whom.

    COLMAP notes it with both, and keeps what the files say of each.
    """
    of_points = sum(point.track.length() for point in model.points3D.values())
    of_images = sum(image.num_points3D for image in model.images.values())
    if of_points != of_images:
        raise InputError(
            f"the model's points are seen by {of_points} keypoints, of its images {of_images} see "
            "points: its tables are damaged, or of several models"
        )


def _drop_unseen_points(model: pycolmap.Reconstruction) -> None:
    """Delete the points that fewer than two photos see: nothing says where they are.

    Raises:
        InputError: no other one is there.
    """
    unseen = [key for key, point in model.points3D.items() if point.track.length() < 2]
    if len(unseen) == model.num_points3D():
        raise InputError("no point of the model is seen by two photos: triangulate them first")
    for point_id in unseen:
        model.delete_point3D(point_id)


def _check_what_is_left(given: pycolmap.Reconstruction, left: pycolmap.Reconstruction) -> None:
    """Name the photos that an adjusted model has lost.

    Raises:
        InputError: it has no point any more.
    """
    if given.num_points3D() and not left.num_points3D():
        raise InputError(
            f"none of {given.num_points3D()} points is where the model's cameras and poses see it: "
            "its tables are damaged, or of several models"
        )
    kept = {left.images[image_id].name for image_id in left.reg_image_ids()}
    names = (given.images[image_id].name for image_id in given.reg_image_ids())
    if lost := sorted(name for name in names if name not in kept):
        logger.warning(
            "no longer in the model, as its points are not where they see them: %s", listed(lost)
        )


def _missing(model: pycolmap.Reconstruction, image_dir: Path) -> set[str]:
    """Return the names of registered photos that are not there.

    Raises:
        InputError: that is all of them.
    """
    names = {model.images[image_id].name for image_id in model.reg_image_ids()}
    missing = {name for name in names if not (image_dir / name).is_file()}
    if missing == names:
        raise InputError(
            f"none of the model's photos, such as {min(names, default='')}, is in "
            f"{image_dir}: give the folder that their names are relative to"
        )
    if missing:
        logger.warning(
            "left out: %d photos that are not in %s, such as %s",
            len(missing),
            image_dir,
            min(missing),
        )
    return missing


def _search(
    scene: SparseScene, photos: Photos, missing: set[str], mask_dir: Path | None
) -> list[tuple[IntArray, FloatArray]]:
    """Return, for each view, the points found in it and where, as `accepted`."""
    found = []
    # Neighbours by name often see the same, so that photos decoded for one serve the next.
    for index, view in enumerate(progress(scene.views, title="Longer tracks", unit="photo")):
        points, pixels = np.zeros(0, np.int64), np.zeros((0, 2))
        if view.name not in missing:
            candidates = scene.unseen_candidates(index, BORDER * sample_spacing(view.size))
            sightings = locate(scene, index, candidates, photos, missing)
            points, pixels = accepted(scene, index, sightings)
            usable = usable_pixels(photos.folder, view.name, mask_dir, view.size)
            inside = inside_mask(pixels, usable)
            points, pixels = points[inside], pixels[inside]
        found.append((points, pixels))
    return found


def accepted(scene: SparseScene, target: int, sightings: Sightings) -> tuple[IntArray, FloatArray]:
    """Decide which points were found in a view.

    Patches must look very much alike, lie near the projection of the point, and have texture.

    Returns:
        Points (A,), ascending, and where they are (A, 2).
    """
    view = scene.views[target]
    scale = sample_spacing(view.size)
    shift = np.linalg.norm(sightings.pixel - view.project(scene.points[sightings.point]), axis=1)
    good = np.flatnonzero(
        sightings.succeeded
        & (sightings.correlation > MIN_CORRELATION)
        & (sightings.deviation < MAX_DEVIATION * scale)
        & (shift < MAX_SHIFT * scale)
    )
    good = good[np.argsort(sightings.point[good])]
    return sightings.point[good], sightings.pixel[good]


def _add(
    model: pycolmap.Reconstruction,
    scene: SparseScene,
    found: Iterable[tuple[IntArray, FloatArray]],
) -> tuple[int, list[tuple[int, int]]]:
    """Add observations (points, pixels) of each view to a model.

    A keypoint that is there and has no point is taken; one that has a point tells that the two
    points may be one.

    Returns:
        The number added, and the pairs of points that share a keypoint.
    """
    added, doubles = 0, []
    for view, (points, pixels) in zip(scene.views, found, strict=True):
        image = model.images[view.image_id]
        keypoints, owners = _keypoints(image)
        taken: set[int] = set()
        indices, distances = np.zeros(len(points), np.int64), np.full(len(points), np.inf)
        if len(keypoints) and len(points):
            near, apart = nearest(keypoints, pixels, 1)
            indices, distances = near[:, 0], apart[:, 0]
        radius = SAME_KEYPOINT * sample_spacing(view.size)
        for row in np.argsort(distances):
            point_id, index = int(scene.point_ids[points[row]]), int(indices[row])
            if distances[row] < radius and (owners[index] >= 0 or index in taken):
                other = image.points2D[index].point3D_id
                doubles.append((point_id, int(other)))
                continue
            if distances[row] >= radius:
                index = image.num_points2D()
                image.points2D.append(pycolmap.Point2D(pixels[row] + 0.5))
            taken.add(index)
            model.add_observation(point_id, pycolmap.TrackElement(view.image_id, index))
            added += 1
    return added, doubles


def _keypoints(image: pycolmap.Image) -> tuple[FloatArray, IntArray]:
    """Return keypoints (N, 2) and the ids of their points (N,), -1 where there is none."""
    keypoints = np.array([each.xy for each in image.points2D]).reshape(-1, 2) - 0.5
    return keypoints, points_of_image(image)


def join_points(model: pycolmap.Reconstruction, pairs: Iterable[tuple[int, int]]) -> int:
    """Join pairs of points that fit all observations of both; return how many were joined.

    Where both are seen in one image, at one place, one of the two observations is dropped.
    """
    bounds = {}
    for image_id in model.reg_image_ids():
        camera = model.cameras[model.images[image_id].camera_id]
        bounds[image_id] = MAX_JOINED_ERROR * sample_spacing((camera.width, camera.height))
    became: dict[int, int] = {}
    joined = 0

    def current(point_id: int) -> int:
        while point_id in became:
            point_id = became[point_id]
        return point_id

    for first, second in pairs:
        first, second = current(first), current(second)
        if first == second:
            continue
        new = _join(model, bounds, first, second)
        if new is not None:
            became[first] = became[second] = new
            joined += 1
    return joined


def _join(
    model: pycolmap.Reconstruction, bounds: Mapping[int, float], first: int, second: int
) -> int | None:
    """Join two points if their mean fits all observations; return the id of the new point.

    Args:
        model: it is changed.
        bounds: image id -> largest error of an observation, pixels.
        first, second: ids of the points.
    """
    points = sorted((model.points3D[i] for i in (first, second)), key=lambda p: -p.track.length())
    lengths = [point.track.length() for point in points]
    middle = np.average([point.xyz for point in points], axis=0, weights=lengths)
    kept: dict[int, int] = {}
    for point in points:
        for element in point.track.elements:
            image = model.images[element.image_id]
            projected = image.project_point(middle)
            if projected is None:
                return None
            off = projected - image.point2D(element.point2D_idx).xy
            if np.hypot(*off) >= bounds[element.image_id]:
                return None
            kept.setdefault(element.image_id, element.point2D_idx)
    color = points[0].color.copy()  # the points are gone then
    for point_id in (first, second):
        model.delete_point3D(point_id)
    track = pycolmap.Track([pycolmap.TrackElement(*item) for item in kept.items()])
    return int(model.add_point3D(middle, track, color))
