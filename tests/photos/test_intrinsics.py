"""Intrinsics: parsed, held against the photos, turned, and of a map's cameras."""

from __future__ import annotations

import logging

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.photos.intrinsics import (
    camera_models,
    camera_with,
    check_camera,
    copy_intrinsics,
    format_params,
    intrinsics_of_map,
    parse_params,
    turned_camera,
)
from tests.support.point_models import add_image

SIZE = (1024, 768)
LANDSCAPE = [900.0, 905.0, 520.0, 380.0]


def camera(params: list[float], model: str = "PINHOLE", size=SIZE) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=params)


@pytest.mark.parametrize("text", ["1,2,3,0.5", "1, 2, 3, .5", "1,2,3,0.5,", " 1 2 3 5e-1 "])
def test_params_are_parsed_as_users_write_them(text: str) -> None:
    assert parse_params("SIMPLE_RADIAL", text) == [1, 2, 3, 0.5]
    assert parse_params("SIMPLE_RADIAL", format_params([1, 2, 3, 0.5])) == [1, 2, 3, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2", "takes f, cx, cy, k: 4 numbers, got '1,2'"),
        ("1,2,,3", "takes f, cx, cy, k, got"),
        ("1,2,3,x", "takes f, cx, cy, k, got"),
        ("1,2,3,nan", "finite"),
        ("1,2,3,inf", "finite"),
    ],
)
def test_wrong_params_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_params("SIMPLE_RADIAL", text)
    with pytest.raises(InputError, match=message):
        CameraOptions(params=text).reader_options()


def test_unknown_models_are_named() -> None:
    with pytest.raises(InputError, match="unknown camera model 'FISH'"):
        parse_params("FISH", "1")
    assert parse_params("OPENCV", "") == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([-900, 905, 520, 380], "the focal length is -900, it must be above 0"),
        ([0, 905, 520, 380], "must be above 0"),
        ([3600, 3620, 2080, 1520], "outside the photo.*photos of 4096 x 3072.*900,905,520,380"),
        ([1800, 1810, 1024, 768], "outside the photo.*photos of 2048 x 1536"),
        ([450, 452, 260, 190], "far from the middle.*photos of 512 x 384"),
        ([225, 226, 130, 95], "far from the middle.*photos of 256 x 192"),
        ([1350, 1357, 780, 570], "far from the middle.*photos of 1536 x 1152"),
        ([900, 520, 905, 380], "look like fx,cx,fy,cy, COLMAP's order is fx,fy,cx,cy"),
        ([520, 380, 900, 905], "look like cx,cy,fx,fy"),
        ([900, 905, 380, 520], "photos of 768 x 1024 pixels, held the other way"),
        ([0.88, 0.88, 0.5, 0.5], "outside the photo.*normalised"),
        ([28, 28, 512, 384], "0.0273 times the longer side"),
        ([20000, 20000, 512, 384], "19.5 times the longer side"),
        ([900, 905, 150, 384], "far from the middle"),
        ([900, 905, 1030, 384], "outside the photo"),
        ([900, 2000, 512, 384], "far apart"),
    ],
)
def test_params_that_are_not_of_the_photos_are_refused(params: list[float], message: str) -> None:
    with pytest.raises(InputError, match=f"^--camera_params: [^\n]*{message}"):
        check_camera(camera(params), "--camera_params")


@pytest.mark.parametrize(
    ("model", "params", "meant"),
    [
        ("SIMPLE_RADIAL", [900, 905, 520, 380], "fx, fy, cx, cy of PINHOLE"),
        ("SIMPLE_RADIAL_FISHEYE", [900, 905, 520, 380], "fx, fy, cx, cy of PINHOLE"),
        ("PINHOLE", [900, 520, 380, -0.1], "f, cx, cy, k of SIMPLE_RADIAL"),
        ("RADIAL", [900, 905, 520, 380, 0.5], "fx, fy, cx, cy, omega of FOV"),
        ("FOV", [900, 520, 380, -0.1, 0.01], "f, cx, cy, k1, k2 of RADIAL"),
    ],
)
def test_params_of_another_model_are_told(model: str, params: list[float], meant: str) -> None:
    given = pycolmap.Camera(model=model, width=1024, height=768, params=params, camera_id=1)
    with pytest.raises(InputError, match=f"look like {meant}: --camera_model {meant.split()[-1]}"):
        check_camera(given, "--camera_params")


@pytest.mark.parametrize(
    ("scale", "size"),
    [(3 / 4, "768 x 576"), (4 / 5, "819 x 614"), (2 / 3, "683 x 512"), (4 / 3, "1365 x 1024")]
    + [(5 / 4, "1280 x 960"), (1 / 2, "512 x 384")],
)
def test_params_of_photos_of_another_size_are_told(scale: float, size: str) -> None:
    for centre in ([512, 384], [518, 378], [505, 381]):
        params = [value * scale for value in (900, 905, *centre)]
        message = f"look like those of photos of {size} pixels, for these they would be 900,905,"
        with pytest.raises(InputError, match=message):
            check_camera(camera(params), "--camera_params")


@given(st.floats(-0.04, 0.04), st.floats(-0.04, 0.04))
def test_lenses_are_off_centre_by_a_few_percent(x: float, y: float) -> None:
    check_camera(camera([900, 905, (0.5 + x) * 1024, (0.5 + y) * 768]), "--camera_params")


@pytest.mark.parametrize(
    "params", [LANDSCAPE, [110, 110, 512, 384], [9000, 9000, 512, 384], [900, 900, 440, 420]]
)
def test_params_of_the_photos_pass(params: list[float]) -> None:
    check_camera(camera(params), "--camera_params")


def test_what_is_unlikely_may_be_given_in_a_file(caplog: pytest.LogCaptureFixture) -> None:
    cropped = camera([900, 905, 800, 200])
    with pytest.raises(InputError, match="in a file, --cameras"):
        check_camera(cropped, "--camera_params")
    with caplog.at_level(logging.WARNING):
        check_camera(cropped, "cameras.txt, line 1", is_deliberate=True)
    assert "far from the middle" in caplog.text
    with pytest.raises(InputError, match="outside the photo"):
        check_camera(camera([900, 905, 1800, 200]), "cameras.txt, line 1", is_deliberate=True)


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("SIMPLE_RADIAL", [-300]),
        ("OPENCV", [-300, 0, 0, 0]),
        ("OPENCV", [0, -40, 0, 0]),
        ("OPENCV_FISHEYE", [-30, 0, 0, 0]),
    ],
)
def test_distortion_that_no_lens_has_is_refused(model: str, extra: list[float]) -> None:
    for is_deliberate in (False, True):
        with pytest.raises(InputError, match="not monotonic inside the photo"):
            check_camera(distorted(model, extra), "cameras.txt", is_deliberate=is_deliberate)


@pytest.mark.parametrize(
    ("model", "extra", "message"),
    [
        ("SIMPLE_RADIAL", [300], "moves pixels [0-9.]+ times as far"),
        ("RADIAL", [0, 3000], "moves pixels"),
        ("OPENCV", [40, 0, 0, 0], "moves pixels"),
        ("FULL_OPENCV", [0, 0, 0, 0, 0, -300, 0, 0], "moves pixels"),
        ("OPENCV_FISHEYE", [300, 0, 0, 0], "moves pixels"),
        ("THIN_PRISM_FISHEYE", [0, 0, 0, 0, 0, 3e6, 0, 0], "moves pixels"),
        ("RAD_TAN_THIN_PRISM_FISHEYE", [300, *[0] * 11], "moves pixels"),
        ("SIMPLE_DIVISION", [300], "in the middle"),
        ("SIMPLE_DIVISION", [-300], "in the middle"),
        ("FOV", [3.1], "moves pixels"),
    ],
)
def test_distortion_that_stretches_beyond_any_lens_is_refused(
    model: str, extra: list[float], message: str
) -> None:
    for is_deliberate in (False, True):
        with pytest.raises(InputError, match=message):
            check_camera(distorted(model, extra), "cameras.txt", is_deliberate=is_deliberate)


def test_distortion_that_stretches_the_border_alone_may_be_given_in_a_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stretched = distorted("SIMPLE_RADIAL", [5])
    with pytest.raises(InputError, match=r"moves pixels 1\.7.* give them in a file, --cameras"):
        check_camera(stretched, "--camera_params")
    check_camera(stretched, "cameras.txt, line 1", is_deliberate=True)
    assert "moves pixels" in caplog.text


def test_distortion_that_fails_near_the_border_may_be_given_in_a_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fails = distorted("SIMPLE_RADIAL", [-0.9])
    with pytest.raises(
        InputError,
        match=r"inside the photo \(1024 x 768 pixels\); if .* give them in a file, --cameras",
    ):
        check_camera(fails, "--camera_params")
    check_camera(fails, "cameras.txt, line 1", is_deliberate=True)
    assert "not monotonic" in caplog.text


@pytest.mark.parametrize(
    ("model", "focal_length", "extra"),
    [
        ("SIMPLE_RADIAL", 900, [-0.3]),
        ("SIMPLE_RADIAL", 900, [0.4]),
        ("OPENCV", 700, [-0.28, 0.08, 0.001, -0.001]),
        ("OPENCV_FISHEYE", 360, [-0.03, 0.01, -0.01, 0.002]),  # the corners are black
        ("FOV", 360, [0.95]),
        ("EUCM", 360, [0.65, 1.1]),
        ("SIMPLE_DIVISION", 500, [-0.3]),
    ],
)
def test_distortion_of_real_lenses_passes(
    model: str, focal_length: float, extra: list[float]
) -> None:
    check_camera(distorted(model, extra, focal_length), "--camera_params")


def distorted(model: str, extra: list[float], focal_length: float = 900) -> pycolmap.Camera:
    one = camera_with(model, focal_length, SIZE)
    params = one.params.copy()
    params[list(one.extra_params_idxs())] = extra
    one.params = params
    return one


def test_every_model_passes_as_colmap_makes_it() -> None:
    for model in camera_models():
        check_camera(camera_with(model, 900, SIZE), model)


@pytest.mark.parametrize(
    "model",
    ["PINHOLE", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "SIMPLE_RADIAL", "FOV", "DIVISION"],
)
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_camera_sees_the_turned_photo(model: str, quarters: int) -> None:
    rng = np.random.default_rng(0)
    one = camera_with(model, 900, SIZE)
    params = one.params * rng.uniform(0.95, 1.05, len(one.params))
    params[list(one.extra_params_idxs())] += rng.uniform(-0.01, 0.01, len(one.extra_params_idxs()))
    one.params = params
    points = rng.uniform([-0.4, -0.4, 1], [0.4, 0.4, 1], (20, 3))
    x, y = one.img_from_cam(points).T
    width, height = SIZE
    for _ in range(quarters):
        x, y = height - y, x
        width, height = height, width
        points = points @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # (x, y) to (-y, x)
    turned = turned_camera(one, quarters)
    assert (turned.width, turned.height) == (width, height)
    np.testing.assert_allclose(turned.img_from_cam(points), np.stack([x, y], axis=1), atol=1e-6)


def test_models_without_known_turn_are_left_out() -> None:
    assert turned_camera(camera_with("THIN_PRISM_FISHEYE", 900, SIZE)) is None


def test_intrinsics_move_to_freer_models() -> None:
    one = camera([900, 520, 380, 0.1], "SIMPLE_RADIAL")
    assert copy_intrinsics(one, "RADIAL").params.tolist() == [900, 520, 380, 0.1, 0]
    two = copy_intrinsics(camera(LANDSCAPE), "OPENCV")
    assert two.params.tolist() == [*LANDSCAPE, 0, 0, 0, 0]
    assert copy_intrinsics(two, "RADIAL").params.tolist() == [902.5, 520, 380, 0, 0]


def a_map(
    *cameras: pycolmap.Camera, counts: tuple[int, ...] = (1, 1, 1)
) -> pycolmap.Reconstruction:
    model, image_id = pycolmap.Reconstruction(), 0
    for camera_id, (one, count) in enumerate(zip(cameras, counts, strict=False), start=1):
        one.camera_id = camera_id
        model.add_camera_with_trivial_rig(one)
        for _ in range(count):
            image_id += 1
            add_image(model, image_id, f"{image_id}.jpg", pycolmap.Rigid3d(), camera_id=camera_id)
    return model


def test_a_maps_cameras_of_a_size_and_shape() -> None:
    model = a_map(
        camera(LANDSCAPE),
        camera([1200, 1200, 512, 384]),
        camera([500, 320, 240, -0.1], "SIMPLE_RADIAL", (640, 480)),
        counts=(1, 2, 1),
    )
    found = intrinsics_of_map(model, SIZE)
    assert [one.source for one in found] == [
        "camera 2 of the map",
        "camera 1 of the map",
        "camera 3 of the map, scaled",
    ]
    assert found[2].camera.params.tolist() == [800, 512, 384, -0.1]
    upright = intrinsics_of_map(model, (768, 1024))
    assert {one.source.partition(", ")[2] for one in upright} == {"turned", "scaled, turned"}
    assert all((one.camera.width, one.camera.height) == (768, 1024) for one in upright)
    centres = [one.camera.params[2:].tolist() for one in upright if "camera 1" in one.source]
    assert centres == [[768 - 380, 520], [380, 1024 - 520]]  # either way round
    assert intrinsics_of_map(model, (1000, 1000)) == []


def test_equal_cameras_of_a_map_count_once() -> None:
    cameras = [camera([900, 905, 520, 380 + 0.01 * index]) for index in range(3)]
    assert len(intrinsics_of_map(a_map(*cameras), SIZE)) == 1
