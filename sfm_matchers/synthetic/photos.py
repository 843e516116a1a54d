"""Taking photographs along a walk, and writing them down with their truth."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.errors import InputError
from sfm_matchers.machine.progress import progress
from sfm_matchers.synthetic.arrays import FloatArray
from sfm_matchers.synthetic.cameras import Camera, look_at, project, unproject
from sfm_matchers.synthetic.rendering import Rendering, random_appearance, render
from sfm_matchers.synthetic.scenes import Scene

logger = logging.getLogger(__name__)

_POINT_SPACING = 32  # pixels between the true points that a photograph contributes
_SAME_DEPTH = 0.01  # relative difference up to which two depths are the same point


def camera_path(scene: Scene, count: int, seed: int = 0) -> list[FloatArray]:
    """Poses (3, 4) of `count` overlapping views along the scene's walk, a little unsteady.

    Another seed gives other views of the same places: queries for a map made with this one.

    Raises:
        InputError: count < 1.
    """
    if count < 1:
        raise InputError(f"count is {count}: give at least one view")
    rng = np.random.default_rng([seed, 4])
    steps = (np.arange(count) + 0.5 + rng.uniform(-0.2, 0.2, count)) / count
    along = steps * (len(scene.walk) - 1)
    before = along.astype(int)
    share = (along - before)[:, None, None]
    views = (1 - share) * scene.walk[before] + share * scene.walk[before + 1]
    views += rng.normal(0, 1, views.shape) * [[0.06, 0.06, 0.05], [0.25, 0.25, 0.12]]
    return [look_at(position, target) for position, target in views]


def write_photos(
    folder: Path | str,
    scene: Scene,
    count: int,
    seed: int = 0,
    *,
    camera: Camera | None = None,
    subfolder: str = "",
    night: bool = False,
    depth: bool = False,
    exif: bool = True,
) -> pycolmap.Reconstruction:
    """Write `count` photographs of a scene, and the truth as a COLMAP text model.

    `folder` then holds, each below `subfolder`, which is also part of the images' names:
        images/0000.jpg ...: photographs that differ in exposure, colour, noise and blur;
        truth/: cameras.txt, images.txt, points3D.txt and what else COLMAP writes, in metres;
        depth/0000.npy ...: float32 (H, W) z-depth in metres, 0 for the sky; where `depth` is set.

    Args:
        folder: made where it does not exist.
        scene: from `make_scene`.
        count: number of photographs.
        seed: of the poses, and of what differs from photograph to photograph.
        camera: of all photographs; 640 x 480 with a view of 65 degrees where None.
        subfolder: such as "db" or "query/night", to put several walks into one folder.
        night: photographs by night.
        depth: also write depth maps.
        exif: write the focal length into the photographs, as phones do.

    Returns:
        the true model, whose image ids are 1, 2, ...

    Raises:
        InputError: count < 1.
    """
    camera = camera or Camera.from_field_of_view(640, 480)
    poses = camera_path(scene, count, seed)
    names, renderings = [], []
    for index, pose in enumerate(progress(poses, title="Rendering", unit="photo")):
        photo_seed = 10_000 * seed + index
        appearance = random_appearance(photo_seed, night=night)
        rendering = render(scene, camera, pose, appearance, seed=photo_seed)
        name = (Path(subfolder) / f"{index:04d}.jpg").as_posix()
        path = Path(folder) / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(rendering.image, camera if exif else None))
        if depth:
            path = (Path(folder) / "depth" / name).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rendering.depth)
        names.append(name)
        renderings.append(rendering)
    model = true_model(names, camera, poses, renderings)
    truth = Path(folder) / "truth" / subfolder
    truth.mkdir(parents=True, exist_ok=True)
    model.write_text(truth)
    logger.info("wrote %d photographs of a %s to %s", count, scene.kind, folder)
    return model


def true_model(
    names: Sequence[str],
    camera: Camera,
    poses: Sequence[FloatArray],
    renderings: Sequence[Rendering],
) -> pycolmap.Reconstruction:
    """The COLMAP model that a perfect reconstruction of these photographs would be, in metres.

    Its points lie on a grid of pixels of every photograph; they are observed, without error,
    wherever the depth maps say that they are seen. Points seen once are left out.
    """
    points, colours = _grid_points(camera, poses, renderings)
    sightings = [
        _sightings(points, camera, pose, rendering)
        for pose, rendering in zip(poses, renderings, strict=True)
    ]
    often = np.sum([seen for _, seen in sightings], axis=0) >= 2
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera.to_colmap())
    tracks: dict[int, list[pycolmap.TrackElement]] = {
        point: [] for point in np.flatnonzero(often).tolist()
    }
    for image_id, (name, pose, (pixels, seen)) in enumerate(
        zip(names, poses, sightings, strict=True), start=1
    ):
        observed = np.flatnonzero(seen & often)
        image = pycolmap.Image(
            name=name, keypoints=pixels[observed] + 0.5, camera_id=1, image_id=image_id
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for index, point in enumerate(observed.tolist()):
            tracks[point].append(pycolmap.TrackElement(image_id, index))
    for point, elements in tracks.items():
        model.add_point3D(points[point], pycolmap.Track(elements), colours[point])
    model.update_point_3d_errors()
    return model


def _grid_points(
    camera: Camera, poses: Sequence[FloatArray], renderings: Sequence[Rendering]
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Points (N, 3) of the surfaces behind a grid of pixels of every photograph, and colours."""
    grid = np.s_[_POINT_SPACING // 2 :: _POINT_SPACING, _POINT_SPACING // 2 :: _POINT_SPACING]
    points, colours = [], []
    for pose, rendering in zip(poses, renderings, strict=True):
        surface = rendering.depth[grid] > 0
        points.append(unproject(rendering.depth, camera, pose)[grid][surface])
        colours.append(rendering.image[grid][surface])
    return np.concatenate(points), np.concatenate(colours)


def _sightings(
    points: FloatArray, camera: Camera, pose: FloatArray, rendering: Rendering
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Where points (N, 3) fall on a photograph, (N, 2), and which of them it shows, (N,)."""
    pixels, depth = project(points, camera, pose)
    nearest = np.rint(pixels).clip(-1, [camera.width, camera.height]).astype(int)
    inside = ((nearest >= 0) & (nearest < [camera.width, camera.height])).all(axis=1) & (depth > 0)
    x, y = np.where(inside[:, None], nearest, 0).T
    surface = rendering.depth[y, x]
    return pixels, inside & (np.abs(surface - depth) < _SAME_DEPTH * depth)


def _jpeg(image: NDArray[np.uint8], camera: Camera | None) -> bytes:
    """The file of a picture (H, W, 3) RGB; with EXIF that tells a camera's focal length."""
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise InputError(f"a picture of shape {image.shape} cannot be written as JPEG")
    data = encoded.tobytes()
    return data if camera is None else data[:2] + _exif(camera) + data[2:]


def _exif(camera: Camera) -> bytes:
    """An APP1 segment with maker, model and focal length (EXIF 2.32, section 4.6).

    The sensor is said to be as wide as 35 mm film, 36 mm.
    """
    millimetres = camera.fx * 36 / camera.width
    diagonal = float(np.hypot(camera.width, camera.height))
    equivalent = round(camera.fx * 43.27 / diagonal)  # of the diagonal of 35 mm film
    text = b"sfm-matchers\0"
    model = b"rendered\0"
    main, exif = 8, 8 + 2 + 3 * 12 + 4  # offsets of the two directories
    values = exif + 2 + 2 * 12 + 4  # offset of what does not fit into an entry
    entry = struct.Struct("<HHII").pack
    directory = struct.pack("<H", 3)
    directory += entry(0x010F, 2, len(text), values)  # Make, ASCII
    directory += entry(0x0110, 2, len(model), values + len(text))  # Model, ASCII
    directory += entry(0x8769, 4, 1, exif) + struct.pack("<I", 0)  # the EXIF directory
    directory += struct.pack("<H", 2)
    directory += entry(0x920A, 5, 1, values + len(text) + len(model))  # FocalLength, rational
    directory += entry(0xA405, 3, 1, equivalent) + struct.pack("<I", 0)  # FocalLengthIn35mmFilm
    rational = struct.pack("<II", round(1000 * millimetres), 1000)
    body = b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, main) + directory + text + model + rational
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body
