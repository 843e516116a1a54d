"""A COLMAP model as arrays, and which of its points a photo could show.

Pixels have (0, 0) at the centre of the top-left pixel, as everywhere but in COLMAP. Nothing here
asks for the camera model: points in front of any lens are told by distance and direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.mapping.adjustment import point_positions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NUM_NEIGHBORS = 16  # of a point in space, itself counted
MIN_SEEN = 2  # of the neighbours that a photo must see to be looked into
FLAT = 0.2  # of the deviation of neighbours across their plane from that along its shorter axis
NUM_NEARBY = 8  # points that a photo sees around a candidate, for the order of depths
STEEPEST = 2.75  # tangent of the angle to which a surface may turn away from the photo: 70 degrees
SAME_DEPTH = 0.02  # of the distance: points of one surface, whatever its slope
MIN_COSINE = 0.15  # between the normal of a flat surface and the ray of a photo that shows it
SAME_RAY = 1e-3  # radians: what a lens maps to a pixel must be what the pixel maps back to


@dataclass(frozen=True)
class View:
    """A registered photo.

    Attributes:
        image_id: of the model.
        name: of the photo.
        camera: its intrinsics.
        cam_from_world: (3, 4).
    """

    image_id: int
    name: str
    camera: pycolmap.Camera
    cam_from_world: FloatArray

    @cached_property
    def center(self) -> FloatArray:
        """Where the camera is, (3,)."""
        return -self.cam_from_world[:, :3].T @ self.cam_from_world[:, 3]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.camera.width, self.camera.height

    @property
    def pixels_per_radian(self) -> float:
        """How large things appear, in the middle of the photo."""
        if self.camera.is_spherical():
            return self.camera.width / (2 * np.pi)
        return float(self.camera.mean_focal_length())

    def directions(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Unit vectors (N, 3) in the camera's frame towards points (N, 3), and distances (N,)."""
        in_camera = points @ self.cam_from_world[:, :3].T + self.cam_from_world[:, 3]
        distances = np.linalg.norm(in_camera, axis=-1)
        return in_camera / np.maximum(distances, 1e-12)[..., None], distances

    def project(self, points: FloatArray) -> FloatArray:
        """Pixels (N, 2) of points (N, 3), NaN where the lens does not map them."""
        directions, _ = self.directions(points)
        pixels = np.asarray(self.camera.img_from_cam(directions))
        # Beyond the edge of the photo, polynomials of distortion map back into it.
        back = np.asarray(self.camera.cam_ray_from_img(pixels))
        same = np.linalg.norm(back - directions, axis=-1) < SAME_RAY
        return np.where(same[:, None], pixels - 0.5, np.nan)

    def rays(self, pixels: FloatArray) -> FloatArray:
        """Unit vectors (N, 3) in the world's frame of pixels (N, 2); NaN where there is none."""
        rays = np.asarray(self.camera.cam_ray_from_img(pixels + 0.5), np.float64)
        return rays @ self.cam_from_world[:, :3]

    def shows(self, pixels: FloatArray, border: float) -> BoolArray:
        """Whether pixels (N, 2) lie inside the photo, so far from its edges; NaN does not."""
        last = np.array(self.size) - 1 - border
        return np.asarray(((pixels >= border) & (pixels <= last)).all(-1))


@dataclass(frozen=True)
class SparseScene:
    """Views, points, and which view sees which point where.

    Attributes:
        views: V of them, by name.
        point_ids: (N,) of the model.
        points: (N, 3).
        point: (M,) the point of each sighting, ascending.
        view: (M,) its view.
        pixel: (M, 2) where.
        starts: (N + 1,) the sightings of point i are starts[i]:starts[i + 1].
        neighbors: (N, K) the points nearest to each, itself first.
        normals: (N, 3) unit vectors, towards the views that see the point.
        is_flat: (N,) whether the neighbours lie in a plane, so that the normal says something.
    """

    views: Sequence[View]
    point_ids: NDArray[np.uint64]
    points: FloatArray
    point: IntArray
    view: IntArray
    pixel: FloatArray
    starts: IntArray
    neighbors: IntArray
    normals: FloatArray
    is_flat: BoolArray

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> SparseScene:
        """Read a model."""
        images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda i: i.name)
        views = [
            View(
                image.image_id,
                image.name,
                model.cameras[image.camera_id],
                image.cam_from_world().matrix(),
            )
            for image in images
        ]
        point_ids = np.array(sorted(model.points3D), np.uint64)
        points = point_positions(model, point_ids.tolist())
        seen = [image.get_observation_points2D() for image in images]
        ids = np.array([each.point3D_id for some in seen for each in some], np.uint64)
        pixel = np.array([each.xy for some in seen for each in some]).reshape(-1, 2) - 0.5
        view = np.repeat(np.arange(len(views)), [len(some) for some in seen])
        point = np.searchsorted(point_ids, ids)
        order = np.argsort(point, kind="stable")
        point, view, pixel = point[order], view[order], pixel[order]
        starts = np.searchsorted(point, np.arange(len(points) + 1))
        neighbors = nearest(points, points, NUM_NEIGHBORS)[0]
        normals, is_flat = _normals(points, neighbors)
        rays = np.array([view.center for view in views])[view] - points[point]
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        towards = np.zeros_like(points)
        np.add.at(towards, point, rays)
        normals *= np.where((normals * towards).sum(1, keepdims=True) < 0, -1, 1)
        return cls(
            views, point_ids, points, point, view, pixel, starts, neighbors, normals, is_flat
        )

    @cached_property
    def errors(self) -> FloatArray:
        """Distances in pixels (M,) of the sightings from where the points are projected."""
        errors = np.full(len(self.point), np.nan)
        for index, view in enumerate(self.views):
            mine = self.view == index
            projected = view.project(self.points[self.point[mine]])
            errors[mine] = np.linalg.norm(projected - self.pixel[mine], axis=1)
        return errors

    def seen_by(self, view: int) -> BoolArray:
        """Return whether a view sees each point, (N,)."""
        seen = np.zeros(len(self.points), bool)
        seen[self.point[self.view == view]] = True
        return seen

    def unseen_candidates(self, view: int, border: float) -> IntArray:
        """Return the points that a view does not see and might show.

        It sees their surroundings, they lie inside it, nothing it sees is in front of them, and
        flat surfaces face it.
        """
        seen = self.seen_by(view)
        taking = self.views[view]
        candidates = np.flatnonzero(~seen & (seen[self.neighbors].sum(1) >= MIN_SEEN))
        points = self.points[candidates]
        inside = taking.shows(taking.project(points), border)
        rays = taking.center - points
        cosines = (rays * self.normals[candidates]).sum(1) / np.linalg.norm(rays, axis=1)
        faces = ~self.is_flat[candidates] | (cosines > MIN_COSINE)
        candidates = candidates[inside & faces]
        return candidates[~is_hidden(taking, self.points[candidates], self.points[seen])]


def is_hidden(view: View, points: FloatArray, seen: FloatArray) -> BoolArray:
    """Return whether points (N, 3) lie behind what a view sees around them.

    Of the seen points (S, 3) nearest to the ray of each, those at a distance that a slope explains
    speak for it, nearer ones against it; farther ones are behind an edge and say nothing.
    """
    if not len(points) or not len(seen):
        return np.ones(len(points), bool)
    directions, distances = view.directions(points)
    seen_directions, seen_distances = view.directions(seen)
    nearby, angles = nearest(seen_directions, directions, NUM_NEARBY)
    nearer_by = np.log(distances[:, None] / seen_distances[nearby])
    explained = STEEPEST * angles + SAME_DEPTH
    supporters = (np.abs(nearer_by) <= explained).sum(1)
    occluders = (nearer_by > explained).sum(1)
    return np.asarray(occluders >= np.maximum(supporters, 1))


def nearest(points: FloatArray, queries: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """Return indices and distances (Q, K) of the points (N, D) nearest to queries (Q, D)."""
    middle = points.mean(0)  # of geographic coordinates, single precision tells metres only
    tree = cv2.flann.Index((points - middle).astype(np.float32), {"algorithm": 4})  # k-d tree
    indices, squares = tree.knnSearch(
        (queries - middle).astype(np.float32), min(count, len(points)), params={"checks": -1}
    )
    return indices.astype(np.int64), np.sqrt(squares.astype(np.float64))


def _normals(points: FloatArray, neighbors: IntArray) -> tuple[FloatArray, BoolArray]:
    """Fit planes to the neighbours (N, K) of points: normals (N, 3), and whether they are flat."""
    offsets = points[neighbors] - points[neighbors].mean(1, keepdims=True)
    variances, axes = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)
    return axes[:, :, 0].copy(), variances[:, 0] < FLAT**2 * variances[:, 1]
