"""What a report shows of a model in 3D, and of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_matchers.mapping.adjustment import point_positions, reprojection_errors
from sfm_matchers.mapping.diagnosis import MatchGraph, count
from sfm_matchers.reports.drawing import (
    robust_bounds,
)

MAX_POINTS = 60_000  # points in the 3D view


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
    frusta: np.ndarray  # (C, 5, 3): centre and the four image corners of each camera
    camera_images: list[int]  # image of each camera
    num_points_total: int


def _image_statistics(graph: MatchGraph, model: pycolmap.Reconstruction | None) -> list[_ImageRow]:
    errors = {} if model is None else reprojection_errors(model)
    rows = []
    for name, num_keypoints in zip(graph.names, graph.num_keypoints.tolist(), strict=True):
        own = errors.get(name, np.zeros(0))
        mean_error = float(own.mean()) if len(own) else float("nan")
        rows.append(_ImageRow(name, name in errors, num_keypoints, len(own), mean_error))
    return rows


def _no_scene() -> _Scene:
    none = np.zeros((0, 3))
    return _Scene(none, none.astype(np.uint8), np.zeros((0, 5, 3)), [], 0)


def _build_scene(model: pycolmap.Reconstruction | None, graph: MatchGraph) -> _Scene:
    if model is None:
        return _no_scene()
    point_ids = sorted(model.points3D)
    kept = np.linspace(0, len(point_ids) - 1, min(len(point_ids), MAX_POINTS)).astype(np.int64)
    chosen = [point_ids[index] for index in kept.tolist()]
    points = point_positions(model, chosen)
    colors = np.array([model.points3D[i].color for i in chosen], dtype=np.uint8).reshape(-1, 3)

    row_of = {name: row for row, name in enumerate(graph.names)}
    images = [model.images[image_id] for image_id in sorted(model.reg_image_ids())]
    world_from_cam = np.array([image.cam_from_world().inverse().matrix() for image in images])
    world_from_cam = world_from_cam.reshape(-1, 3, 4)
    rotations, centers = world_from_cam[:, :, :3], world_from_cam[:, :, 3]

    upright = _upright_rotation(points, rotations, centers)
    low, high = robust_bounds(points @ upright.T, centers @ upright.T)
    middle, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    frusta = _frusta(model, images) * 0.25 * radius / np.sqrt(max(len(images), 9))
    frusta = np.einsum("cij,ckj->cki", rotations, frusta) + centers[:, None]
    return _Scene(
        points=(points @ upright.T - middle) / radius,
        colors=colors,
        frusta=(frusta @ upright.T - middle) / radius,
        camera_images=[row_of[image.name] for image in images],
        num_points_total=len(point_ids),
    )


def _frusta(model: pycolmap.Reconstruction, images: Sequence[pycolmap.Image]) -> np.ndarray:
    """Return centre and image corners (C, 5, 3) in the camera frame, at depth 1."""
    frusta = np.zeros((len(images), 5, 3))
    for frustum, image in zip(frusta, images, strict=True):
        camera = model.cameras[image.camera_id]
        # Wide fisheye and spherical cameras have no such pyramid: theirs is drawn at 90 degrees.
        focal = max(camera.mean_focal_length(), max(camera.width, camera.height) / 2)
        x, y = camera.width / 2 / focal, camera.height / 2 / focal
        frustum[1:] = [(-x, -y, 1), (x, -y, 1), (x, y, 1), (-x, y, 1)]
    return frusta


def _upright_rotation(points: np.ndarray, rotations: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) from the model's arbitrary world to z up, y away from the viewer.

    Gravity is unknown. Photographers hold the camera upright, so up is the mean of the cameras'
    up axes where these agree; otherwise (photos straight down from the air) it is the direction in
    which the points spread least, towards the cameras. The viewer looks along the mean viewing
    direction where one exists, otherwise across the widest spread of the points.

    Args:
        points: (N, 3).
        rotations: (C, 3, 3) from camera to world.
        centers: (C, 3).
    """
    positions = points if len(points) >= 3 else np.concatenate([points, centers])
    if len(positions) == 0:
        return np.eye(3)
    offsets = positions - np.median(positions, axis=0)
    distance = np.linalg.norm(offsets, axis=1)
    offsets = offsets[distance <= np.percentile(distance, 90)]
    _, axes = np.linalg.eigh(offsets.T @ offsets)  # columns, least spread first

    up = -rotations[:, :, 1].mean(axis=0) if len(rotations) else np.zeros(3)
    if np.linalg.norm(up) < 0.5:
        side = (centers - np.median(positions, axis=0)).mean(axis=0) if len(centers) else axes[:, 0]
        up = axes[:, 0] if side @ axes[:, 0] >= 0 else -axes[:, 0]
    up = up / np.linalg.norm(up)

    away = _perpendicular(rotations[:, :, 2].mean(axis=0), up) if len(rotations) else np.zeros(3)
    if np.linalg.norm(away) < 0.5:
        away = np.cross(up, _perpendicular(axes[:, 2], up))
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
    return f"{share}, {count(len(scene.frusta), 'camera')}. Up is estimated."
