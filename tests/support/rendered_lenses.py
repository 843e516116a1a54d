"""Ten photos of points all around by any lens, with exact truth, as model and as database."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.adjustment import adjust_robustly, robust_adjustment
from sfm_matchers.synthetic import look_at
from tests.support.point_models import Tracks, add_image, add_tracks

WIDTH, HEIGHT = 1280, 960


def lens(model: str, *params: float) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params, camera_id=1)


def place(camera: pycolmap.Camera, seed: int = 0, noise: float = 0.3) -> pycolmap.Reconstruction:
    """Ten photos of 1500 points all around, 0.3 pixels off, 2 % of them by up to 3 pixels."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-12, -4, -6], [12, 8, 6], (1500, 3))
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    tracks: Tracks = {}
    for index, angle in enumerate(np.linspace(-0.8, 0.8, 10)):
        position = np.array([8 * np.sin(angle), -8 * np.cos(angle), 0]) + rng.normal(0, 0.5, 3)
        pose = pycolmap.Rigid3d(look_at(position, rng.normal(0, 0.8, 3)))
        in_camera = points @ pose.rotation.matrix().T + pose.translation
        pixels = np.asarray(camera.img_from_cam(in_camera))
        seen = ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=1) & (rng.random(1500) < 0.6)
        rays = in_camera / np.linalg.norm(in_camera, axis=1, keepdims=True)
        same = np.abs(np.asarray(camera.cam_ray_from_img(pixels)) - rays).max(axis=1) < 1e-3
        chosen = np.flatnonzero(seen & same)
        noisy = pixels[chosen] + rng.normal(0, noise, (len(chosen), 2))
        wrong = rng.random(len(chosen)) < 0.02
        noisy[wrong] += rng.uniform(-3, 3, (wrong.sum(), 2))
        add_image(model, index + 1, f"{index}.png", pose, noisy)
        for place_in_image, point in enumerate(chosen.tolist()):
            tracks.setdefault(point, []).append((index + 1, place_in_image))
    add_tracks(model, points, tracks)
    return model


def write_database(path: Path, truth: pycolmap.Reconstruction) -> None:
    """The database that a model is mapped from: keypoints, and verified matches of all pairs."""
    with pycolmap.Database.open(path) as database:
        database.write_camera(truth.cameras[1], use_camera_id=True)
        for image_id, image in sorted(truth.images.items()):
            database.write_image(
                pycolmap.Image(name=image.name, camera_id=1, image_id=image_id), use_image_id=True
            )
            keypoints = np.array([point.xy for point in image.points2D], dtype=np.float32)
            database.write_keypoints(image_id, keypoints)
        pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for point in truth.points3D.values():
            elements = sorted((e.image_id, e.point2D_idx) for e in point.track.elements)
            for (image0, index0), (image1, index1) in itertools.combinations(elements, 2):
                pairs.setdefault((image0, image1), []).append((index0, index1))
        for pair, matches in pairs.items():
            geometry = pycolmap.TwoViewGeometry(
                config=pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED,
                inlier_matches=np.array(matches, dtype=np.uint32),
            )
            database.write_two_view_geometry(*pair, geometry)


def mapped(truth: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model as the mapper leaves it with SIMPLE_RADIAL."""
    model = copy.deepcopy(truth)
    camera = model.cameras[1]
    simple = pycolmap.Camera.create_from_model_name(
        1, "SIMPLE_RADIAL", camera.mean_focal_length(), WIDTH, HEIGHT
    )
    if camera.is_perspective_fisheye():  # about the third-order term of an equidistant lens
        simple.params = [*simple.params[:3], -0.2]
    camera.model, camera.params = simple.model, simple.params
    for _ in range(2):
        adjust_robustly(model, robust_adjustment(1))
    return model


def calibrated(truth: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model as the true calibration gives it."""
    model = copy.deepcopy(truth)
    adjust_robustly(model, robust_adjustment(1), [1])
    return model


def center_error(model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction) -> float:
    """Mean error of the camera centres in percent of the extent."""
    return float(compare_models(model, truth).relative_center_errors.mean())
