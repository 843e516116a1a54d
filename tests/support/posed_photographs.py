"""Rendered photographs with depth and poses, in the layout of MegaDepth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import h5py
import numpy as np

from sfm_matchers.synthetic import Camera, Scene, render


def write_posed_photographs(
    folder: Path,
    scene: Scene,
    camera: Camera,
    poses: Sequence[np.ndarray],
    *,
    images: str = ".",
    depths: str = ".",
    unused: int = 0,
) -> Path:
    """Write photographs, their depths and an index in which each makes a pair with the next.

    Args:
        folder: of the data set.
        scene: what is to be seen.
        camera: of all of them.
        poses: ``cam_from_world`` (3, 4) of each.
        images, depths: folders in it.
        unused: entries without photograph at the end of the index.

    Returns:
        The folder of the index.
    """
    for part in (images, depths, "scene_info"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries = {
        key: np.full(len(poses) + unused, None, dtype=object)
        for key in ("image_paths", "depth_paths", "intrinsics", "poses")
    }
    for view, pose in enumerate(poses):
        rendered = render(scene, camera, pose)
        image, depth = Path(images) / f"{view}.png", Path(depths) / f"{view}.h5"
        cv2.imwrite(str(folder / image), rendered.image[..., ::-1])
        with h5py.File(folder / depth, "w") as file:
            file["depth"] = rendered.depth
        entries["image_paths"][view], entries["depth_paths"][view] = map(
            Path.as_posix, (image, depth)
        )
        entries["intrinsics"][view] = camera.K
        entries["poses"][view] = np.vstack([pose, [0, 0, 0, 1]])
    pairs = np.empty(len(poses) - 1, dtype=object)
    for first in range(len(pairs)):
        pairs[first] = (np.array([first, first + 1]), 0.5, np.zeros(4))
    np.savez(folder / "scene_info" / "0000_0.1_0.3.npz", pair_infos=pairs, **entries)
    return folder / "scene_info"
