"""Photos between which the camera only turned are told from photos of a walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfm_matchers.mapping import turning
from sfm_matchers.mapping.turning import photos_that_only_turned
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.synthetic import Camera, camera_path, look_at, make_scene, render
from tests.support.point_models import Tracks, add_image, add_tracks

Poses = Sequence[np.ndarray]
START = look_at(np.array([0.0, -8.0, 0.0]), np.zeros(3))


def camera_of(model: str, *params: float) -> pycolmap.Camera:
    centre = (160.0, 120.0)
    numbers = [params[0] * 320, *centre, *params[1:]]
    if model == "OPENCV_FISHEYE":
        numbers = [params[0] * 320, params[0] * 320, *centre, *params[1:]]
    return pycolmap.Camera(model=model, width=320, height=240, params=numbers, camera_id=1)


RADIAL = camera_of("SIMPLE_RADIAL", 0.8, -0.1)
CAMERAS = [
    RADIAL,
    camera_of("SIMPLE_RADIAL", 1.6, 0.0),
    camera_of("OPENCV_FISHEYE", 0.35, 0.02, -0.01, 0.0, 0.0),
]


def model_of(
    poses: Poses, points: np.ndarray, camera: pycolmap.Camera = RADIAL, noise: float = 0.15
) -> pycolmap.Reconstruction:
    """The true model of points (N, 3), with keypoints off by `noise` pixels."""
    rng = np.random.default_rng(0)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    tracks: Tracks = {}
    for image_id, pose in enumerate(poses, start=1):
        in_camera = points @ pose[:, :3].T + pose[:, 3]
        pixels = np.asarray(camera.img_from_cam(in_camera))
        rays = in_camera / np.linalg.norm(in_camera, axis=1, keepdims=True)
        same = np.abs(np.asarray(camera.cam_ray_from_img(pixels)) - rays).max(axis=1) < 1e-3
        seen = same & ((pixels > 0) & (pixels < [320, 240])).all(axis=1)
        keypoints = pixels[seen] + rng.normal(0, noise, (seen.sum(), 2))
        add_image(model, image_id, f"{image_id}.png", pycolmap.Rigid3d(pose), keypoints)
        for index, point in enumerate(np.flatnonzero(seen).tolist()):
            tracks.setdefault(point, []).append((image_id, index))
    add_tracks(model, points, tracks)
    return model


def turned(pose: np.ndarray, *rotation: float) -> np.ndarray:
    return np.asarray(cv2.Rodrigues(np.array(rotation))[0] @ pose)


def moved(pose: np.ndarray, *step: float) -> np.ndarray:
    """The pose of a camera that went a step in its own frame."""
    return np.column_stack([pose[:, :3], pose[:, 3] - step])


def cloud(count: int = 3000) -> np.ndarray:
    return np.random.default_rng(1).uniform([-14, -4, -6], [14, 8, 6], (count, 3))


def wall(count: int = 4000) -> np.ndarray:
    return np.random.default_rng(1).uniform([-20, 0, -6], [20, 0, 6], (count, 3))


@pytest.mark.parametrize(
    ("camera", "count"),
    zip(CAMERAS, (4, 8, 8), strict=True),
    ids=["radial", "long", "fisheye"],
)
def test_a_turn_has_no_parallax(camera: pycolmap.Camera, count: int) -> None:
    poses = [turned(START, -0.01 * i, 0.06 * i, 0.02 * i) for i in range(count)]
    model = model_of(poses, cloud(), camera)
    assert len(photos_that_only_turned(model)) == count
    assert len(photos_that_only_turned(model, ["1.png"])) == count


@pytest.mark.parametrize("camera", CAMERAS[:2], ids=["radial", "long"])
def test_a_hundredth_of_the_depth_is_parallax(camera: pycolmap.Camera) -> None:
    poses = [moved(turned(START, 0, 0.06 * i, 0.01 * i), 0.08 * i, 0, 0) for i in range(5)]
    assert photos_that_only_turned(model_of(poses, cloud(), camera)) == []


WALKS: dict[str, Callable[[float], np.ndarray]] = {
    "along": lambda i: look_at(np.array([i, -6, 0]), np.array([i, 0, 0])),
    "oblique": lambda i: look_at(np.array([i, -6, 0]), np.array([i + 4, 0, 0])),
    "towards": lambda i: look_at(np.array([0.1 * i, i - 8, 0]), np.array([0.1 * i, 0, 0])),
    "around": lambda i: look_at(np.array([i, -6, 0]), np.array([0, 0, 0])),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WALKS)
@pytest.mark.parametrize(
    ("camera", "place"),
    zip(CAMERAS, (wall, wall, cloud), strict=True),
    ids=["radial", "long", "fisheye"],
)
def test_a_walk_is_no_turn(
    way: str, camera: pycolmap.Camera, place: Callable[[], np.ndarray]
) -> None:
    for step in (0.2, 0.5):
        poses = [WALKS[way](step * i) for i in range(5)]
        assert photos_that_only_turned(model_of(poses, place(), camera)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "sides"),
    [
        ("along", 0.8),
        ("oblique", 1.6),
        ("towards", 2.5),
        ("along", 4),
        ("oblique", 4),
        ("towards", 4),
    ],
)
def test_a_walk_by_a_wall_through_a_long_lens_is_no_turn(way: str, sides: float) -> None:
    """Keypoints of half a pixel hide what tells two photos of such a walk from a turn."""
    count = 4000 if sides < 2 else 30000
    walls = np.random.default_rng(1).uniform([-6, 0, -6], [12, 0, 6], (count, 3))
    walls = walls[np.abs(walls[:, 2]) < 4 / sides]
    for step in (0.02, 0.05, 0.1):
        poses = [WALKS[way](6 * step * i) for i in range(5)]
        model = model_of(poses, walls, camera_of("SIMPLE_RADIAL", sides, 0.0), 0.5)
        assert photos_that_only_turned(model) == []


def test_half_a_walk_holds_a_turn_at_its_end() -> None:
    walk = [WALKS["along"](0.6 * i) for i in range(4)]
    turn = [turned(walk[-1], 0, 0.1 * i, 0) for i in range(1, 4)]
    assert photos_that_only_turned(model_of([*walk, *turn], cloud())) == []


def test_photos_that_see_nothing_of_the_walk_are_named() -> None:
    walk = [moved(WALKS["along"](0.0), 0.3 * i, 0, 0) for i in range(4)]
    turn = [turned(walk[0], 0, angle, 0) for angle in (0.6, 1.3, 1.4, 1.5)]
    points = np.random.default_rng(1).uniform([-20, -20, -6], [20, 8, 6], (6000, 3))
    names = photos_that_only_turned(model_of([*walk, *turn], points))
    assert names == ["6.png", "7.png", "8.png"]


def test_models_of_few_points_say_nothing() -> None:
    assert photos_that_only_turned(pycolmap.Reconstruction()) == []
    poses = [turned(START, 0, 0.06 * i, 0) for i in range(3)]
    assert photos_that_only_turned(model_of(poses, cloud(30))) == []


@pytest.mark.parametrize("steepness", [1.0, 1000.0])
def test_the_search_for_simple_cameras_gives_up_where_it_leads_nowhere(steepness: float) -> None:
    """Rotations explain turns of large photos only with nearly the right camera."""
    calls = []

    def cost(factor: float, distortion: float, lowest: float) -> float:
        calls.append(factor)
        return lowest + steepness * float(np.hypot(np.log(factor / 0.84), distortion + 0.17))

    factor, distortion = turning._lowest(lambda *camera: cost(*camera, lowest=0.5), limit=1)
    assert cost(factor, distortion, lowest=0.5) < 1
    num_calls = len(calls)
    calls.clear()
    turning._lowest(lambda *camera: cost(*camera, lowest=2 * steepness), limit=1)
    assert len(calls) < 0.5 * num_calls


def photograph(folder: Path, kind: str, seed: int, poses: Callable[[np.ndarray], Poses]) -> None:
    scene = make_scene(seed, kind=kind, texture_size=384)
    camera = Camera.from_field_of_view(320, 240)
    folder.mkdir()
    for index, pose in enumerate(poses(np.asarray(camera_path(scene, 6, 1)[2]))):
        image = render(scene, camera, pose).image
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])


@pytest.mark.slow
def test_a_turn_that_distortion_bends_into_a_walk(tmp_path: Path) -> None:
    """SIMPLE_RADIAL explains these photos with errors of 0.14 px, and a camera that walks."""
    photograph(
        tmp_path / "images",
        "street",
        4,
        lambda first: [turned(first, -0.01 * i, 0.1 * i, 0.02 * i) for i in range(4)],
    )
    options = SfmOptions(tmp_path / "images", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run(options)
    assert result.verdict.level == "poor"
    assert "the camera only turned" in result.verdict.text
    assert "walk sideways" in result.verdict.text
