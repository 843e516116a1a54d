"""Pinhole cameras and poses: where a point of the world falls on the picture, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.synthetic.arrays import FloatArray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; focal lengths and principal point in pixels, (0, 0) a pixel's centre."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_field_of_view(cls, width: int, height: int, degrees: float = 65.0) -> Camera:
        """A camera with square pixels, a centred principal point and this horizontal view."""
        if width < 1 or height < 1 or not 0 < degrees < 180:
            raise InputError(f"no camera has {width}x{height} pixels and {degrees} degrees of view")
        focal_length = float(0.5 * width / np.tan(np.radians(degrees) / 2))
        return cls(width, height, focal_length, focal_length, (width - 1) / 2, (height - 1) / 2)

    @property
    def K(self) -> FloatArray:  # noqa: N802 - the field's name
        """Calibration matrix, float64 (3, 3), in this project's pixel coordinates."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def to_colmap(self, camera_id: int = 1) -> pycolmap.Camera:
        """The same camera for COLMAP, whose principal point lies 0.5 further right and down."""
        return pycolmap.Camera(
            model="PINHOLE",
            width=self.width,
            height=self.height,
            params=[self.fx, self.fy, self.cx + 0.5, self.cy + 0.5],
            camera_id=camera_id,
        )


def look_at(position: FloatArray, target: FloatArray) -> FloatArray:
    """Pose (3, 4) of a level camera at `position` looking at `target`, both (3,) in the world.

    Raises:
        InputError: the camera would look straight up or down, or at its own position.
    """
    position = np.asarray(position, dtype=np.float64)
    forward = np.asarray(target, dtype=np.float64) - position
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) <= 1e-9 * np.linalg.norm(forward):
        raise InputError("a level camera cannot look straight up or down: move the target sideways")
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return np.column_stack([rotation, -rotation @ position])


def project(
    points: FloatArray, camera: Camera, cam_from_world: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Project world points (..., 3) to pixels (..., 2) and z-depths (...,), in metres.

    Points at or behind the camera have a depth <= 0; their pixels mean nothing.
    """
    in_camera = points @ cam_from_world[:, :3].T + cam_from_world[:, 3]
    depth = in_camera[..., 2]
    divisor = np.where(depth > 0, depth, 1.0)[..., None]
    pixels = in_camera[..., :2] / divisor * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    return pixels, depth


def unproject(depth: FloatArray, camera: Camera, cam_from_world: FloatArray) -> FloatArray:
    """World points (H, W, 3), float64, of a depth map (H, W); NaN where the depth is 0."""
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(camera.K).T
    in_camera = rays * np.where(depth > 0, depth, np.nan)[..., None]
    return (in_camera - cam_from_world[:, 3]) @ cam_from_world[:, :3]
