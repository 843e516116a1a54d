"""A model as localization sees it."""

from __future__ import annotations

import functools

import numpy as np
import pycolmap

CACHED_IMAGES = 512  # of the map, whose tables of 3D points are kept in memory


class IndexedModel:
    """A model as localization sees it: names, poses, and the 3D point of each keypoint."""

    def __init__(self, model: pycolmap.Reconstruction) -> None:
        self.model = model
        self.image_ids = {
            image.name: image_id for image_id, image in model.images.items() if image.has_pose
        }
        self.centres = {i: model.images[i].projection_center() for i in self.image_ids.values()}
        centres = np.array(list(self.centres.values()))
        self.extent = float(np.linalg.norm(np.ptp(centres, axis=0))) if len(centres) else np.inf
        self.point_ids = functools.lru_cache(maxsize=CACHED_IMAGES)(self._read_point_ids)

    def pose(self, name: str) -> pycolmap.Rigid3d:
        return self.model.images[self.image_ids[name]].cam_from_world()

    def observers(
        self, point_ids: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `plausibility.Observers`: who saw some of the points (N,)."""
        rows, centres = [], []
        for row, point_id in enumerate(point_ids[indices].tolist()):
            for element in self.model.points3D[point_id].track.elements:
                if element.image_id in self.centres:
                    rows.append(row)
                    centres.append(self.centres[element.image_id])
        return np.array(rows, dtype=np.int64), np.array(centres).reshape(-1, 3)

    def _read_point_ids(self, name: str) -> np.ndarray:
        """The 3D point of each keypoint of a photo (N,) int64, -1 where there is none."""
        image = self.model.images[self.image_ids[name]]
        ids = np.full(image.num_points2D(), -1, dtype=np.int64)
        observed = np.asarray(image.get_observation_point2D_idxs(), dtype=np.int64)
        ids[observed] = [point.point3D_id for point in image.get_observation_points2D()]
        return ids
