"""A model without some of its observations, which then tell how well it predicts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.mapping.adjustment import point_positions

FloatArray = NDArray[np.float64]
Element = tuple[int, int]
"""Of a track: image and number of the keypoint."""

# With one of three observations held out, two are left to estimate the point from.
MIN_TRACK_LENGTH = 3
# Of the held-out error's square: what each additional parameter must gain. Systematic errors of a
# fortieth of the noise gain as much.
MARGIN = 0.0005
# Standard errors of the mean gain: below, it may be chance.
SIGNIFICANT, HIGHLY_SIGNIFICANT = 2.0, 3.0
CLEAR_GAIN = 0.01  # of the mean loss: from what is rarely true to what explains it
NOT_PROJECTED = 1e3  # pixels; the error of a point behind the camera
# Observations of the part that is used: more hardly tell more, and cost.
MAX_OBSERVATIONS, MAX_OBSERVATIONS_PER_IMAGE = 12_000, 300


@dataclass(frozen=True)
class HeldOut:
    """Observations that a model was estimated without.

    Attributes:
        image_ids, camera_ids, point_ids: (H,).
        pixels: (H, 2), COLMAP's.
    """

    image_ids: NDArray[np.int64]
    camera_ids: NDArray[np.int64]
    point_ids: NDArray[np.int64]
    pixels: FloatArray

    def errors(self, model: pycolmap.Reconstruction) -> FloatArray:
        """Reprojection errors (H,) in pixels; large where a point is not projected at all."""
        world = point_positions(model, self.point_ids.tolist())
        errors = np.full(len(world), NOT_PROJECTED)
        for image_id in np.unique(self.image_ids).tolist():
            mine = self.image_ids == image_id
            image = model.images[image_id]
            cam_from_world = image.cam_from_world().matrix()
            in_camera = world[mine] @ cam_from_world[:, :3].T + cam_from_world[:, 3]
            projected = np.asarray(model.cameras[image.camera_id].img_from_cam(in_camera))
            errors[mine] = np.linalg.norm(projected - self.pixels[mine], axis=1)
        return np.nan_to_num(errors, nan=NOT_PROJECTED, posinf=NOT_PROJECTED)

    def losses(self, model: pycolmap.Reconstruction, scale: float) -> FloatArray:
        """Cauchy's loss (H,) of a scale in pixels, which the few wrong observations hardly change.

        It is in square pixels.
        """
        losses: FloatArray = scale**2 * np.log1p((self.errors(model) / scale) ** 2)
        return losses


def split_observations(
    model: pycolmap.Reconstruction, seed: int = 0
) -> tuple[pycolmap.Reconstruction, HeldOut]:
    """Copy a model, or a part of a large one, without a third of each longer track.

    Returns:
        The copy, and the observations that it lacks.
    """
    rng = np.random.default_rng(seed)
    limit = max(MAX_OBSERVATIONS, MAX_OBSERVATIONS_PER_IMAGE * model.num_reg_images())
    points3D = model.points3D
    tracks: dict[int, list[Element]] = {}
    held: list[tuple[int, Element]] = []
    for point_id in rng.permutation(np.array(sorted(points3D), dtype=np.int64)).tolist():
        if limit < 0:
            break
        elements = [(e.image_id, e.point2D_idx) for e in points3D[point_id].track.elements]
        limit -= len(elements)
        for _ in range(len(elements) // MIN_TRACK_LENGTH):
            held.append((point_id, elements.pop(int(rng.integers(len(elements))))))
        tracks[point_id] = elements
    images = {image_id: model.images[image_id] for image_id in model.reg_image_ids()}
    points2D = {image_id: image.points2D for image_id, image in images.items()}
    held_out = HeldOut(
        np.array([image_id for _, (image_id, _) in held], dtype=np.int64),
        np.array([images[image_id].camera_id for _, (image_id, _) in held], dtype=np.int64),
        np.array([point_id for point_id, _ in held], dtype=np.int64),
        np.array([points2D[image_id][index].xy for _, (image_id, index) in held]).reshape(-1, 2),
    )
    return _with_tracks(model, tracks), held_out


def _with_tracks(
    model: pycolmap.Reconstruction, tracks: Mapping[int, list[Element]]
) -> pycolmap.Reconstruction:
    """The registered images of a model with these observations of its points only."""
    used: dict[int, dict[int, int]] = {}  # image -> its keypoint -> that of the copy
    for elements in tracks.values():
        for image_id, index in elements:
            mine = used.setdefault(image_id, {})
            mine.setdefault(index, len(mine))
    part = pycolmap.Reconstruction()
    for image_id in sorted(model.reg_image_ids()):
        image = model.images[image_id]
        points2D = image.points2D
        if image.camera_id not in part.cameras:
            part.add_camera_with_trivial_rig(copy.copy(model.cameras[image.camera_id]))
        keypoints = [points2D[index].xy for index in used.get(image_id, {})]
        same = pycolmap.Image(
            name=image.name,
            keypoints=np.array(keypoints).reshape(-1, 2),
            camera_id=image.camera_id,
            image_id=image_id,
        )
        part.add_image_with_trivial_frame(same, image.cam_from_world())
    for point_id, elements in tracks.items():
        track = pycolmap.Track()
        for image_id, index in elements:
            track.add_element(image_id, used[image_id][index])
        point = model.points3D[point_id]
        part.add_point3D_with_id(point_id, pycolmap.Point3D(xyz=point.xyz, track=track))
    return part


def is_better(
    losses: FloatArray, before: FloatArray, num_more: float, significant: float = SIGNIFICANT
) -> bool:
    """True if other cameras are worth their additional parameters.

    Args:
        losses: (H,) of the held-out observations with them.
        before: (H,) of the same ones with the cameras before.
        num_more: additional parameters; below 0 where they have fewer: chance may speak for those.
        significant: standard errors of the mean gain; below, it counts as chance.
    """
    gains = before - losses
    chance = significant * float(gains.std()) / np.sqrt(len(gains)) if num_more >= 0 else 0.0
    return float(gains.mean()) > max(chance, MARGIN * num_more * float(before.mean()))


def is_clearly_better(losses: FloatArray, before: FloatArray, num_more: float) -> bool:
    """True if cameras that are rare are worth their parameters; arguments as of `is_better`."""
    has_gained = losses.sum() < (1 - CLEAR_GAIN) * before.sum()
    return bool(has_gained) and is_better(losses, before, num_more, HIGHLY_SIGNIFICANT)
