"""Fisheye lenses and panoramas."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfm_matchers.mapping.database import verify_geometry
from sfm_matchers.mapping.wide_cameras import guess_wide_focal_lengths
from sfm_matchers.photos.intrinsics import camera_with, format_params
from sfm_matchers.photos.panoramas import looks_like_panorama, may_be_panorama
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.synthetic import Camera, Scene, camera_path, make_scene, render

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]

WIDTH, HEIGHT = 320, 240


def faces() -> list[np.ndarray]:
    """Rotations of a camera to the six sides of a cube: ahead, right, left, up, down, back."""
    turns = ([0, 0, 0], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 2, 0])
    return [cv2.Rodrigues(np.array(turn) * np.pi / 2)[0] for turn in turns]


FACE = Camera.from_field_of_view(192, 192, 90)


@cache
def room() -> Scene:
    return make_scene(3, kind="room", texture_size=384)


def poses(count: int) -> list[np.ndarray]:
    return camera_path(room(), count, 1)


@cache
def rendered_face(count: int, index: int, side: int) -> np.ndarray:
    """What is seen on one side of a cube, of one of `count` places, for any lens."""
    return render(room(), FACE, faces()[side] @ poses(count)[index]).image


def render_wide(camera: pycolmap.Camera, count: int, place: int) -> np.ndarray:
    """A photo (H, W, 3) by any camera of COLMAP's, from six of a pinhole."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5
    directions = np.array(camera.cam_ray_from_img(pixels))
    seen = [directions @ turn.T for turn in faces()]
    nearest = np.stack([rays[:, 2] for rays in seen], axis=1).argmax(axis=1)
    photo = np.zeros((len(pixels), 3), dtype=np.uint8)
    for index, rays in enumerate(seen):
        if not (nearest == index).any():
            continue
        places = rays[:, :2] / np.maximum(rays[:, 2:], 1e-6) * FACE.fx + FACE.cx
        places = places.astype(np.float32).reshape(camera.height, camera.width, 2)
        image = rendered_face(count, place, index)
        image = cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        photo[nearest == index] = image.reshape(-1, 3)[nearest == index]
    return photo.reshape(camera.height, camera.width, 3)


def write_wide_photos(folder: Path, camera: pycolmap.Camera, count: int) -> np.ndarray:
    """Write photos of a room; return the true centres (N, 3)."""
    folder.mkdir()
    for index in range(count):
        photo = render_wide(camera, count, index)
        cv2.imwrite(str(folder / f"{index}.png"), photo[..., ::-1])
    return np.array([-pose[:, :3].T @ pose[:, 3] for pose in poses(count)])


def center_error(model: pycolmap.Reconstruction, centers: np.ndarray) -> float:
    """Mean error of the camera centres, as a share of the extent."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    found = np.array([image.projection_center() for image in images])
    world_from_model = pycolmap.estimate_sim3d(found, centers)
    errors = np.linalg.norm(world_from_model * found - centers, axis=1)
    return float(errors.mean() / np.linalg.norm(np.ptp(centers, axis=0)))


@pytest.mark.parametrize(("model_name", "start"), [("OPENCV_FISHEYE", None), ("EUCM", 0.9)])
def test_a_fisheye_of_unknown_focal_length_gives_a_model(
    tmp_path: Path, model_name: str, start: float | None
) -> None:
    params = [0.5 * WIDTH, WIDTH / 2, HEIGHT / 2, 0.02]
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL_FISHEYE", width=WIDTH, height=HEIGHT, params=params
    )
    centers = write_wide_photos(tmp_path / "photos", camera, 7)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", camera_model=model_name)
    if start is not None:
        given = camera_with(model_name, start * WIDTH, (WIDTH, HEIGHT))
        (tmp_path / "cameras.txt").write_text(
            f"* {model_name} {format_params(given.params)} start\n"
        )
        options = replace(options, cameras=tmp_path / "cameras.txt")
    (model,) = run(options).models
    assert model.num_reg_images() == 7
    assert center_error(model, centers) < 0.002
    (found,) = model.cameras.values()
    assert abs(found.focal_length_x - 0.5 * WIDTH) < 0.02 * WIDTH


def test_panoramas_are_pointed_out_and_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    camera = pycolmap.Camera(model="EQUIRECTANGULAR", width=512, height=256, params=[512, 256])
    centers = write_wide_photos(tmp_path / "photos", camera, 4)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", camera_model="EQUIRECTANGULAR")
    (model,) = run(options).models
    assert model.num_reg_images() == 4
    assert center_error(model, centers) < 0.005
    assert "panoramas" not in caplog.text
    run(SfmOptions(tmp_path / "photos", tmp_path / "out", "sift"))
    assert "4 of 4 photos look like panoramas" in caplog.text
    assert "need --camera_model EQUIRECTANGULAR" in caplog.text


def test_panoramas_from_one_place_only_turned(tmp_path: Path) -> None:
    camera = pycolmap.Camera(model="EQUIRECTANGULAR", width=512, height=256, params=[512, 256])
    photo = render_wide(camera, 4, 1)
    (tmp_path / "photos").mkdir()
    for turn in range(4):
        turned = np.roll(photo, 50 * turn, axis=1)
        cv2.imwrite(str(tmp_path / f"photos/{turn}.png"), turned[..., ::-1])
    options = SfmOptions(
        tmp_path / "photos", tmp_path / "out", "sift", camera_model=camera.model_name
    )
    result = run(options)
    assert not result.models
    assert "the camera only turned: walk sideways" in result.summary["reason"]


def test_what_looks_like_a_panorama(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "sphere.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    xmp = b'<rdf:Description GPano:ProjectionType="equirectangular"/>'
    Image.new("RGB", (64, 40)).save(tmp_path / "cropped.jpg", xmp=xmp)
    found = {path.name for path in tmp_path.iterdir() if looks_like_panorama(path)}
    assert found == {"sphere.png", "cropped.jpg"}


def test_photos_that_are_twice_as_wide_as_high_are_no_panoramas(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They were told to need another camera model, though their model was exact."""
    sphere = pycolmap.Camera(model="EQUIRECTANGULAR", width=512, height=256, params=[512, 256])
    write_wide_photos(tmp_path / "spheres", sphere, 2)
    assert all(looks_like_panorama(path) for path in (tmp_path / "spheres").iterdir())
    camera = camera_with("PINHOLE", 300.0, (512, 256))
    centers = write_wide_photos(tmp_path / "photos", camera, 6)
    wide = [path for path in (tmp_path / "photos").iterdir() if may_be_panorama(path)]
    assert len(wide) == 6
    assert not any(map(looks_like_panorama, wide))
    result = run(SfmOptions(tmp_path / "photos", tmp_path / "out", "sift"))
    assert center_error(result.models[0], centers) < 0.01
    assert "panorama" not in caplog.text
    assert result.verdict.level == "good"


@pytest.mark.parametrize(
    ("model", "share"),
    [
        ("SIMPLE_RADIAL_FISHEYE", 0.3),
        ("THIN_PRISM_FISHEYE", 0.9),
        ("FOV", 0.3),
        ("EUCM", 0.3),
        ("EUCM", 0.9),
    ],
)
def test_the_focal_length_of_a_fisheye_is_guessed_from_matches(
    tmp_path: Path, model: str, share: float
) -> None:
    """Points all around two cameras of an equidistant lens, half a pixel off."""
    rng = np.random.default_rng(0)
    truth = pycolmap.Camera(
        model="SIMPLE_FISHEYE", width=WIDTH, height=HEIGHT, params=[share * WIDTH, 160, 120]
    )
    points = rng.normal(size=(4000, 3)) * 3 + [0, 0, 2]
    turn = cv2.Rodrigues(np.array([0.05, 0.3, 0.02]))[0]
    pixels = [
        np.array(truth.img_from_cam(seen)) for seen in (points, points @ turn.T + [1, 0.1, 0.3])
    ]
    inside = np.ones(len(points), dtype=bool)
    for xy in pixels:
        inside &= np.isfinite(xy).all(axis=1) & ((xy > 0) & (xy < [WIDTH, HEIGHT])).all(axis=1)
    path = tmp_path / "database.db"
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(1, model, 1.2 * WIDTH, WIDTH, HEIGHT)
        camera_id = database.write_camera(camera)
        ids = []
        for name, xy in zip("ab", pixels, strict=True):
            ids.append(database.write_image(pycolmap.Image(name=name, camera_id=camera_id)))
            noisy = xy[inside] + rng.normal(0, 0.5, (inside.sum(), 2))
            database.write_keypoints(ids[-1], noisy.astype(np.float32))
        matches = np.repeat(np.arange(inside.sum(), dtype=np.uint32)[:, None], 2, axis=1)
        database.write_matches(*ids, matches)
    guess_wide_focal_lengths(path)
    assert verify_geometry(path) == 1
    with pycolmap.Database.open(path) as database:
        found = database.read_camera(camera_id)
        inliers = database.read_two_view_geometry(*ids).inlier_matches
    assert abs(found.focal_length_x / WIDTH - share) < 0.2 * share
    assert len(inliers) > 0.95 * inside.sum()


def test_a_fisheye_is_found_by_the_default(tmp_path: Path) -> None:
    camera = pycolmap.Camera(
        model="OPENCV_FISHEYE",
        width=WIDTH,
        height=HEIGHT,
        params=[176, 176, WIDTH / 2, HEIGHT / 2, 0.03, -0.01, 0, 0],
    )
    centers = write_wide_photos(tmp_path / "photos", camera, 7)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", "sift")
    result = run(options)
    (model,) = result.models
    assert model.num_reg_images() == 7
    (found,) = model.cameras.values()
    assert found.is_perspective_fisheye()
    assert center_error(model, centers) < 0.002
    assert "instead of SIMPLE_RADIAL" in result.summary["settings"]["camera models"]
    assert "camera models" in result.summary["seconds"]
    assert "degrees" in result.summary["pose uncertainty"]

    points = tmp_path / "out" / "sparse" / "0" / "points3D.bin"
    before = points.stat().st_mtime_ns
    again = run(options)  # takes what is there
    assert points.stat().st_mtime_ns == before
    assert again.summary["settings"] == result.summary["settings"]

    named = run(SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", camera_model="RADIAL"))
    assert {one.model.name for one in named.models[0].cameras.values()} == {"RADIAL"}
    assert "camera models" not in named.summary["settings"]
