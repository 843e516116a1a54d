"""How sure the poses of a model are: their covariance in its adjustment.

The covariance of an adjustment depends on what is held fixed there. Here nothing is: position,
orientation and scale of the whole are those that fit all camera centres best (an S-transformation;
Baarda, "S-transformations and criterion matrices", 1973), as after an alignment with the truth.
Centres on a line, as of a straight walk, are not moved by a turn about it: there rotations tell it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.mapping.adjustment import reprojection_errors, robust_adjustment, robust_scale

FloatArray = NDArray[np.float64]

# Standard deviation of a coordinate over the median length of a two-dimensional Gaussian error.
SIGMA_OF_MEDIAN = 1 / np.sqrt(2 * np.log(2))
# A photo is badly held if its centre is this many times less certain than the median one, and than
# a share of the extent, or if it is less certain than a larger share.
MANY_TIMES, SMALL_SHARE, LARGE_SHARE = 5.0, 0.002, 0.02
# A radian counts as this share of the extent: little where centres tell how the whole is turned.
ROTATION_WEIGHT = 0.1
MAX_IMAGES = 500  # the matrix of all poses together is dense


@dataclass(frozen=True)
class PoseCovariance:
    """How sure the pose of a photo is, by the noise of its model's observations alone.

    Attributes:
        center: standard deviation of the camera centre, the root of the sum over three axes, as a
            share of the extent (largest distance between two camera centres).
        rotation: of the rotation, in degrees, likewise.
    """

    center: float
    rotation: float


def pose_covariances(
    model: pycolmap.Reconstruction,
    fixed_cameras: Collection[int] = (),
    *,
    refines_principal_point: bool = False,
) -> dict[str, PoseCovariance]:
    """Estimate how sure each pose is.

    Args:
        model: adjusted; left as it is.
        fixed_cameras: ids of cameras whose intrinsics are known.
        refines_principal_point: whether principal points were adjusted.

    Returns:
        By name of the photo; empty where the observations do not determine the poses, or the model
        has fewer than three photos or more than `MAX_IMAGES`.
    """
    image_ids = sorted(model.reg_image_ids())
    if not 3 <= len(image_ids) <= MAX_IMAGES or not model.num_points3D():
        return {}
    joint = _joint_covariance(model, image_ids, fixed_cameras, refines_principal_point)
    if joint is None:
        return {}
    images = [model.images[image_id] for image_id in image_ids]
    poses = [image.cam_from_world() for image in images]
    rotations = np.array([pose.rotation.matrix() for pose in poses])
    translations = np.array([pose.translation for pose in poses])
    joint = _noise(model) ** 2 * _of_world(joint, rotations, translations)
    centers = -np.einsum("nji,nj->ni", rotations, translations)
    free = _without_gauge(centers)
    variances = np.diag(free @ joint @ free.T).reshape(-1, 6).clip(min=0)
    extent = np.linalg.norm(centers[:, None] - centers[None], axis=-1).max()
    return {
        image.name: PoseCovariance(
            float(np.sqrt(variance[3:].sum()) / extent),
            float(np.degrees(np.sqrt(variance[:3].sum()))),
        )
        for image, variance in zip(images, variances, strict=True)
    }


def badly_held(covariances: Mapping[str, PoseCovariance]) -> list[str]:
    """Names of the photos whose position is far less certain than the others', the worst first."""
    if not covariances:
        return []
    median = float(np.median([covariance.center for covariance in covariances.values()]))
    limit = min(LARGE_SHARE, max(SMALL_SHARE, MANY_TIMES * median))
    worst_first = sorted(covariances, key=lambda name: -covariances[name].center)
    return [name for name in worst_first if covariances[name].center > limit]


def _noise(model: pycolmap.Reconstruction) -> float:
    """Standard deviation of a coordinate of an observation, in pixels.

    Residuals are smaller by what points and poses take of them, much so where tracks are short.
    """
    errors = np.concatenate(list(reprojection_errors(model).values()))
    num_params = 3 * model.num_points3D() + 6 * model.num_reg_images()
    redundancy = max(1, 2 * len(errors) - num_params) / (2 * len(errors))
    return float(SIGMA_OF_MEDIAN * np.median(errors) / np.sqrt(redundancy))


def _joint_covariance(
    model: pycolmap.Reconstruction,
    image_ids: list[int],
    fixed_cameras: Collection[int],
    refines_principal_point: bool,
) -> FloatArray | None:
    """Covariance (6N, 6N) of rotation and translation of all poses, of unit noise."""
    adjustment = robust_adjustment(1, refines_principal_point=refines_principal_point)
    adjustment.ceres.loss_function_scale = robust_scale(model)
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in image_ids:
        config.add_image(image_id)
    for camera_id in fixed_cameras:
        config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.THREE_POINTS)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(adjustment, config, model)
    options = pycolmap.BACovarianceOptions(params=pycolmap.BACovarianceOptionsParams.POSES)
    covariance = pycolmap.estimate_ba_covariance(options, model, adjuster)
    if covariance is None:
        return None
    joint = np.zeros((6 * len(image_ids), 6 * len(image_ids)))
    for row, image_id in enumerate(image_ids):
        for column, other_id in enumerate(image_ids[: row + 1]):
            if row == column:
                block = covariance.get_cam_cov_from_world(image_id)
            else:
                block = covariance.get_cam_cross_cov_from_world(image_id, other_id)
            if block is None or block.shape != (6, 6) or not np.isfinite(block).all():
                return None
            joint[6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = block
            joint[6 * column : 6 * column + 6, 6 * row : 6 * row + 6] = block.T
    return joint


def _cross(vectors: FloatArray) -> FloatArray:
    """Matrices (N, 3, 3) of the cross products with vectors (N, 3)."""
    matrices = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
    return matrices - matrices.transpose(0, 2, 1)


def _of_world(joint: FloatArray, rotations: FloatArray, translations: FloatArray) -> FloatArray:
    """From (rotation, translation) of cam_from_world to (rotation, centre) in the world.

    With R' = exp(w) R and t' = t + d, the centre -R^T t moves by -R^T (d + t x w), and the camera
    turns in the world by -R^T w. The tangent of Ceres' quaternions is w / 2.
    """
    jacobian = np.zeros((len(rotations), 6, 6))
    transposed = rotations.transpose(0, 2, 1)
    jacobian[:, :3, :3] = -2 * transposed
    jacobian[:, 3:, :3] = -2 * transposed @ _cross(translations)
    jacobian[:, 3:, 3:] = -transposed
    blocks = joint.reshape(len(rotations), 6, len(rotations), 6)
    result = np.einsum("nab,nbmd,mcd->namc", jacobian, blocks, jacobian, optimize=True)
    return np.asarray(result.reshape(joint.shape))


def _without_gauge(centers: FloatArray) -> FloatArray:
    """The matrix (6N, 6N) that takes off the similarity transform which the poses share."""
    centred = centers - centers.mean(axis=0)
    count = len(centers)
    weight = ROTATION_WEIGHT * np.linalg.norm(centers[:, None] - centers[None], axis=-1).max()
    motion = np.zeros((count, 3, 7))  # of the centres by rotation, translation and scale
    motion[:, :, :3] = -_cross(centred)
    motion[:, :, 3:6] = np.eye(3)
    motion[:, :, 6] = centred
    of_each = np.zeros((count, 6, 7))
    of_each[:, :3, :3] = np.eye(3)
    of_each[:, 3:, :] = motion
    effect = of_each.reshape(6 * count, 7)
    weights = np.tile([weight] * 3 + [1.0] * 3, count)
    fitted = np.linalg.pinv(effect * weights[:, None]) * weights  # (7, 6N)
    return np.eye(6 * count) - effect @ fitted
