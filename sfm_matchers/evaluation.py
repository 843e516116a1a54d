"""Measures of matches and of the poses estimated from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfm_matchers.errors import InputError, MissingExtraError

if TYPE_CHECKING:  # training runs on machines without pycolmap
    import pycolmap

FloatArray = NDArray[np.float64]
MIN_MATCHES = 5  # of the five-point algorithm


def pose_error(
    cam1_from_cam0: ArrayLike, rotation: ArrayLike, translation: ArrayLike
) -> tuple[float, float]:
    """Angles between a true relative pose and an estimated one.

    The scale and the sign of a translation cannot be told from two images, so only its direction
    counts, and the opposite direction counts as the same.

    Args:
        cam1_from_cam0: (4, 4) true transformation.
        rotation: (3, 3) estimated.
        translation: (3,) estimated, of any length.

    Returns:
        Rotation error and translation error in degrees; the latter is 0 where the true
        translation is zero.
    """
    truth = np.asarray(cam1_from_cam0, dtype=np.float64)
    rotation = np.asarray(rotation, dtype=np.float64)
    translation = np.asarray(translation, dtype=np.float64)
    rotation_error = _rotation_angle(truth[:3, :3].T @ rotation)
    lengths = np.linalg.norm(truth[:3, 3]) * np.linalg.norm(translation)
    if lengths < 1e-12:
        return rotation_error, 0.0
    cosine = abs(truth[:3, 3] @ translation) / lengths
    return rotation_error, float(np.rad2deg(np.arccos(np.clip(cosine, 0, 1))))


def pose_auc(errors: ArrayLike, thresholds: Sequence[float] = (5.0, 10.0, 20.0)) -> list[float]:
    """Area under the recall curve up to each threshold, as a share of the perfect area.

    Args:
        errors: (N,) one error per pair, usually the larger of rotation and translation error in
            degrees; infinite for a pair without a pose.
        thresholds: in the unit of the errors.

    Returns:
        One value in 0..1 per threshold.

    Raises:
        InputError: if there are no errors.
    """
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    if ordered.size == 0:
        raise InputError("pose_auc needs at least one error: no pair was evaluated")
    ordered = np.concatenate([[0.0], ordered])
    recall = np.arange(len(ordered)) / (len(ordered) - 1)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return areas


def symmetric_epipolar_distance(
    points0: ArrayLike,
    points1: ArrayLike,
    essential: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
) -> FloatArray:
    """Squared distances to the epipolar lines in both images, summed, in normalised coordinates.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        essential: (3, 3) with x1^T E x0 = 0.
        intrinsics0: (3, 3).
        intrinsics1: (3, 3).

    Returns:
        (N,) (x1^T E x0)^2 (1 / |(E x0)_xy|^2 + 1 / |(E^T x1)_xy|^2).
    """
    rays0 = _normalise(points0, intrinsics0)
    rays1 = _normalise(points1, intrinsics1)
    essential = np.asarray(essential, dtype=np.float64)
    lines1 = rays0 @ essential.T
    lines0 = rays1 @ essential
    residual = np.sum(rays1 * lines1, axis=1)
    weight = 1 / np.sum(lines1[:, :2] ** 2, axis=1) + 1 / np.sum(lines0[:, :2] ** 2, axis=1)
    return residual**2 * weight


def estimate_relative_pose(
    points0: ArrayLike,
    points1: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
    *,
    max_error: float = 1.0,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]] | None:
    """Essential matrix by OpenCV's MAGSAC++, then the pose in front of both cameras.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        intrinsics0: (3, 3).
        intrinsics1: (3, 3).
        max_error: inlier threshold in pixels.

    Returns:
        Rotation (3, 3), translation (3,) of unit length and inliers (N,), or None without a pose.
    """
    focal = np.mean([np.asarray(k)[i, i] for k in (intrinsics0, intrinsics1) for i in (0, 1)])
    # Pixels of one camera for both: on rays, whose unit is the focal length, MAGSAC++ is far off.
    shared = np.diag([focal, focal, 1.0])
    pixels0 = focal * _normalise(points0, intrinsics0)[:, :2]
    pixels1 = focal * _normalise(points1, intrinsics1)[:, :2]
    if len(pixels0) < MIN_MATCHES:
        return None
    cv2.setRNGSeed(0)
    essentials, mask = cv2.findEssentialMat(
        pixels0,
        pixels1,
        shared,
        method=cv2.USAC_MAGSAC,
        prob=0.99999,
        threshold=max_error,
        maxIters=10_000,
    )
    if essentials is None:
        return None
    best: tuple[FloatArray, FloatArray, NDArray[np.bool_]] | None = None
    most = 0
    for start in range(0, len(essentials) - 2, 3):
        count, rotation, translation, _ = cv2.recoverPose(
            essentials[start : start + 3], pixels0, pixels1, shared, 1e9, mask=mask.copy()
        )[:4]
        if count > most:
            most = count
            best = (
                np.asarray(rotation, dtype=np.float64),
                np.asarray(translation, dtype=np.float64)[:, 0],
                np.asarray(mask).ravel() > 0,
            )
    return best


def estimate_relative_pose_poselib(
    points0: ArrayLike,
    points1: ArrayLike,
    intrinsics0: ArrayLike,
    intrinsics1: ArrayLike,
    *,
    max_error: float = 1.0,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]] | None:
    """The same as `estimate_relative_pose` by PoseLib's LO-RANSAC; intrinsics without skew.

    Raises:
        MissingExtraError: poselib is not installed.
    """
    try:
        import poselib
    except ImportError as error:
        raise MissingExtraError("poselib is missing: pip install poselib") from error
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < MIN_MATCHES:
        return None
    cameras = []
    for matrix in (np.asarray(intrinsics0, float), np.asarray(intrinsics1, float)):
        focal_and_centre = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
        width, height = (round(2 * centre) for centre in focal_and_centre[2:])
        cameras.append(
            {"model": "PINHOLE", "width": width, "height": height, "params": focal_and_centre}
        )
    pose, info = poselib.estimate_relative_pose(
        points0, points1, *cameras, {"max_epipolar_error": max_error}, {}
    )
    inliers = np.asarray(info["inliers"], dtype=bool)
    if not inliers.any():
        return None
    return np.asarray(pose.R), np.asarray(pose.t), inliers


POSE_ESTIMATORS = {
    "OpenCV MAGSAC++": estimate_relative_pose,
    "PoseLib LO-RANSAC": estimate_relative_pose_poselib,
}


@dataclass(frozen=True)
class PosedPair:
    """Two photos with their true relative pose.

    Attributes:
        name0: path of image 0 relative to the image folder.
        name1: of image 1.
        intrinsics0: (3, 3) in pixels of the photo as stored.
        intrinsics1: (3, 3).
        cam1_from_cam0: (4, 4).
        quarter_turns: counter-clockwise quarter turns that set photo 0 and photo 1 upright.
    """

    name0: str
    name1: str
    intrinsics0: FloatArray
    intrinsics1: FloatArray
    cam1_from_cam0: FloatArray
    quarter_turns: tuple[int, int] = (0, 0)

    @property
    def essential(self) -> FloatArray:
        """Essential matrix (3, 3) with x1^T E x0 = 0."""
        x, y, z = self.cam1_from_cam0[:3, 3]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return cross @ self.cam1_from_cam0[:3, :3]


def read_posed_pairs(path: Path) -> list[PosedPair]:
    """Read lines `image0 image1 rot0 rot1 K0 K1 T_0to1`, matrices row by row: 38 fields.

    The layout of SuperGlue's lists. Intrinsics and pose are those of the photos as stored; rot0 and
    rot1 count the counter-clockwise quarter turns that set them upright for matching.

    Raises:
        InputError: no such file, no pairs in it, or a malformed line.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a list of pairs with their true poses")
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 38:
            raise InputError(f"{path}, line {number}: {len(fields)} fields, expected 38")
        try:
            values = np.array(fields[2:], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: a number cannot be read") from error
        turns = values[:2].astype(int)
        if (turns != values[:2]).any():
            raise InputError(f"{path}, line {number}: rot0 and rot1 count quarter turns")
        intrinsics0, intrinsics1 = values[2:11].reshape(3, 3), values[11:20].reshape(3, 3)
        pose = values[20:].reshape(4, 4)
        quarter_turns = (int(turns[0]), int(turns[1]))
        pairs.append(PosedPair(fields[0], fields[1], intrinsics0, intrinsics1, pose, quarter_turns))
    if not pairs:
        raise InputError(f"no pairs in {path}")
    return pairs


def matching_precision(
    points0: ArrayLike, points1: ArrayLike, pair: PosedPair, max_distance: float = 1e-4
) -> float:
    """Share of matches whose squared `symmetric_epipolar_distance` is small; 0 without matches."""
    distances = symmetric_epipolar_distance(
        points0, points1, pair.essential, pair.intrinsics0, pair.intrinsics1
    )
    return float((distances < max_distance).mean()) if len(distances) else 0.0


def _normalise(points: ArrayLike, intrinsics: ArrayLike) -> FloatArray:
    """Pixels (N, 2) to rays (N, 3) with third entry 1."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    return homogeneous @ np.linalg.inv(np.asarray(intrinsics, dtype=np.float64)).T


@dataclass(frozen=True)
class ModelErrors:
    """How far a COLMAP model is from the truth, after the best similarity transform.

    Attributes:
        num_images: images of the truth.
        num_registered: those that the model has too.
        center_errors: (num_registered,) distances of camera centres, in the truth's unit.
        rotation_errors: (num_registered,) degrees.
        extent: largest distance between two true camera centres, in the truth's unit.
    """

    num_images: int
    num_registered: int
    center_errors: FloatArray
    rotation_errors: FloatArray
    extent: float

    def summary(self) -> str:
        """Return one line for a person."""
        if not self.num_registered:
            return f"0 of {self.num_images} images registered"
        relative = 100 * self.center_errors / self.extent
        return (
            f"{self.num_registered} of {self.num_images} images registered; camera centres off by "
            f"{relative.mean():.3f} % of the scene's extent on average ({relative.max():.3f} % at "
            f"most), rotations by {self.rotation_errors.mean():.3f} degrees"
        )


def compare_models(model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction) -> ModelErrors:
    """Compare the poses of a model with true ones; images are identified by name.

    The similarity transform is the least-squares one between camera centres (Umeyama, PAMI 1991).

    Raises:
        InputError: fewer than three images in common, too few for the transform.
    """
    import pycolmap

    true_images = {image.name: image for image in truth.images.values()}
    images = [image for image in model.images.values() if image.name in true_images]
    images = [image for image in images if image.has_pose]
    if len(images) < 3:
        raise InputError(f"{len(images)} images in common with the truth; three are needed")
    centers = np.array([image.projection_center() for image in images])
    true_centers = np.array([true_images[image.name].projection_center() for image in images])
    truth_from_model = pycolmap.estimate_sim3d(centers, true_centers)
    if truth_from_model is None:
        raise InputError("the camera centres do not determine a similarity transform")
    rotation_errors = []
    for image in images:
        aligned = truth_from_model.transform_camera_world(image.cam_from_world())
        true_pose = true_images[image.name].cam_from_world()
        difference = aligned.rotation.matrix() @ true_pose.rotation.matrix().T
        rotation_errors.append(_rotation_angle(difference))
    aligned_centers = (
        truth_from_model.scale * centers @ truth_from_model.rotation.matrix().T
        + truth_from_model.translation
    )
    all_centers = np.array([image.projection_center() for image in true_images.values()])
    spans = np.linalg.norm(all_centers[:, None] - all_centers[None], axis=-1)
    return ModelErrors(
        len(true_images),
        len(images),
        np.linalg.norm(aligned_centers - true_centers, axis=1),
        np.array(rotation_errors),
        float(spans.max()),
    )


def _rotation_angle(rotation: FloatArray) -> float:
    """Return the angle of a rotation matrix in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
