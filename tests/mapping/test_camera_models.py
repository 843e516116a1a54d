"""Camera models chosen by held-out observations, on reconstructions with exact truth."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.exports.images import without_images
from sfm_matchers.mapping.adjustment import adjust_robustly, robust_adjustment
from sfm_matchers.mapping.camera_models import (
    CameraChoice,
    _joined,
    _Trials,
    choose_camera_models,
)
from sfm_matchers.mapping.held_out import split_observations
from sfm_matchers.mapping.lenses import (
    PERSPECTIVE,
    converted,
    implausibility,
    is_monotonic,
    reaches_border,
)
from sfm_matchers.mapping.pose_covariances import badly_held, pose_covariances
from sfm_matchers.mapping.shared_cameras import split_cameras
from sfm_matchers.runs.camera_models import describe_choices
from tests.support.rendered_lenses import (
    HEIGHT,
    WIDTH,
    calibrated,
    center_error,
    lens,
    mapped,
    place,
    write_database,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("camera", "right"),
    [
        (lens("OPENCV", 1000, 1000, 640, 480, 0, 0, 0.001, -0.001), {"OPENCV"}),
        (lens("RADIAL", 1000, 655, 470, -0.15, 0.06), {"RADIAL"}),
        (
            lens("OPENCV_FISHEYE", 600, 600, 640, 480, 0.02, -0.01, 0.002, 0),
            {"RADIAL_FISHEYE", "OPENCV_FISHEYE"},
        ),
        (
            lens("THIN_PRISM_FISHEYE", 600, 600, 640, 480, 0.05, -0.02, 5e-4, 3e-4, 0, 0, 0, 0),
            {"THIN_PRISM_FISHEYE"},
        ),
    ],
)
def test_the_lens_is_found(camera: pycolmap.Camera, right: set[str], tmp_path: Path) -> None:
    truth = place(camera)
    start = mapped(truth)
    write_database(tmp_path / "database.db", truth)
    chosen, (choice,) = choose_camera_models(start, database_path=tmp_path / "database.db")
    assert choice.after in right
    assert chosen.cameras[1].model.name == choice.after
    assert choice.held_out_after < 0.95 * choice.held_out_before
    assert center_error(chosen, truth) < 1.4 * center_error(calibrated(truth), truth)
    assert center_error(chosen, truth) < 0.7 * center_error(start, truth)
    assert start.cameras[1].model.name == "SIMPLE_RADIAL"  # left as it was
    assert f"{choice.after}" in choice.summary()
    assert "instead of SIMPLE_RADIAL, held-out error" in choice.summary()


def test_cropped_photos_have_their_principal_point_anywhere(tmp_path: Path) -> None:
    truth = place(lens("SIMPLE_RADIAL", 1000, 880, 420, -0.05))
    write_database(tmp_path / "database.db", truth)
    start = mapped(truth)
    chosen, (choice,) = choose_camera_models(start, database_path=tmp_path / "database.db")
    assert choice.refines_principal_point
    x, y = chosen.cameras[1].principal_point_x, chosen.cameras[1].principal_point_y
    assert (x, y) == pytest.approx((880, 420), abs=3)
    assert center_error(chosen, truth) < 0.2 * center_error(start, truth)


@pytest.mark.parametrize(
    ("fx", "centre", "seed"), [(1333, (640, 480), 0), (1067, (640, 480), 1), (1333, (660, 470), 3)]
)
def test_stretched_photos_have_two_focal_lengths(
    fx: float, centre: tuple[float, float], seed: int, tmp_path: Path
) -> None:
    """As of anamorphic video: with one focal length centres are 0.3 to 0.9 % off."""
    truth = place(lens("OPENCV", fx, 1000, *centre, -0.05, 0, 0, 0), seed)
    write_database(tmp_path / "database.db", truth)
    start = mapped(truth)
    chosen, (choice,) = choose_camera_models(start, database_path=tmp_path / "database.db")
    assert choice.after == "OPENCV"
    found = chosen.cameras[1]
    assert found.focal_length_x / found.focal_length_y == pytest.approx(fx / 1000, rel=2e-3)
    assert center_error(chosen, truth) < 0.1 * center_error(start, truth)


@pytest.mark.parametrize("shift", [40.0, 60.0])
def test_stabilised_photos_are_not_taken_for_stretched(shift: float, tmp_path: Path) -> None:
    """Each is cut out elsewhere: no one camera took them, and any freedom gains a little."""
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05), seed=5)
    rng = np.random.default_rng(5)
    for image in truth.images.values():
        offset = rng.uniform(-shift, shift, 2)
        for point in image.points2D:
            point.xy = point.xy + offset
    write_database(tmp_path / "database.db", truth)
    chosen, _ = choose_camera_models(mapped(truth), database_path=tmp_path / "database.db")
    found = chosen.cameras[1]
    assert found.focal_length_x / found.focal_length_y == pytest.approx(1, abs=0.03)
    assert found.mean_focal_length() == pytest.approx(1000, rel=0.03)


def test_pixels_are_taken_for_square_unless_the_gain_is_clear() -> None:
    stretched = lens("OPENCV", 1200, 1000, 640, 480, 0, 0, 0, 0)
    assert "far apart" in implausibility(stretched)
    assert implausibility(stretched, is_stretched=True) == ""
    beyond = lens("OPENCV", 1600, 1000, 640, 480, 0, 0, 0, 0)
    assert "far apart" in implausibility(beyond, is_stretched=True)


def test_it_is_said_why_a_camera_model_was_refused() -> None:
    kept = CameraChoice(1, 8, "RADIAL", "RADIAL", False, 0.7, 0.7)
    assert describe_choices([]) == ""
    assert "no other predicts" in describe_choices([kept])
    refused = replace(kept, reason="OPENCV refused: the focal lengths are far apart")
    assert describe_choices([refused]) == (
        "RADIAL kept: OPENCV refused: the focal lengths are far apart"
    )


@pytest.mark.parametrize(
    ("camera", "seed"),
    [
        (lens("OPENCV_FISHEYE", 600, 600, 640, 480, 0.02, -0.01, 0.002, 0), 3),
        (lens("OPENCV", 1000, 1000, 625, 490, 0.05, -0.02, 0.001, 0.001), 7),
    ],
)
def test_the_chosen_camera_is_adjusted_to_the_end(
    camera: pycolmap.Camera, seed: int, tmp_path: Path
) -> None:
    """One more adjustment would not make it better: these were 5.0 and 2.5 times the least."""
    truth = place(camera, seed)
    write_database(tmp_path / "database.db", truth)
    chosen, (choice,) = choose_camera_models(mapped(truth), database_path=tmp_path / "database.db")
    limit = 1.2 * center_error(calibrated(truth), truth)
    assert center_error(chosen, truth) < limit
    again = copy.deepcopy(chosen)
    centre = choice.refines_principal_point
    adjust_robustly(again, robust_adjustment(1, refines_principal_point=centre))
    assert center_error(chosen, truth) < 1.05 * center_error(again, truth)


@pytest.mark.parametrize(("distortion", "seed"), [(0.0, 0), (-0.08, 1), (-0.08, 2)])
def test_a_simple_lens_stays_simple(distortion: float, seed: int) -> None:
    start = mapped(place(lens("SIMPLE_RADIAL", 1000, 640, 480, distortion), seed))
    chosen, (choice,) = choose_camera_models(start)
    assert chosen is start
    assert not choice.has_changed
    assert choice.after == "SIMPLE_RADIAL"


@pytest.mark.parametrize(("count", "right"), [(4, "RADIAL"), (10, "OPENCV")])
def test_few_photos_tell_of_radial_distortion_only(count: int, right: str) -> None:
    start = mapped(place(lens("OPENCV", 1000, 1000, 640, 480, -0.15, 0.06, 0.001, -0.001)))
    names = sorted(image.name for image in start.images.values())
    few = without_images(start, names[count:])
    chosen, (choice,) = choose_camera_models(few)
    assert choice.after == right
    assert chosen.num_reg_images() == count
    assert not choice.refines_principal_point


def test_a_few_photos_of_a_camera_tell_of_radial_distortion_only() -> None:
    start = mapped(place(lens("OPENCV", 1000, 1000, 640, 480, -0.15, 0.06, 0.001, -0.001)))
    names = sorted(image.name for image in start.images.values())
    _, choices = choose_camera_models(split_cameras(start, names[6:]))
    chosen = {choice.num_images: choice.after for choice in choices}
    assert chosen[6] == "OPENCV"
    assert all(choice.after in PERSPECTIVE[:2] for choice in choices if choice.num_images == 1)
    assert len(choices) > 1
    assert not any(choice.refines_principal_point for choice in choices)


def test_a_model_stays_only_if_it_gains_beside_those_of_the_other_cameras() -> None:
    start = mapped(place(lens("SIMPLE_RADIAL", 1000, 640, 480, 0)))
    trials = _Trials(start, [1], 1)
    trials._measure()
    best = trials.best[1]
    richer = replace(best, camera=converted(best.camera, "RADIAL"))
    for gain, right in ((-1e-9, "SIMPLE_RADIAL"), (1e-9, "RADIAL")):
        trials.best = {1: replace(richer, first_loss=float(best.losses.mean()) + gain)}
        trials._drop_what_gains_nothing()
        (choice,) = trials.choices()
        assert choice.after == right
        assert ("RADIAL refused: it predicts no better" in choice.reason) == (gain < 0)


def test_only_the_middle_tells_nothing_of_the_border() -> None:
    start = mapped(place(lens("RADIAL", 1000, 640, 480, -0.15, 0.08)))
    for image in start.images.values():
        for index, point in enumerate(image.points2D):
            far = np.linalg.norm(point.xy - [WIDTH / 2, HEIGHT / 2]) > 0.6 * np.hypot(640, 480)
            if point.has_point3D() and far:
                start.delete_observation(image.image_id, index)
    _, (choice,) = choose_camera_models(start)
    assert choice.after in ("SIMPLE_RADIAL", "SIMPLE_RADIAL_FISHEYE")  # of as many parameters
    assert "cover the middle of the photos only" in choice.reason


def test_cameras_with_known_intrinsics_and_panoramas_are_left_alone() -> None:
    truth = place(lens("RADIAL", 1000, 640, 480, -0.15, 0.08))
    assert choose_camera_models(mapped(truth), [1])[1] == []
    other = place(lens("FOV", 700, 700, 640, 480, 0.8))
    chosen, choices = choose_camera_models(other)
    assert chosen is other
    assert choices == []


def test_held_out_observations_have_no_part_in_the_model() -> None:
    model = place(lens("SIMPLE_RADIAL", 1000, 640, 480, 0.0))
    part, held_out = split_observations(model)
    assert len(held_out.pixels) > 700
    assert part.compute_num_observations() + len(held_out.pixels) == (
        model.compute_num_observations()
    )
    held = {tuple(xy) for xy in held_out.pixels}
    for image in part.images.values():
        assert held.isdisjoint(tuple(point.xy) for point in image.points2D)
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, 0.0), noise=0.0)
    assert np.median(held_out.errors(truth)) == pytest.approx(0.3 * 1.177, rel=0.1)


@pytest.mark.parametrize(
    ("camera", "problem"),
    [
        (lens("SIMPLE_RADIAL", 1000, 640, 480, -0.2), ""),
        (lens("OPENCV_FISHEYE", 500, 500, 640, 480, 0.02, -0.01, 0, 0), ""),
        (lens("SIMPLE_RADIAL", 700, 640, 480, -0.4), "not monotonic"),
        (lens("OPENCV", 1000, 1000, 740, 480, 0, 0, 0, 0), "principal point"),
        (lens("OPENCV", 1000, 1100, 640, 480, 0, 0, 0, 0), "two axes"),
        (lens("FULL_OPENCV", 900, 900, 640, 480, 6, -30, 0, 0, 24, 6.5, -29, 24), "not monotonic"),
    ],
)
def test_what_no_lens_is_like(camera: pycolmap.Camera, problem: str) -> None:
    found = implausibility(camera)
    assert (problem in found) if problem else found == ""
    assert is_monotonic(camera) == ("monotonic" not in problem)


@pytest.mark.parametrize("model", ["FULL_OPENCV", "OPENCV_FISHEYE", "THIN_PRISM_FISHEYE"])
def test_converted_cameras_have_the_same_rays(model: str) -> None:
    camera = lens("RADIAL", 1000, 650, 470, -0.1, 0.02)
    other = converted(camera, model)
    assert other.model.name == model
    pixels = np.random.default_rng(0).uniform(0, [WIDTH, HEIGHT], (100, 2))
    same = np.asarray(other.img_from_cam(np.asarray(camera.cam_ray_from_img(pixels))))
    assert np.abs(same - pixels).max() < 0.5


def test_what_reaches_the_border() -> None:
    camera = lens("SIMPLE_RADIAL", 1000, 640, 480, 0.0)
    everywhere = np.random.default_rng(0).uniform(0, [WIDTH, HEIGHT], (500, 2))
    assert reaches_border(everywhere, camera)
    assert reaches_border(everywhere[~(everywhere > [640, 480]).all(axis=1)], camera)
    assert not reaches_border(everywhere[everywhere[:, 1] > 480], camera)
    assert not reaches_border(everywhere / 2 + [320, 240], camera)


def test_covariances_are_those_of_many_trials() -> None:
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05), noise=0.0)
    for point_id in sorted(truth.points3D)[200:]:
        truth.delete_point3D(point_id)
    centers, rotations = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        model = copy.deepcopy(truth)
        for image in model.images.values():
            for point in image.points2D:
                if point.has_point3D():
                    world = model.points3D[point.point3D_id].xyz
                    pixel = model.cameras[1].img_from_cam(image.cam_from_world() * world)
                    point.xy = pixel + rng.normal(0, 0.5, 2)
        adjust_robustly(model, robust_adjustment(1))
        errors = compare_models(model, truth)
        centers.append(errors.center_errors / errors.extent)
        rotations.append(errors.rotation_errors)
    found = pose_covariances(model)
    assert set(found) == {f"{index}.png" for index in range(10)}
    for values, name in ((centers, "center"), (rotations, "rotation")):
        expected = np.sqrt(np.mean(np.square(values), axis=0))
        estimated = np.array([getattr(found[f"{index}.png"], name) for index in range(10)])
        ratio = estimated / expected
        assert 0.8 < np.median(ratio) < 1.25
        assert ratio.min() > 0.6
        assert ratio.max() < 1.6


def test_a_photo_of_few_points_is_badly_held() -> None:
    model = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05), noise=1.0)
    image = model.images[4]
    seen = [index for index, point in enumerate(image.points2D) if point.has_point3D()]
    for index in seen[6:]:
        model.delete_observation(4, index)
    adjust_robustly(model, robust_adjustment(1))
    assert badly_held(pose_covariances(model)) == [image.name]
    assert badly_held({}) == []


def test_both_errors_are_of_the_look_that_chose_last() -> None:
    """The second one has more observations, worse ones among them."""
    first = CameraChoice(1, 8, "SIMPLE_RADIAL", "RADIAL", True, 0.5, 0.4)
    same = CameraChoice(1, 8, "RADIAL", "RADIAL", False, 0.7, 0.7)
    other = CameraChoice(1, 8, "RADIAL", "OPENCV", False, 0.7, 0.6)
    assert _joined([first], [same]) == [first]
    expected = CameraChoice(1, 8, "SIMPLE_RADIAL", "OPENCV", True, 0.7, 0.6)
    assert _joined([first], [other]) == [expected]
