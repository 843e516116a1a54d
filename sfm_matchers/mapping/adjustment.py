"""The last, robust bundle adjustment."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pycolmap

logger = logging.getLogger(__name__)


# Pixels. No detector is more exact, and a smaller scale would make the adjustment ill-conditioned.
MIN_ROBUST_SCALE = 0.1

# Change of the cost, relative, at which the last adjustment ends. Points with wrong observations
# converge slowly; so each step places all points for its cameras, and a few steps are enough.
ROBUST_TOLERANCE = 1e-7
# The same where another adjustment follows, which ends where it would have.
DRAFT_TOLERANCE = 3e-3

# Where the errors have fallen by more, as after a change of the cameras, the loss had another scale
# than they deserve, and the adjustment goes on.
SAME_SCALE, MAX_ROUNDS = 0.9, 3

MIN_OBSERVATIONS = 4  # of a registered photo: three points do not determine its pose


def adjust_robustly(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    fixed_cameras: Collection[int] = (),
    scale: float = np.inf,
    *,
    is_draft: bool = False,
) -> None:
    """Adjust a model once more under a Cauchy loss, refining what `adjustment` says.

    The mappers minimise squares, or Huber's loss, under which the few observations near their bound
    of 4 pixels outweigh the many exact ones. The scale of the loss is 2.385 standard deviations
    (95 % efficient for Gaussian errors; Holland and Welsch, "Robust regression using iteratively
    reweighted least-squares", 1977), which is twice the median length of such an error in two
    dimensions.

    No point keeps two observations of one photo, see `drop_doubled_observations`.

    Args:
        model: it is changed.
        adjustment: what is refined.
        fixed_cameras: ids of cameras whose intrinsics are kept.
        scale: of the loss, in pixels, that is not too small, where the errors are larger now.
        is_draft: another adjustment follows, so that a rough one is enough.
    """
    logger.debug("Last adjustment of a model of %d photos", model.num_reg_images())
    drop_doubled_observations(model)
    observations = Observations(model)
    scale = min(scale, _scale(observations.errors(model).values()))
    adjustment.ceres.solver_options.use_inner_iterations = not is_draft
    if is_draft:
        solve_robustly(model, adjustment, fixed_cameras, scale, DRAFT_TOLERANCE)
    for _ in range(0 if is_draft else MAX_ROUNDS):
        solve_robustly(model, adjustment, fixed_cameras, scale, ROBUST_TOLERANCE)
        before, scale = scale, _scale(observations.errors(model).values())
        if scale > SAME_SCALE * before:
            break
    _drop_what_does_not_fit(model)


def place_points(model: pycolmap.Reconstruction, num_threads: int, scale: float) -> None:
    """Adjust the points alone, roughly: poses and cameras fit already, and all are adjusted later.

    Args:
        model: it is changed.
        num_threads: of the adjustment.
        scale: of the Cauchy loss, in pixels.
    """
    drop_doubled_observations(model)
    adjustment = robust_adjustment(num_threads)
    every = set(model.cameras)
    solve_robustly(model, adjustment, every, scale, DRAFT_TOLERANCE, only_points=True)
    _drop_what_does_not_fit(model)


def _drop_what_does_not_fit(model: pycolmap.Reconstruction) -> None:
    """Remove observations, points and photos by COLMAP's bounds."""
    bounds = pycolmap.IncrementalMapperOptions()
    manager = pycolmap.ObservationManager(model)
    manager.filter_all_points3D(bounds.filter_max_reproj_error, bounds.filter_min_tri_angle)
    # Photos that no point supports any more are not registered, and leave the model.
    unsupported = manager.filter_frames(0, np.inf, np.inf, MIN_OBSERVATIONS)
    for frame_id in unsupported:
        manager.deregister_frame(frame_id)
    if unsupported:
        model.tear_down()


def robust_scale(model: pycolmap.Reconstruction) -> float:
    """The scale in pixels of the Cauchy loss that suits the errors of a model; see above."""
    return _scale(reprojection_errors(model).values())


def _scale(errors: Iterable[np.ndarray]) -> float:
    return max(MIN_ROBUST_SCALE, 2 * float(np.median(np.concatenate(list(errors)))))


def drop_doubled_observations(model: pycolmap.Reconstruction) -> int:
    """Of observations of one point in one photo, keep the one with the smallest error.

    COLMAP's triangulation joins tracks that have a photo in common, which then count double there.
    A point that only one photo observes goes.

    Returns:
        How many observations were dropped.
    """
    dropped = 0
    for image_id in sorted(model.reg_image_ids()):
        image = model.images[image_id]
        keypoints = np.array(image.get_observation_point2D_idxs(), dtype=np.int64)
        owners = [point2D.point3D_id for point2D in image.get_observation_points2D()]
        point_ids = np.array(owners, dtype=np.uint64)
        unique, counts = np.unique(point_ids, return_counts=True)
        for point_id in unique[counts > 1].tolist():
            rivals = keypoints[point_ids == point_id].tolist()
            projected = image.project_point(model.points3D[point_id].xyz)
            if projected is not None:
                points2D = [image.point2D(index).xy for index in rivals]
                errors = np.linalg.norm(np.array(points2D) - projected, axis=1)
                rivals.insert(0, rivals.pop(int(errors.argmin())))
            for index in rivals[1:]:
                if image.point2D(index).has_point3D():  # the whole point may be gone by now
                    model.delete_observation(image_id, index)
                    dropped += 1
    return dropped


def robust_adjustment(
    num_threads: int, *, refines_principal_point: bool = False
) -> pycolmap.BundleAdjustmentOptions:
    """COLMAP's own options of a global adjustment, under a Cauchy loss."""
    pipeline = pycolmap.IncrementalPipelineOptions()
    pipeline.num_threads = num_threads
    adjustment = pipeline.get_global_bundle_adjustment()
    adjustment.refine_principal_point = refines_principal_point
    adjustment.ceres.solver_options.num_threads = num_threads
    adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    adjustment.print_summary = False
    return adjustment


def solve_robustly(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    fixed_cameras: Collection[int],
    scale: float,
    tolerance: float,
    *,
    only_points: bool = False,
) -> None:
    """Adjust a model under a Cauchy loss of a scale in pixels, and remove nothing.

    It ends where a step changes the cost by less than a share of it, the tolerance. With
    `only_points` poses are kept.
    """
    adjustment.print_summary = False
    adjustment.ceres.solver_options.function_tolerance = tolerance
    adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    adjustment.ceres.loss_function_scale = scale
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in fixed_cameras:
        config.set_constant_cam_intrinsics(camera_id)
    if only_points:
        for frame_id in model.reg_frame_ids():
            config.set_constant_rig_from_world_pose(frame_id)
    else:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(adjustment, config, model).solve()


def reprojection_errors(model: pycolmap.Reconstruction) -> dict[str, np.ndarray]:
    """Return, for every registered image, its observations' errors (M,) in pixels."""
    return Observations(model).errors(model)


def median_error(model: pycolmap.Reconstruction, names: Collection[str] | None = None) -> float:
    """Return the median reprojection error in pixels, of some photos or all; infinite of none."""
    errors = [
        own for name, own in reprojection_errors(model).items() if names is None or name in names
    ]
    return float(np.median(np.concatenate(errors))) if errors else float("inf")


class Observations:
    """A model's observations as arrays. To read them costs more than all that is done with them, so
    that they are read once where poses, cameras and points change and observations do not."""

    def __init__(self, model: pycolmap.Reconstruction) -> None:
        # Arrays first: a look-up in pycolmap's own map costs more than all the rest.
        self.point_ids = np.array(sorted(model.points3D), dtype=np.uint64)
        self.of_image: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for image_id in model.reg_image_ids():
            observations = list(model.images[image_id].get_observation_points2D())
            observed = np.array([point2D.xy for point2D in observations]).reshape(-1, 2)
            seen = np.array([point2D.point3D_id for point2D in observations], dtype=np.uint64)
            self.of_image[image_id] = observed, np.searchsorted(self.point_ids, seen)

    def errors(self, model: pycolmap.Reconstruction) -> dict[str, np.ndarray]:
        """As `reprojection_errors`, of the model as it is now."""
        world_points = point_positions(model, self.point_ids.tolist())
        errors = {}
        for image_id, (observed, seen) in self.of_image.items():
            image = model.images[image_id]
            cam_from_world = image.cam_from_world().matrix()
            in_camera = world_points[seen] @ cam_from_world[:, :3].T + cam_from_world[:, 3]
            camera = model.cameras[image.camera_id]
            projected = camera.img_from_cam(in_camera, check_cheirality=False)
            errors[image.name] = np.linalg.norm(projected - observed, axis=1)
        return errors


def point_positions(model: pycolmap.Reconstruction, point_ids: Sequence[int]) -> np.ndarray:
    """Return the points (N, 3) of a model."""
    points3D = model.points3D
    return np.array([points3D[i].xyz for i in point_ids], dtype=np.float64).reshape(-1, 3)
