"""The files of a run of many photos, without a run."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
from report_page import Scene

from sfm_matchers.reports.drawing import write_image

NEIGHBOURS = 20  # of each photo along the path, with which it is matched
SIZE = (320, 240)


def make_many_photos(root: Path, number: int, points_each: int = 60) -> Scene:
    """Write photos of coloured noise around a hall, and their database, in the folder `root`."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, 1
    options.num_frames_per_rig, options.num_points3D = number, 8 * number
    options.track_length = points_each // 8
    options.camera_width, options.camera_height = SIZE
    options.camera_params = [300.0, SIZE[0] / 2, SIZE[1] / 2, 0.0]
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    for point in model.points3D.values():
        point.color = rng.integers(0, 256, 3).astype(np.uint8)
    images = sorted(model.images.values(), key=lambda image: image.name)
    points = [np.array([p.xy for p in image.points2D]).reshape(-1, 2) for image in images]
    with (
        h5py.File(root / "features.h5", "w") as features,
        h5py.File(root / "matches.h5", "w"),
    ):
        for image, own in zip(images, points, strict=True):
            features[f"{image.name}/keypoints"] = (own - 0.5).astype(np.float32)
            path = root / "images" / image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
            write_image(path, cv2.resize(noise, SIZE, interpolation=cv2.INTER_CUBIC))
    pairs = _write_database(root / "database.db", model, images, points)
    return Scene(root, model, [image.name for image in images], pairs)


def _write_database(
    path: Path,
    model: pycolmap.Reconstruction,
    images: list[pycolmap.Image],
    points: list[np.ndarray],
) -> list[tuple[str, str]]:
    seen = [
        {p.point3D_id: row for row, p in enumerate(image.points2D) if p.has_point3D()}
        for image in images
    ]
    pairs = []
    with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
        database.write_camera(model.cameras[images[0].camera_id], use_camera_id=True)
        ids = []
        for image, own in zip(images, points, strict=True):
            copy = pycolmap.Image()
            copy.name, copy.camera_id = image.name, image.camera_id
            ids.append(database.write_image(copy))
            database.write_keypoints(ids[-1], own.astype(np.float32))
        for first in range(len(images)):
            for second in range(first + 1, min(first + NEIGHBOURS, len(images))):
                common = sorted(set(seen[first]) & set(seen[second]))
                rows = [[seen[first][i], seen[second][i]] for i in common]
                matches = np.array(rows, dtype=np.uint32).reshape(-1, 2)
                geometry = pycolmap.TwoViewGeometry()
                geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                geometry.inlier_matches = matches
                database.write_matches(ids[first], ids[second], matches)
                database.write_two_view_geometry(ids[first], ids[second], geometry)
                pairs.append((images[first].name, images[second].name))
    return pairs
