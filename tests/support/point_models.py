"""COLMAP models built photo by photo, of points whose keypoints are known."""

from __future__ import annotations

import numpy as np
import pycolmap

Tracks = dict[int, list[tuple[int, int]]]  # of points: (image_id, keypoint)
BLACK = np.zeros(3, np.uint8)


def add_image(
    model: pycolmap.Reconstruction,
    image_id: int,
    name: str,
    pose: pycolmap.Rigid3d,
    keypoints: np.ndarray | None = None,
    camera_id: int = 1,
) -> None:
    """Add a photo with its pose (cam_from_world) and keypoints (N, 2), or without any."""
    image = pycolmap.Image(
        name=name,
        keypoints=np.zeros((0, 2)) if keypoints is None else keypoints,
        camera_id=camera_id,
        image_id=image_id,
    )
    model.add_image_with_trivial_frame(image, pose)


def add_tracks(
    model: pycolmap.Reconstruction, points: np.ndarray, tracks: Tracks, fewest: int = 2
) -> dict[int, int]:
    """Add those of points (N, 3) that two photos see, or `fewest`; return their ids."""
    ids = {}
    for point, elements in tracks.items():
        if len(elements) >= fewest:
            track = pycolmap.Track([pycolmap.TrackElement(*element) for element in elements])
            ids[point] = model.add_point3D(points[point], track, BLACK)
    return ids
