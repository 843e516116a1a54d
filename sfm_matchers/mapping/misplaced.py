"""Photos whose place in a model is denied by their own matches.

A mapper places a photo by what is in the model at that time. Where that is little or flat, or where
the photo has another focal length than those whose camera it is given, it may come to lie at a
wrong place. The few matches that fit there are its observations, with small errors; the others are
no observations any more, so that no reprojection error tells. The verified matches do: of the
keypoints that match points which other photos see, a photo in its place explains nearly all, or
those that it does not explain are wrong matches, which agree on no other place.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.errors import listed
from sfm_matchers.files.colmap_database import read_image_ids
from sfm_matchers.mapping.adjustment import adjust_robustly, point_positions, robust_adjustment
from sfm_matchers.mapping.database import read_verified_matches
from sfm_matchers.mapping.models import points_of_keypoints
from sfm_matchers.mapping.registration import register_missing
from sfm_matchers.mapping.shared_cameras import regrouped

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_ERROR = 4.0  # pixels, as COLMAP's bound of an observation
# Share of its keypoints that a photo explains, over that of most photos of the model: rendered and
# real photos in their places have 0.91 to 1.05, at wrong ones 0.37 to 0.81. One in its place, with
# 186 keypoints, had 0.84.
MIN_SHARE = 0.85
MIN_KEYPOINTS = 30  # that match points; of fewer the share tells nothing
MAX_PHOTOS = 1 / 3  # of a model; where more are denied, nothing says which part of it is right
# Share of its other keypoints that one place explains, of any focal length: of photos at wrong
# places or of another zoom 0.97 and more, of photos in their places with wrong matches 0.23.
MIN_ELSEWHERE = 0.5
# Keypoints of a photo that hold it, and their share of those that match points: with fewer of both
# nothing in the model tells its place, as of mirrored photos that agree with each other only (8 to
# 11, of 27 to 38).
MIN_HELD, MIN_HELD_SHARE = 15, 0.5
MIN_GAIN = 1.1  # keypoints explained at the new place over those at the old one
# Of another focal length: keypoints explained over those with the shared one, and of all.
MIN_FOCAL_GAIN, MIN_OWN_SHARE = 1.15, 0.7
# Keypoints explained, and median errors, of a focal length that is as good as another one.
AS_MANY, AS_EXACT = 0.95, 1.3
NO_POINTS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Resection:
    """What tells the place of a photo in a model: its keypoints that match points of others.

    Attributes:
        keypoints: (N,) ascending; those that match several points come once for each.
        keypoints_xy: (N, 2) pixels, COLMAP's convention.
        points: (N, 3) in the world, each seen by two other photos at least.
    """

    keypoints: IntArray
    keypoints_xy: FloatArray
    points: FloatArray

    def num_keypoints(self) -> int:
        """How many keypoints match points."""
        return len(np.unique(self.keypoints))

    def num_explained(self, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> int:
        """How many keypoints lie where one of their points appears, at a pose."""
        is_near = self._errors(camera, cam_from_world) < MAX_ERROR
        return len(np.unique(self.keypoints[is_near]))

    def unexplained(self, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> Resection:
        """Return the keypoints that lie where none of their points appears, at a pose."""
        is_near = self._errors(camera, cam_from_world) < MAX_ERROR
        others = ~np.isin(self.keypoints, self.keypoints[is_near])
        return Resection(self.keypoints[others], self.keypoints_xy[others], self.points[others])

    def _errors(self, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> FloatArray:
        """Pixels (N,) from each keypoint to its point; infinite where that is behind the camera."""
        pose = cam_from_world.matrix()
        in_camera = self.points @ pose[:, :3].T + pose[:, 3]
        projected = camera.img_from_cam(in_camera, check_cheirality=False)
        errors: FloatArray = np.linalg.norm(projected - self.keypoints_xy, axis=1)
        is_seen = np.isfinite(errors) & (camera.is_spherical() | (in_camera[:, 2] > 0))
        return np.where(is_seen, errors, np.inf)

    def median_error(self, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> float:
        """Pixels from a keypoint to where its point appears at a pose; of some, to the nearest."""
        errors = self._errors(camera, cam_from_world)
        order = np.lexsort((errors, self.keypoints))
        first = np.unique(self.keypoints[order], return_index=True)[1]
        return float(np.median(errors[order][first]))

    def solve(
        self, camera: pycolmap.Camera, *, estimate_focal_length: bool = False
    ) -> tuple[pycolmap.Camera, int]:
        """Return the camera, with its focal length estimated if asked, and how many keypoints the
        best pose explains."""
        camera, pose = self.find_pose(camera, estimate_focal_length=estimate_focal_length)
        return camera, 0 if pose is None else self.num_explained(camera, pose)

    def find_pose(
        self, camera: pycolmap.Camera, *, estimate_focal_length: bool = False
    ) -> tuple[pycolmap.Camera, pycolmap.Rigid3d | None]:
        """Return the camera, with its focal length estimated if asked, and the best pose."""
        camera = copy.copy(camera)
        estimation = pycolmap.AbsolutePoseEstimationOptions()
        estimation.ransac.max_error = MAX_ERROR
        estimation.ransac.random_seed = 0
        refinement = pycolmap.AbsolutePoseRefinementOptions()
        estimation.estimate_focal_length = refinement.refine_focal_length = estimate_focal_length
        found = pycolmap.estimate_and_refine_absolute_pose(
            self.keypoints_xy, self.points, camera, estimation, refinement
        )
        return camera, found["cam_from_world"] if found else None


def resections(
    model: pycolmap.Reconstruction, database_path: Path, names: Collection[str] | None = None
) -> dict[str, Resection]:
    """Return what tells the place of each photo of a model, or of some photos of its database."""
    owners = points_of_keypoints(model)
    partners: dict[int, list[tuple[int, IntArray]]] = defaultdict(list)
    for (first, second), matches in read_verified_matches(database_path).items():
        partners[first].append((second, matches))
        partners[second].append((first, matches[:, ::-1]))
    point_ids = np.array(sorted(model.points3D), np.int64)
    points3D = model.points3D
    lengths = np.array([points3D[i].track.length() for i in point_ids.tolist()], np.int64)
    positions = point_positions(model, point_ids.tolist())
    wanted = {model.images[i].name for i in owners} if names is None else names
    found = {}
    with pycolmap.Database.open(database_path) as database:
        for name, image_id in sorted(read_image_ids(database).items()):
            if name not in wanted:
                continue
            pairs = _matched_points(partners[image_id], owners)
            rows = np.searchsorted(point_ids, pairs[:, 1])
            is_own = np.isin(pairs[:, 1], owners.get(image_id, NO_POINTS))
            by_others = lengths[rows] - is_own >= 2
            keypoints = pairs[by_others, 0]
            keypoints_xy = np.asarray(database.read_keypoints(image_id), np.float64)[:, :2]
            found[name] = Resection(keypoints, keypoints_xy[keypoints], positions[rows[by_others]])
    return found


def _matched_points(
    partners: Iterable[tuple[int, IntArray]], owners: Mapping[int, IntArray]
) -> IntArray:
    """Keypoints of a photo and points of a model that they match in its partners, (N, 2)."""
    found = [np.zeros(0, np.int64)]
    for other, matches in partners:
        if other in owners:
            points = owners[other][matches[:, 1]]
            has_point = points >= 0
            found.append((matches[has_point, 0] << 32) + points[has_point])
    unique = np.unique(np.concatenate(found))  # of one number each: rows are sorted slowly
    return np.column_stack([unique >> 32, unique & 0xFFFFFFFF])


def find_misplaced(model: pycolmap.Reconstruction, database_path: Path) -> dict[str, float]:
    """Return the photos that their matches deny, with the share of these that they explain.

    Of few matches chance may make that share small: it must be so beyond its standard deviation.
    The others must agree on another place, or those that agree must be too few for any. Nothing is
    said where more than a third of the photos are denied: any part may be the right one.
    """
    shares, deviations, unheld = {}, {}, {}
    images = {image.name: image for image in model.images.values()}
    found = resections(model, database_path)
    for name, resection in found.items():
        total = resection.num_keypoints()
        if not total:
            continue
        explained = _num_explained(model, images[name], resection)
        share = explained / total
        deviation = math.sqrt(share * (1 - share) / total)
        if explained < MIN_HELD and share + deviation < MIN_HELD_SHARE and total >= MIN_HELD:
            unheld[name] = share
        elif total >= MIN_KEYPOINTS:
            shares[name], deviations[name] = share, deviation
    bound = MIN_SHARE * float(np.median(list(shares.values()))) if shares else 0.0
    denied = {name: share for name, share in shares.items() if share + deviations[name] < bound}
    if len(denied) + len(unheld) > MAX_PHOTOS * model.num_reg_images():
        return {}
    return unheld | {
        name: share
        for name, share in denied.items()
        if _belongs_elsewhere(model, images[name], found[name])
    }


def _belongs_elsewhere(
    model: pycolmap.Reconstruction, image: pycolmap.Image, resection: Resection
) -> bool:
    """Return whether most of what a photo does not explain agrees on another place."""
    camera = model.cameras[image.camera_id]
    others = resection.unexplained(camera, image.cam_from_world())
    least = MIN_ELSEWHERE * others.num_keypoints()
    _, explained = others.solve(camera)
    if explained < least and not camera.is_spherical():
        _, explained = others.solve(camera, estimate_focal_length=True)
    return explained >= least


def _num_explained(
    model: pycolmap.Reconstruction, image: pycolmap.Image, resection: Resection
) -> int:
    return resection.num_explained(model.cameras[image.camera_id], image.cam_from_world())


def place_again(
    model: pycolmap.Reconstruction,
    database_path: Path,
    fixed_cameras: Collection[int] = (),
    *,
    num_threads: int = 1,
) -> pycolmap.Reconstruction:
    """Take the photos that their matches deny out of a model, and register them with the rest.

    Args:
        model: left as it is.
        database_path: the database that the model was mapped from.
        fixed_cameras: ids of cameras whose intrinsics are kept.
        num_threads: of the adjustments.

    Returns:
        The model with these photos where they explain more; else `model` itself.
    """
    names = find_misplaced(model, database_path)
    if not names:
        return model
    rest = _without(model, names)
    adjust_robustly(rest, robust_adjustment(num_threads), fixed_cameras, is_draft=True)
    better = register_missing(rest, names, database_path, fixed_cameras, num_threads=num_threads)
    before, after = (_explained(one, database_path, names) for one in (model, better))
    if after < MIN_GAIN * before or better.num_reg_images() < model.num_reg_images():
        return model
    logger.info(
        "%s placed again: at the first place %.0f %% of what matches was explained",
        listed(sorted(names)),
        100 * float(np.mean(list(names.values()))),
    )
    return better


def own_focal_lengths(
    model: pycolmap.Reconstruction, database_path: Path, names: Collection[str]
) -> dict[str, float]:
    """Estimate the focal length of photos that a model has at a wrong place, or not at all.

    Args:
        model: with a camera for each of the photos, which may not be theirs.
        database_path: the database that the model was mapped from.
        names: of which photos, where they are doubtful.

    Returns:
        Photo -> focal length in pixels, where it explains much more than the model's camera does.
    """
    registered = {image.name for image in model.images.values()}
    doubtful = set(names) & find_misplaced(model, database_path).keys() | set(names) - registered
    if not doubtful:
        return {}
    with pycolmap.Database.open(database_path) as database:
        camera_ids = {image.name: image.camera_id for image in database.read_all_images()}
    found = {}
    for name, resection in resections(model, database_path, doubtful).items():
        if resection.num_keypoints() < MIN_KEYPOINTS or camera_ids[name] not in model.cameras:
            continue
        shared = model.cameras[camera_ids[name]]
        _, before = resection.solve(shared)
        own, after = resection.solve(shared, estimate_focal_length=True)
        if after >= max(MIN_FOCAL_GAIN * before, MIN_OWN_SHARE * resection.num_keypoints()):
            found[name] = float(own.mean_focal_length())
    return found


def open_focal_lengths(
    model: pycolmap.Reconstruction, database_path: Path, names: Collection[str]
) -> dict[str, tuple[float, float]]:
    """Find the photos whose own focal length is not told by what they see.

    Such a photo fits the model as well with the camera of most others of its size, from elsewhere:
    as where it sees a few points of one wall. Photos of another zoom fit that four times as badly.

    Args:
        model: with cameras that are of one photo each.
        database_path: the database that the model was mapped from.
        names: photos with a camera of their own that was estimated.

    Returns:
        Photo -> its focal length, and that of the others, in pixels.
    """
    images = {image.name: image for image in model.images.values() if image.name in names}
    cameras = {name: model.cameras[image.camera_id] for name, image in images.items()}
    sizes: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, camera in sorted(cameras.items()):
        if not camera.is_spherical():
            sizes[camera.width, camera.height].append(name)
    focal_lengths = {name: float(camera.mean_focal_length()) for name, camera in cameras.items()}
    others: dict[str, str] = {}  # photo -> one with the camera of most
    for of_size in sizes.values():
        most = max(regrouped([of_size], focal_lengths), key=len)
        if len(most) > 1:
            middle = sorted(most, key=focal_lengths.__getitem__)[len(most) // 2]
            others |= dict.fromkeys(set(of_size).difference(most), middle)
    if not others:
        return {}
    found = {}
    for name, resection in resections(model, database_path, others.keys()).items():
        if resection.num_keypoints() < MIN_KEYPOINTS:
            continue
        other, pose = resection.find_pose(cameras[others[name]])
        own = cameras[name], images[name].cam_from_world()
        if pose is None or resection.num_explained(other, pose) < (
            AS_MANY * resection.num_explained(*own)
        ):
            continue
        if resection.median_error(other, pose) <= AS_EXACT * resection.median_error(*own):
            found[name] = focal_lengths[name], focal_lengths[others[name]]
    return found


def _explained(model: pycolmap.Reconstruction, database_path: Path, names: Collection[str]) -> int:
    images = {image.name: image for image in model.images.values()}
    found = resections(model, database_path, images.keys() & set(names))
    return sum(_num_explained(model, images[name], each) for name, each in found.items())


def _without(model: pycolmap.Reconstruction, names: Collection[str]) -> pycolmap.Reconstruction:
    """A model without some of its photos, and without the points that only they see."""
    rest = pycolmap.Reconstruction(model)
    manager = pycolmap.ObservationManager(rest)
    for image_id in sorted(rest.reg_image_ids()):
        image = rest.images[image_id]
        if image.name in names:
            manager.deregister_frame(image.frame_id)
    rest.tear_down()
    return rest
