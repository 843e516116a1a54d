"""``transforms.json`` with points, the format of nerfstudio.

Poses are camera to world, camera axes those of OpenGL (x right, y up, z backward). The world is
turned so that z is up where the first camera was upright, as nerfstudio's own converter of COLMAP
models turns it; ``applied_transform`` says so, and the points are turned likewise. Pixels are
COLMAP's: (0.5, 0.5) is the centre of the top-left one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
FISHEYE = (
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "OPENCV_FISHEYE",
)
PANORAMA = ("EQUIRECTANGULAR",)

# nerfstudio's name of a camera model -> COLMAP's models that it can express.
KINDS = {"OPENCV": PERSPECTIVE, "OPENCV_FISHEYE": FISHEYE, "EQUIRECTANGULAR": PANORAMA}

# From COLMAP's world, whose y points down where the first camera was upright.
APPLIED_TRANSFORM = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0]])

# COLMAP's names of parameters that have others here.
_NAMES = {"f": ("fl_x", "fl_y"), "fx": ("fl_x",), "fy": ("fl_y",), "k": ("k1",)}
_DISTORTION = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}


def scene_kind(model: pycolmap.Reconstruction) -> tuple[str, str]:
    """Return nerfstudio's one camera model for a scene, or "" and why there is none."""
    names = {_camera_of(model, image_id).model.name for image_id in model.reg_image_ids()}
    kinds = set()
    for name in sorted(names):
        kind = next((kind for kind, fitting in KINDS.items() if name in fitting), None)
        if kind is None:
            return "", f"nerfstudio has no camera model like {name}"
        kinds.add(kind)
    if len(kinds) > 1:
        return "", f"a scene of nerfstudio has cameras of one kind, this has {', '.join(names)}"
    return kinds.pop(), ""


def camera_entries(camera: pycolmap.Camera, kind: str) -> dict[str, float | int]:
    """Return the intrinsics of a camera under nerfstudio's names, lengths in pixels.

    Args:
        camera: of a model that `kind` can express, see `KINDS`.
        kind: nerfstudio's camera model.
    """
    entries: dict[str, float | int] = {"w": camera.width, "h": camera.height}
    if kind == "EQUIRECTANGULAR":  # a pixel is an angle: 2 pi over the width, pi over the height
        focal_length = camera.width / 2
        centre = {"cx": camera.width / 2, "cy": camera.height / 2}
        return {**entries, "fl_x": focal_length, "fl_y": camera.height, **centre}
    entries |= dict.fromkeys(_DISTORTION[kind], 0.0)
    names = camera.params_info.split(", ")
    for name, value in zip(names, camera.params, strict=True):
        entries |= dict.fromkeys(_NAMES.get(name, (name,)), float(value))
    return entries


def transforms(model: pycolmap.Reconstruction, kind: str, points_name: str) -> dict[str, Any]:
    """Return the content of ``transforms.json``.

    Args:
        model: the model; its photos lie in ``images/``.
        kind: nerfstudio's camera model, see `scene_kind`.
        points_name: the PLY file of its points, see `to_saved_world`.
    """
    image_ids = sorted(model.reg_image_ids(), key=lambda image_id: model.image(image_id).name)
    shares_camera = len({model.image(image_id).camera_id for image_id in image_ids}) == 1
    # The model is said for the scene in any case: nerfstudio reads it nowhere else.
    content: dict[str, Any] = {"camera_model": kind}
    if shares_camera:
        content |= camera_entries(_camera_of(model, image_ids[0]), kind)
    frames = []
    for image_id in image_ids:
        image = model.image(image_id)
        frame: dict[str, Any] = {
            "file_path": f"images/{image.name}",
            "transform_matrix": saved_pose(image.cam_from_world()).tolist(),
            "colmap_im_id": image_id,
        }
        if not shares_camera:
            frame |= camera_entries(_camera_of(model, image_id), kind)
        frames.append(frame)
    return {
        **content,
        "frames": frames,
        "applied_transform": APPLIED_TRANSFORM.tolist(),
        "ply_file_path": points_name,
    }


def saved_pose(cam_from_world: pycolmap.Rigid3d) -> NDArray[np.float64]:
    """Return a pose (4, 4) as nerfstudio stores it: camera to turned world, axes of OpenGL."""
    pose = np.eye(4)
    pose[:3] = cam_from_world.inverse().matrix()
    pose[:3, 1:3] *= -1
    pose[:3] = APPLIED_TRANSFORM @ pose
    return pose


def to_saved_world(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn points (N, 3) of the model as `saved_pose` turns the cameras."""
    return xyz @ APPLIED_TRANSFORM[:, :3].T


def _camera_of(model: pycolmap.Reconstruction, image_id: int) -> pycolmap.Camera:
    return model.camera(model.image(image_id).camera_id)
