"""Measures of matches and of the poses estimated from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfm_matchers.benchmark_pairs import PosedPair
from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.robust_estimation import estimate_robustly

if TYPE_CHECKING:  # training runs on machines without pycolmap
    import pycolmap

FloatArray = NDArray[np.float64]
MIN_MATCHES = 5  # of the five-point algorithm
CONFIDENCE = 0.99999  # of RANSAC, as in the papers
MAX_ITERATIONS = 10_000  # of RANSAC


class RelativePose(NamedTuple):
    """An estimated pose of camera 1 from camera 0.

    Attributes:
        rotation: (3, 3).
        translation: (3,) of unit length.
        inliers: (N,) bool, the matches that agree.
    """

    rotation: FloatArray
    translation: FloatArray
    inliers: NDArray[np.bool_]


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
        errors: (N,) one error per pair: the larger of rotation and translation error in degrees, or
            the corner error of a homography in pixels; infinite for a pair without an estimate.
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
    max_error: float = 0.5,
    method: int = cv2.USAC_MAGSAC,
) -> RelativePose | None:
    """Essential matrix by OpenCV, then the pose in front of both cameras.

    The same matches in the same order always give the same pose: OpenCV's generator starts anew in
    every call.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        intrinsics0: (3, 3).
        intrinsics1: (3, 3).
        max_error: inlier threshold in pixels of a camera with the mean focal length of the two.
        method: `cv2.USAC_MAGSAC` (MAGSAC++, refined on the inliers) or `cv2.RANSAC` (the best of
            the minimal samples as it is, what the papers of the networks measure with).

    Returns:
        The pose, or None if there is none.
    """
    focal = np.mean([np.asarray(k)[i, i] for k in (intrinsics0, intrinsics1) for i in (0, 1)])
    # Pixels of one camera for both: on rays, whose unit is the focal length, MAGSAC++ is far off,
    # because the largest scale of noise it considers is a fixed number of pixels.
    shared = np.diag([focal, focal, 1.0])
    pixels0 = focal * _normalise(points0, intrinsics0)[:, :2]
    pixels1 = focal * _normalise(points1, intrinsics1)[:, :2]
    if len(pixels0) < MIN_MATCHES:
        return None
    essentials, mask = estimate_robustly(
        lambda method: cv2.findEssentialMat(
            pixels0,
            pixels1,
            shared,
            method=method,
            prob=CONFIDENCE,
            threshold=max_error,
            maxIters=MAX_ITERATIONS,
        ),
        method,
    )
    if essentials is None:
        return None
    best: RelativePose | None = None
    most = 0
    for start in range(0, len(essentials) - 2, 3):
        count, rotation, translation, _ = cv2.recoverPose(
            essentials[start : start + 3], pixels0, pixels1, shared, 1e9, mask=mask.copy()
        )[:4]
        if count > most:
            most = count
            best = RelativePose(
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
    max_error: float = 0.5,
) -> RelativePose | None:
    """The same as `estimate_relative_pose` by PoseLib's LO-RANSAC; intrinsics without skew.

    Raises:
        MissingExtraError: poselib is not installed.
    """
    poselib = _import_poselib()
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
        points0, points1, *cameras, {"max_epipolar_error": max_error, "seed": 0}, {}
    )
    inliers = np.asarray(info["inliers"], dtype=bool)
    if not inliers.any():
        return None
    return RelativePose(np.asarray(pose.R), np.asarray(pose.t), inliers)


POSE_ESTIMATORS: dict[str, Callable[..., RelativePose | None]] = {
    "OpenCV RANSAC": partial(estimate_relative_pose, method=cv2.RANSAC),
    "OpenCV MAGSAC++": estimate_relative_pose,
    "PoseLib LO-RANSAC": estimate_relative_pose_poselib,
}


def _import_poselib() -> ModuleType:
    try:
        import poselib
    except ImportError as error:
        raise MissingExtraError(
            "poselib is missing: pip install 'sfm-matchers[evaluation]'"
        ) from error
    return poselib


def estimate_homography(
    points0: ArrayLike, points1: ArrayLike, *, max_error: float = 3.0
) -> FloatArray | None:
    """Homography (3, 3) from image 0 to image 1 by OpenCV's RANSAC; None if there is none.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        max_error: largest distance of an inlier in image 1, in pixels.
    """
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < 4:
        return None
    homography, _ = cv2.findHomography(
        points0,
        points1,
        cv2.RANSAC,
        max_error,
        maxIters=MAX_ITERATIONS,
        confidence=CONFIDENCE,
    )
    return None if homography is None else np.asarray(homography, dtype=np.float64)


def estimate_homography_poselib(
    points0: ArrayLike, points1: ArrayLike, *, max_error: float = 3.0
) -> FloatArray | None:
    """The same as `estimate_homography` by PoseLib's LO-RANSAC.

    Raises:
        MissingExtraError: poselib is not installed.
    """
    poselib = _import_poselib()
    points0 = np.asarray(points0, dtype=np.float64).reshape(-1, 2)
    points1 = np.asarray(points1, dtype=np.float64).reshape(-1, 2)
    if len(points0) < 4:
        return None
    homography, info = poselib.estimate_homography(
        points0, points1, {"max_reproj_error": max_error, "seed": 0}, {}
    )
    return np.asarray(homography) if info["num_inliers"] >= 4 else None


HOMOGRAPHY_ESTIMATORS: dict[str, Callable[..., FloatArray | None]] = {
    "OpenCV RANSAC": estimate_homography,
    "PoseLib LO-RANSAC": estimate_homography_poselib,
}


def apply_homography(homography: ArrayLike, points: ArrayLike) -> FloatArray:
    """Map points (N, 2); infinite where a point goes to or through infinity."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    mapped = _homogeneous(points) @ np.asarray(homography, dtype=np.float64).T
    in_front = mapped[:, 2:] > 1e-12
    return np.where(in_front, mapped[:, :2] / np.where(in_front, mapped[:, 2:], 1.0), np.inf)


def homography_error(
    homography: ArrayLike | None, truth: ArrayLike, size: tuple[int, int]
) -> float:
    """Mean distance between the corners of image 0 carried over by two homographies.

    The measure of SuperGlue (CVPR 2020, section 5.1), LoFTR and LightGlue.

    Args:
        homography: (3, 3) estimated, from image 0 to image 1; None if the estimation failed.
        truth: (3, 3).
        size: (width, height) of image 0; corners are the centres of its corner pixels.

    Returns:
        Pixels of image 1; infinite without a homography.
    """
    if homography is None:
        return np.inf
    right, bottom = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=np.float64)
    # A homography has no sign: take the one that keeps the middle of the image in front.
    middle = np.array([right / 2, bottom / 2, 1.0])
    signed = [
        matrix * np.sign(matrix[2] @ middle)
        for matrix in (np.asarray(h, dtype=np.float64) for h in (homography, truth))
    ]
    mapped, expected = (apply_homography(matrix, corners) for matrix in signed)
    if not np.isfinite(mapped).all():
        return np.inf
    return float(np.linalg.norm(mapped - expected, axis=1).mean())


def matching_precision(
    points0: ArrayLike, points1: ArrayLike, pair: PosedPair, max_distance: float = 1e-4
) -> float:
    """Share of matches whose squared `symmetric_epipolar_distance` is small; 0 without matches."""
    distances = symmetric_epipolar_distance(
        points0, points1, pair.essential, pair.intrinsics0, pair.intrinsics1
    )
    return float((distances < max_distance).mean()) if len(distances) else 0.0


def coarse_precision_recall(
    points0: ArrayLike,
    points1: ArrayLike,
    homography: ArrayLike,
    size0: tuple[int, int],
    size1: tuple[int, int],
    cell: int = 8,
) -> tuple[float, float]:
    """How many matches reach the true coarse cell, and how many cells have such a match.

    A match is right if the true position lies in the cell centred on its point in image 1: within
    `cell / 2` along x and along y.

    Args:
        points0: (N, 2) pixels.
        points1: (N, 2) pixels.
        homography: (3, 3) true, from image 0 to image 1.
        size0: (width, height) of image 0.
        size1: of image 1.
        cell: side of a coarse cell in pixels.

    Returns:
        Precision: share of the matches that are right (0 without matches). Recall: share of the
        cells of image 0 with a right match, of those whose middle is visible in image 1.
    """
    points0, points1 = (np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in (points0, points1))
    columns, rows = size0[0] // cell, size0[1] // cell
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    middles = np.stack([x, y], axis=-1).reshape(-1, 2) * cell + (cell - 1) / 2
    expected = apply_homography(homography, middles)
    visible = ((expected > -0.5) & (expected < np.array(size1) - 0.5)).all(axis=1)
    right = (np.abs(apply_homography(homography, points0) - points1) <= cell / 2).all(axis=1)
    cells = np.floor((points0[right] + 0.5) / cell).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < [columns, rows])).all(axis=1)]
    found = np.zeros(columns * rows, dtype=bool)
    found[cells[:, 1] * columns + cells[:, 0]] = True
    precision = float(right.mean()) if right.size else 0.0
    return precision, float((found & visible).sum() / max(visible.sum(), 1))


def _homogeneous(points: ArrayLike) -> FloatArray:
    """Points (N, 2) to (N, 3) with third entry 1."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _normalise(points: ArrayLike, intrinsics: ArrayLike) -> FloatArray:
    """Pixels (N, 2) to rays (N, 3) with third entry 1."""
    return _homogeneous(points) @ np.linalg.inv(np.asarray(intrinsics, dtype=np.float64)).T


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

    @property
    def relative_center_errors(self) -> FloatArray:
        """The `center_errors` in percent of the `extent`."""
        return 100 * self.center_errors / self.extent

    def summary(self) -> str:
        """Return one line for a person."""
        if not self.num_registered:
            return f"0 of {self.num_images} images registered"
        relative = self.relative_center_errors
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
