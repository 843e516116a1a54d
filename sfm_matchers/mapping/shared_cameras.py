"""Whether photos that were taken for one camera's are.

Photos without EXIF of one size may be of several cameras, or of several zooms. One camera for all
of them bends the model: on rendered photos of two cameras the centres are 3 to 14 % of the extent
off, and nothing but the reprojection error tells. Where each photo gets intrinsics of its own, in
one more adjustment of the model, that error falls to a half or less; where they are of one camera,
it does not fall.

A model may be bent so far that no adjustment leads out of it. The verified pairs tell: a pair's
fundamental matrix asks for no intrinsics, so that its errors are those of the keypoints alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.mapping.adjustment import adjust_robustly, median_error, robust_adjustment
from sfm_matchers.mapping.held_out import MAX_OBSERVATIONS, MAX_OBSERVATIONS_PER_IMAGE
from sfm_matchers.mapping.lenses import (
    FISHEYE,
    MAX_ANISOTROPY,
    MIN_PHOTOS_BEYOND_RADIAL,
    PERSPECTIVE,
    converted,
    implausibility,
    may_be_fisheye,
)
from sfm_matchers.mapping.pair_fit import distances_in_own_geometry
from sfm_matchers.photos.intrinsics import impossibility, improbability

# A median error below this share of the shared cameras' is not from the additional freedom.
MAX_ERROR_RATIO = 0.7
# Below, in pixels, what is left is noise, of which any freedom fits some: right models of few small
# photos have 0.08 to 0.14 and 0.65 to 0.85 of it, bent ones 0.23 and more, and 0.15 to 0.3 of it.
EXACT = 0.15
# Where a camera has few photos, so many at least tell that they are stretched, if the ratio of the
# focal lengths is plain. It was a tenth off of four real photos of squares, whose error was 0.85 of
# that with one focal length; of photos that are stretched by a third, the error was 0.7 and less.
FEW_PHOTOS, PLAINLY_STRETCHED, STRETCHED_ERROR_RATIO = 3, 1.15, 0.8
# Of photos of one camera a rough adjustment leaves this share of the error at least; below, an
# exact one decides.
UNCHANGED = 0.95

# Relative difference of focal lengths, from one photo to the next larger, up to which they are of
# one camera: those of one camera lie within 2 % where each photo has its own.
SAME_FOCAL_LENGTH = 0.04

# Where focal lengths are known, the same of models that are right is about 0.7 on rendered photos;
# of their pairs, none are uncalibrated.
NEARLY_BENT, UNCALIBRATED = 1.2, 0.25
# Relative difference from EXIF's, which is in whole millimetres on film, that no whole photos have.
WRONG_FOCAL_LENGTH = 0.1

# Median errors of a model over those of its verified pairs: rendered and real photos of one camera,
# or of known ones, have 0.4 to 1.6, bent models 3 and more.
BENT = 2.0
MIN_MATCHES = 100  # of these pairs; fewer tell nothing
MAX_PAIRS, MAX_PAIR_ERROR = 20, 2.0  # the strongest ones; pixels
MAX_PAIR_MATCHES = 500  # that are looked at of each


@dataclass(frozen=True)
class OwnCameras:
    """A model adjusted with intrinsics of its own for each of some photos.

    Attributes:
        shared_error: median reprojection error in pixels of these photos before.
        own_error: afterwards.
        focal_lengths: photo -> pixels, afterwards.
    """

    shared_error: float
    own_error: float
    focal_lengths: dict[str, float]

    @property
    def contradicts(self) -> bool:
        """True if the photos are not of the cameras that they share."""
        return self.shared_error > EXACT and self.own_error < MAX_ERROR_RATIO * self.shared_error

    def are_several(self, groups: Sequence[Sequence[str]]) -> bool:
        """True if photos that share a camera, by groups, may be of several where the model is bent.

        Photos of one phone, whose focus moves, fit a model much worse than each other too; their
        focal lengths stay together.
        """
        return self.contradicts or len(regrouped(groups, self.focal_lengths)) > len(groups)


def try_own_cameras(model: pycolmap.Reconstruction, names: Collection[str]) -> OwnCameras:
    """Adjust a copy of a model, in which each of some photos has intrinsics of its own.

    Args:
        model: it is left as it is.
        names: photos; those that are not registered have no part.
    """
    own = split_cameras(model, names)
    shared_error = median_error(own, names)
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = 1
    adjustment = options.get_global_bundle_adjustment()
    adjust_robustly(own, adjustment, is_draft=True)
    own_error = median_error(own, names)
    if own_error < UNCHANGED * shared_error:
        adjust_robustly(own, adjustment)
        own_error = median_error(own, names)
    cameras = {
        image.name: own.cameras[image.camera_id]
        for image in own.images.values()
        if image.has_pose and image.name in names
    }
    return OwnCameras(
        shared_error,
        own_error,
        {name: float(camera.mean_focal_length()) for name, camera in cameras.items()},
    )


def error_if_stretched(
    model: pycolmap.Reconstruction,
    names: Collection[str],
    *,
    num_photos: int = MIN_PHOTOS_BEYOND_RADIAL,
    anisotropy: float = MAX_ANISOTROPY,
) -> float:
    """Median reprojection error in pixels of some photos, if their cameras have two focal lengths.

    As of anamorphic video, whose pixels are no squares. Where that is so, cameras of their own help
    the photos too, and less. Infinite where such cameras cannot be.

    Args:
        model: it is left as it is.
        names: photos; some of them are registered.
        num_photos: that a camera must have.
        anisotropy: ratio of the focal lengths up to which the pixels are squares.
    """
    other, found = _with_other_lenses(model, names, PERSPECTIVE[2], num_photos)
    if any(implausibility(camera, is_stretched=True) for camera in found):
        return float("inf")
    if not any(_anisotropy(camera) > anisotropy for camera in found):
        return float("inf")  # their pixels are squares
    return median_error(other, names)


def _anisotropy(camera: pycolmap.Camera) -> float:
    focal_lengths = camera.params[list(camera.focal_length_idxs())]
    return float(focal_lengths.max() / focal_lengths.min())


def error_if_fisheye(model: pycolmap.Reconstruction, names: Collection[str]) -> float:
    """Median error in pixels of some photos, if lenses that distort as fisheyes do are some.

    Cameras of their own help photos by a fisheye that is taken for no such lens, each at other
    distances from the middle, and less than the right lens. Infinite where no lens may be one.

    Args:
        model: it is left as it is.
        names: photos; some of them are registered.
    """
    cameras = [model.cameras[i.camera_id] for i in model.images.values() if i.name in names]
    if not any(camera.model.name in PERSPECTIVE and may_be_fisheye(camera) for camera in cameras):
        return float("inf")
    other, found = _with_other_lenses(model, names, FISHEYE[1], 1)
    if not found or any(impossibility(camera) or improbability(camera) for camera in found):
        return float("inf")
    return median_error(other, names)


def _with_other_lenses(
    model: pycolmap.Reconstruction, names: Collection[str], lens: str, least: int
) -> tuple[pycolmap.Reconstruction, list[pycolmap.Camera]]:
    """A model adjusted with the cameras of some photos in another camera model, and these cameras;
    none where that is not tried: by cameras of fewer photos than `least`, or that are no
    perspective ones."""
    other = split_cameras(model, ())
    images = [image for image in other.images.values() if image.name in names]
    count = Counter(image.camera_id for image in images)
    for camera_id, num_photos in count.items():
        camera = other.cameras[camera_id]
        if camera.model.name not in PERSPECTIVE or num_photos < least:
            return other, []
        changed = converted(camera, lens)
        camera.model, camera.params = changed.model, changed.params.tolist()
    adjust_robustly(other, robust_adjustment(1))
    return other, [other.cameras[i] for i in count if i in other.cameras]


def focal_lengths_of(model: pycolmap.Reconstruction) -> dict[str, float]:
    """Return photo -> mean focal length in pixels, of the registered ones."""
    return {
        image.name: float(model.cameras[image.camera_id].mean_focal_length())
        for image in model.images.values()
        if image.has_pose
    }


def contradicted_focal_lengths(
    model: pycolmap.Reconstruction, exif: Mapping[str, float]
) -> dict[str, float]:
    """Return photo -> focal length in a model, of those that are far from EXIF's, in pixels."""
    return {
        name: value
        for name, value in focal_lengths_of(model).items()
        if name in exif and abs(np.log(value / exif[name])) > np.log1p(WRONG_FOCAL_LENGTH)
    }


def is_bent(model: pycolmap.Reconstruction, database_path: Path, names: Collection[str]) -> bool:
    """True if some photos fit a model much worse than they fit each other, pair by pair."""
    return error_over_pairs(model, database_path, names) > BENT


def error_over_pairs(
    model: pycolmap.Reconstruction, database_path: Path, names: Collection[str]
) -> float:
    """Return the median error of some photos in a model over that of their verified pairs."""
    registered = {image.name for image in model.images.values() if image.has_pose}
    expected = two_view_error(database_path, registered, registered.intersection(names))
    return median_error(model, names) / expected


def are_pairs_uncalibrated(database_path: Path, names: Collection[str]) -> bool:
    """True if many verified pairs of some photos, whose focal lengths are known, deny these.

    COLMAP verifies such a pair with its focal lengths and without, and keeps what fits better.
    """
    kinds = pycolmap.TwoViewGeometryConfiguration
    with pycolmap.Database.open(database_path) as database:
        image_ids = {image.image_id for image in database.read_all_images() if image.name in names}
        pair_ids, geometries = database.read_two_view_geometries()
    found = [
        geometry.config == kinds.UNCALIBRATED
        for pair_id, geometry in zip(pair_ids, geometries, strict=True)
        if geometry.config in (kinds.UNCALIBRATED, kinds.CALIBRATED)
        and image_ids.issuperset(pycolmap.pair_id_to_image_pair(pair_id))
    ]
    return bool(found) and float(np.mean(found)) >= UNCALIBRATED


def two_view_error(database_path: Path, names: Collection[str], asked: Collection[str]) -> float:
    """Median error in pixels of the verified matches between some photos, whatever their cameras.

    Of each pair one photo at least is of those that are asked for. Looked at are the strongest
    pairs with parallax; infinite if they have few matches.
    """
    kinds = pycolmap.TwoViewGeometryConfiguration
    with pycolmap.Database.open(database_path) as database:
        images = database.read_all_images()
        image_ids = {image.image_id for image in images if image.name in names}
        asked_ids = {image.image_id for image in images if image.name in asked}
        keypoints = {image_id: database.read_keypoints(image_id)[:, :2] for image_id in image_ids}
        pair_ids, geometries = database.read_two_view_geometries()
    pairs = [
        (*pycolmap.pair_id_to_image_pair(pair_id), geometry.inlier_matches)
        for pair_id, geometry in zip(pair_ids, geometries, strict=True)
        if geometry.config in (kinds.UNCALIBRATED, kinds.CALIBRATED)
    ]
    pairs = [
        pair
        for pair in pairs
        if image_ids.issuperset(pair[:2]) and not asked_ids.isdisjoint(pair[:2])
    ]
    errors = [np.zeros(0)]
    options = pycolmap.RANSACOptions(random_seed=0, max_error=MAX_PAIR_ERROR)
    for first, second, matches in sorted(pairs, key=lambda pair: -len(pair[2]))[:MAX_PAIRS]:
        some = np.linspace(0, len(matches) - 1, min(MAX_PAIR_MATCHES, len(matches))).astype(int)
        matches = matches[some]
        points = keypoints[first][matches[:, 0]], keypoints[second][matches[:, 1]]
        errors.append(distances_in_own_geometry(*points, options))
    together = np.concatenate(errors)
    return float(np.median(together)) if len(together) >= MIN_MATCHES else float("inf")


def split_cameras(
    model: pycolmap.Reconstruction, names: Collection[str]
) -> pycolmap.Reconstruction:
    """Copy the registered images of a model and as many of its points as tell all; images of
    `names` get own cameras."""
    split = pycolmap.Reconstruction()
    next_id = 1 + max(model.cameras)
    for image_id in sorted(model.reg_image_ids()):
        image = model.images[image_id]
        camera = copy.copy(model.cameras[image.camera_id])
        if image.name in names:
            camera.camera_id, next_id = next_id, next_id + 1
        if camera.camera_id not in split.cameras:
            split.add_camera_with_trivial_rig(camera)
        keypoints = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        same = pycolmap.Image(
            name=image.name, keypoints=keypoints, camera_id=camera.camera_id, image_id=image_id
        )
        split.add_image_with_trivial_frame(same, image.cam_from_world())
    limit = max(MAX_OBSERVATIONS, MAX_OBSERVATIONS_PER_IMAGE * split.num_reg_images())
    points3D = model.points3D
    for point_id in np.random.default_rng(0).permutation(sorted(points3D)).tolist():
        point = points3D[point_id]
        split.add_point3D(point.xyz, point.track, point.color)
        limit -= point.track.length()
        if limit < 0:
            break
    return split


def listed_focal_lengths(
    groups: Sequence[Sequence[str]], focal_lengths: Mapping[str, float]
) -> str:
    """Return the median focal length of each group, and how many photos it has, for the user."""
    shown = []
    for group in groups:
        known = [focal_lengths[name] for name in group if name in focal_lengths]
        if known:
            shown.append(f"{np.median(known):.0f} px ({len(group)})")
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def regrouped(
    groups: Sequence[Sequence[str]], focal_lengths: Mapping[str, float]
) -> list[list[str]]:
    """Split groups of photos where their focal lengths differ.

    Args:
        groups: photos that share a camera.
        focal_lengths: photo -> pixels. Photos of a group that is split, but which are not here, get
            a camera each; groups without any stay.
    """
    result: list[list[str]] = []
    for group in groups:
        known = [name for name in group if name in focal_lengths]
        clusters: list[list[str]] = []
        last = 0.0
        for name in sorted(known, key=focal_lengths.__getitem__):
            if not focal_lengths[name] <= (1 + SAME_FOCAL_LENGTH) * last:
                clusters.append([])
            clusters[-1].append(name)
            last = focal_lengths[name]
        if len(clusters) <= 1:
            result.append(list(group))
        else:
            result += [sorted(cluster) for cluster in clusters]
            result += [[name] for name in group if name not in focal_lengths]
    return result
