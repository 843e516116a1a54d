"""What a report shows of a model in 3D, and of its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_matchers.mapping.adjustment import reprojection_errors
from sfm_matchers.mapping.diagnosis import MatchGraph, count
from sfm_matchers.photos.images import up_in_camera
from sfm_matchers.reports.drawing import robust_bounds

MAX_POINTS = 60_000  # points in the 3D view
FLAT = 0.12  # least spread of points over all of it: of land from a kite 0.06


@dataclass(frozen=True)
class _ImageRow:
    name: str
    registered: bool
    num_keypoints: int
    num_observations: int  # keypoints that see a 3D point
    mean_error: float  # pixels; NaN without observations


@dataclass(frozen=True)
class _Scene:
    """The model for drawing: z up, y away from the viewer, most of it within 1 of the origin."""

    points: np.ndarray  # (N, 3)
    colors: np.ndarray  # (N, 3) uint8 RGB
    errors: np.ndarray  # (N,) pixels
    track_lengths: np.ndarray  # (N,) int
    frusta: np.ndarray  # (C, 5, 3): centre and the four image corners of each camera
    camera_names: list[str]  # image of each camera
    num_points_total: int
    upright: np.ndarray  # (3, 3) shown = (upright @ position - middle) / radius
    middle: np.ndarray  # (3,)
    radius: float
    is_up_known: bool = False

    def shown(self, positions: np.ndarray) -> np.ndarray:
        """Return positions (..., 3) of the model as they are drawn."""
        return (positions @ self.upright.T - self.middle) / self.radius


def _image_statistics(
    graph: MatchGraph, errors: Mapping[str, np.ndarray] | None
) -> list[_ImageRow]:
    errors = errors or {}
    rows = []
    for name, num_keypoints in zip(graph.names, graph.num_keypoints.tolist(), strict=True):
        own = errors.get(name, np.zeros(0))
        mean_error = float(own.mean()) if len(own) else float("nan")
        rows.append(_ImageRow(name, name in errors, num_keypoints, len(own), mean_error))
    return rows


def model_errors(model: pycolmap.Reconstruction | None) -> dict[str, np.ndarray]:
    """Return the reprojection errors of a model by photo, none without one."""
    return {} if model is None else reprojection_errors(model)


def track_lengths(points: Iterable[pycolmap.Point3D]) -> np.ndarray:
    """Return in how many photos each point is seen (N,); a photo with two observations is one."""
    seen = (len({element.image_id for element in point.track.elements}) for point in points)
    return np.fromiter(seen, dtype=np.int64)


def _no_scene() -> _Scene:
    none = np.zeros((0, 3))
    return _Scene(
        points=none,
        colors=none.astype(np.uint8),
        errors=np.zeros(0),
        track_lengths=np.zeros(0, dtype=int),
        frusta=np.zeros((0, 5, 3)),
        camera_names=[],
        num_points_total=0,
        upright=np.eye(3),
        middle=np.zeros(3),
        radius=1.0,
    )


def build_scene(
    model: pycolmap.Reconstruction | None,
    orientations: Mapping[str, int] | None = None,
    max_points: int | None = None,
    earth: np.ndarray | None = None,
) -> _Scene:
    """Return what is drawn of a model.

    Args:
        model: or None, of which nothing is drawn.
        orientations: EXIF's, of the photos that have one: the way up in which they were taken.
        max_points: of more, so many are drawn, evenly spread over their ids.
        earth: (3, 3) east, north and up, a row each, in the model's world; None: unknown.
    """
    if model is None:
        return _no_scene()
    point_ids = sorted(model.points3D)
    most = min(len(point_ids), max_points or MAX_POINTS)
    kept = np.linspace(0, len(point_ids) - 1, most).astype(np.int64)
    chosen = [model.points3D[point_ids[index]] for index in kept.tolist()]
    points = np.array([point.xyz for point in chosen], dtype=np.float64).reshape(-1, 3)

    images = [model.images[image_id] for image_id in sorted(model.reg_image_ids())]
    rotations, centers = _poses(images)
    ups = np.array([up_in_camera((orientations or {}).get(image.name, 1)) for image in images])
    upright = _upright_rotation(points, rotations, centers, ups.reshape(-1, 3), earth)
    low, high = robust_bounds(points @ upright.T, centers @ upright.T)
    middle, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    size = 0.25 * radius / np.sqrt(max(len(images), 9))
    cameras = [model.cameras[image.camera_id] for image in images]
    frusta = placed_frusta(cameras, rotations, centers, size)
    return _Scene(
        points=(points @ upright.T - middle) / radius,
        colors=np.array([point.color for point in chosen], dtype=np.uint8).reshape(-1, 3),
        errors=np.array([point.error for point in chosen], dtype=np.float64),
        track_lengths=track_lengths(chosen),
        frusta=(frusta @ upright.T - middle) / radius,
        camera_names=[image.name for image in images],
        num_points_total=len(point_ids),
        upright=upright,
        middle=middle,
        radius=radius,
        is_up_known=earth is not None,
    )


def _poses(images: Sequence[pycolmap.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return rotations (C, 3, 3) from camera to world, and centres (C, 3)."""
    world_from_cam = np.array([image.cam_from_world().inverse().matrix() for image in images])
    world_from_cam = world_from_cam.reshape(-1, 3, 4)
    return world_from_cam[:, :, :3], world_from_cam[:, :, 3]


def placed_frusta(
    cameras: Sequence[pycolmap.Camera], rotations: np.ndarray, centers: np.ndarray, size: float
) -> np.ndarray:
    """Return centre and image corners (C, 5, 3) in the world, at a depth of `size`.

    Args:
        cameras: of which each has a frustum.
        rotations: (C, 3, 3) from camera to world.
        centers: (C, 3).
        size: in units of the world.
    """
    frusta = size * _frusta(cameras)
    return np.einsum("cij,ckj->cki", rotations, frusta) + centers[:, None]


def _frusta(cameras: Sequence[pycolmap.Camera]) -> np.ndarray:
    """Return centre and image corners (C, 5, 3) in the camera frame, at depth 1."""
    frusta = np.zeros((len(cameras), 5, 3))
    for frustum, camera in zip(frusta, cameras, strict=True):
        # Wide fisheye and spherical cameras have no such pyramid: theirs is drawn at 90 degrees.
        focal = max(camera.mean_focal_length(), max(camera.width, camera.height) / 2)
        x, y = camera.width / 2 / focal, camera.height / 2 / focal
        frustum[1:] = [(-x, -y, 1), (x, -y, 1), (x, y, 1), (-x, y, 1)]
    return frusta


def _upright_rotation(
    points: np.ndarray,
    rotations: np.ndarray,
    centers: np.ndarray,
    ups: np.ndarray | None = None,
    earth: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rotation (3, 3) from the model's arbitrary world to z up, y away from the viewer.

    Where the earth is unknown, so is gravity. Photographers hold the camera upright, so up is the
    mean of the cameras' up axes where these agree; otherwise (photos straight down from the air) it
    is the direction in which the points spread least, towards the cameras. Of photos down from the
    air that all have much the same heading nothing tells. The viewer looks along the mean viewing
    direction where one exists, otherwise north, or across the widest spread of the points.

    Args:
        points: (N, 3).
        rotations: (C, 3, 3) from camera to world.
        centers: (C, 3).
        ups: (C, 3) what is up in each photo, in the camera's frame; None: against the y axis.
        earth: see `build_scene`.
    """
    positions = points if len(points) >= 3 else np.concatenate([points, centers])
    if len(positions) == 0:
        return np.eye(3) if earth is None else earth
    offsets = positions - np.median(positions, axis=0)
    distance = np.linalg.norm(offsets, axis=1)
    offsets = offsets[distance <= np.percentile(distance, 90)]
    moments, axes = np.linalg.eigh(offsets.T @ offsets)  # columns, least spread first

    if ups is None:
        ups = np.tile([0.0, -1.0, 0.0], (len(rotations), 1))
    up = np.einsum("cij,cj->ci", rotations, ups).mean(axis=0) if len(rotations) else np.zeros(3)
    # Photos that look down at something from all around disagree too, and their mean is right.
    agreement, is_flat = float(np.linalg.norm(up)), moments[0] < FLAT**2 * moments.sum()
    is_from_above = is_flat and agreement < 0.9 and abs(axes[:, 0] @ up) < 0.5 * agreement
    if earth is not None:
        up = earth[2]
    elif agreement < 0.5 or is_from_above:
        side = (centers - np.median(positions, axis=0)).mean(axis=0) if len(centers) else axes[:, 0]
        up = axes[:, 0] if side @ axes[:, 0] >= 0 else -axes[:, 0]
    up = up / np.linalg.norm(up)

    away = _perpendicular(rotations[:, :, 2].mean(axis=0), up) if len(rotations) else np.zeros(3)
    if np.linalg.norm(away) < 0.5:
        across = np.cross(up, _perpendicular(axes[:, 2], up))
        away = across if earth is None else earth[1]
    if np.linalg.norm(away) < 1e-6:  # the points spread along the vertical only
        away = _perpendicular(axes[:, 1], up)
    away = away / np.linalg.norm(away)
    return np.stack([np.cross(away, up), away, up])


def _perpendicular(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return vector - (vector @ axis) * axis


def _scene_note(scene: _Scene, model: pycolmap.Reconstruction | None) -> str:
    if model is None:
        return "No model was built, so there is nothing to show in 3D."
    shown, total = len(scene.points), scene.num_points_total
    share = f"{shown:,} points" if shown == total else f"{shown:,} of {total:,} points"
    return f"{share}, {count(len(scene.frusta), 'camera')}. {about_up(scene)}"


def about_up(scene: _Scene) -> str:
    """A sentence: whence it is known what is up."""
    return f"Up is {'as georeferenced' if scene.is_up_known else 'estimated'}."
