"""Models compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.geometry.epipolar import FloatArray

if TYPE_CHECKING:
    import pycolmap


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
        rotation_errors.append(rotation_angle(difference))
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


def rotation_angle(rotation: FloatArray) -> float:
    """Return the angle of a rotation matrix in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
