"""VisualSFM's NVM models, in which Aachen Day-Night v1.0 comes, as COLMAP models.

An NVM file has, after its header, a line per image (name, focal length, rotation of the camera as
qw qx qy qz, centre, distortion, 0) and a line per point (position, colour, number of observations,
and for each of them image, keypoint, x, y). Intrinsics come from a list beside it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.text import read_text
from sfm_matchers.localization.query_files import read_queries


def read_nvm(nvm_path: Path, intrinsics_path: Path) -> pycolmap.Reconstruction:
    """Read an NVM model.

    Each image has its own camera. Ids count from 1 in the order of the file. Positions of
    keypoints are as the file has them, which for Aachen is relative to the principal point: good
    for counting what is seen together, not for measuring.

    Args:
        nvm_path: the model.
        intrinsics_path: lines ``name MODEL width height params...`` for each image of the model.

    Raises:
        InputError: a file is missing or malformed, or an image has no intrinsics.
    """
    cameras = {query.name: query.camera for query in read_queries(intrinsics_path)}
    lines = _content(nvm_path)
    try:
        images = [next(lines).split() for _ in range(int(next(lines)))]
        model = pycolmap.Reconstruction()
        # Ten million observations, of Aachen, take a gigabyte as arrays and four as tuples.
        observations = [array("d") for _ in images]
        points = [_read_point(next(lines), observations) for _ in range(int(next(lines)))]
        for index, words in enumerate(images):
            _add_image(model, index + 1, words, cameras, observations[index])
        for position, colour, track in points:
            elements = [
                pycolmap.TrackElement(image + 1, keypoint)
                for image, keypoint in zip(track[::2], track[1::2], strict=True)
            ]
            model.add_point3D(position, pycolmap.Track(elements), colour)
    except InputError:  # which is a ValueError too
        raise
    except (StopIteration, ValueError, IndexError) as error:
        raise InputError(
            f"{nvm_path} is not an NVM model, or is cut off ({type(error).__name__})"
        ) from error
    return model


def _content(path: Path) -> Iterator[str]:
    text = read_text(path)
    start = 0
    while start < len(text):  # a list of all lines would take as much memory again
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        if line.strip() and not line.startswith("NVM_V3"):
            yield line
        start = end + 1


def _read_point(
    line: str, observations: list[array[float]]
) -> tuple[np.ndarray, np.ndarray, array[int]]:
    """Position, colour and track (image, keypoint, image, ...) of a point; its keypoints, (x, y,
    x, ...) of each image, are added."""
    words = line.split()
    track = array("i")
    for start in range(7, 7 + 4 * int(words[6]), 4):
        image = int(words[start])
        if image < 0:
            raise ValueError("images are counted from 0")
        track.extend((image, len(observations[image]) // 2))
        observations[image].extend((float(words[start + 2]), float(words[start + 3])))
    colour = np.array(words[3:6], dtype=float).astype(np.uint8)
    return np.array(words[:3], dtype=float), colour, track


def _add_image(
    model: pycolmap.Reconstruction,
    image_id: int,
    words: list[str],
    cameras: dict[str, pycolmap.Camera],
    keypoints: array[float],
) -> None:
    name = words[0]
    if name not in cameras:
        raise InputError(f"the list of intrinsics lacks the image {name!r} of the NVM model")
    w, x, y, z, *center = (float(word) for word in words[2:9])
    camera = cameras[name]
    camera.camera_id = image_id
    model.add_camera_with_trivial_rig(camera)
    rotation = pycolmap.Rotation3d(np.array([x, y, z, w]))
    pose = pycolmap.Rigid3d(rotation, -(rotation.matrix() @ np.array(center)))
    image = pycolmap.Image(
        name=name,
        keypoints=np.array(keypoints).reshape(-1, 2),
        camera_id=image_id,
        image_id=image_id,
    )
    model.add_image_with_trivial_frame(image, pose)
