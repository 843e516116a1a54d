"""The last, robust adjustment."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from sfm_matchers.mapping.adjustment import (
    adjust_robustly,
    drop_doubled_observations,
    median_error,
    place_points,
    robust_adjustment,
    robust_scale,
)
from sfm_matchers.mapping.pose_covariances import pose_covariances
from sfm_matchers.synthetic import look_at
from tests.support.point_models import add_image

NUM_IMAGES, NUM_POINTS = 4, 60


def model_with_doubles() -> pycolmap.Reconstruction:
    """Four photos of 60 points; of every third point each photo has a second keypoint, 1 px off.

    The last point is observed twice by one photo, and by no other.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (NUM_POINTS, 3))
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=640, height=480, params=(600, 320, 240, 0.0), camera_id=1
    )
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    for index in range(NUM_IMAGES):
        position = np.array([index - 1.5, -4.0, 0.2 * index])
        pose = pycolmap.Rigid3d(look_at(position, np.zeros(3)))
        pixels = np.array([camera.img_from_cam(pose * point) for point in points])
        exact, doubles = pixels + rng.normal(0, 0.1, pixels.shape), pixels + [1.0, 0.0]
        add_image(model, index + 1, f"{index}.png", pose, np.concatenate([doubles, exact]))
    for index, point in enumerate(points):
        track = pycolmap.Track()
        for image_id in range(1, 2 if index == NUM_POINTS - 1 else 1 + NUM_IMAGES):
            if index % 3 == 0 or index == NUM_POINTS - 1:
                track.add_element(image_id, index)
            track.add_element(image_id, NUM_POINTS + index)
        model.add_point3D(point, track, np.zeros(3, np.uint8))
    return model


def observers(model: pycolmap.Reconstruction) -> list[list[int]]:
    return [
        sorted(element.image_id for element in point.track.elements)
        for point in model.points3D.values()
    ]


def test_no_point_keeps_two_observations_of_one_photo() -> None:
    model = model_with_doubles()
    assert drop_doubled_observations(model) == 20 * NUM_IMAGES + 1
    assert observers(model) == [[1, 2, 3, 4]] * (NUM_POINTS - 1)
    for image in model.images.values():  # the exact ones are kept
        owners = [point.has_point3D() for point in image.points2D]
        assert not any(owners[:NUM_POINTS])
    assert drop_doubled_observations(model) == 0
    assert model.is_valid()


def test_photos_that_no_point_supports_leave_the_model() -> None:
    model = model_with_doubles()
    for row, point in enumerate(model.images[4].points2D):
        if point.has_point3D() and row != NUM_POINTS + 1:
            model.delete_observation(4, row)
    adjust_robustly(model, robust_adjustment(1))
    assert sorted(model.images) == [1, 2, 3]
    assert all(frame.has_pose() for frame in model.frames.values())
    assert len(pose_covariances(model)) == 3


def straight_walk(bend: float, seed: int) -> tuple[pycolmap.Reconstruction, list[np.ndarray]]:
    """Eight photos along a line of 5.6 that is bent by so much, adjusted; and true rotations."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-4, -1, -1], [4, 1, 1], (200, 3))
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=640, height=480, params=(600, 320, 240, 0.0), camera_id=1
    )
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    rotations = []
    for index, x in enumerate(np.linspace(-2.8, 2.8, 8)):
        position = np.array([x, -4.0, bend * np.cos(x)])
        pose = pycolmap.Rigid3d(look_at(position, np.array([0.8 * x, 0, 0])))
        pixels = np.array([camera.img_from_cam(pose * point) for point in points])
        add_image(model, index + 1, f"{index}.png", pose, pixels + rng.normal(0, 0.3, pixels.shape))
        rotations.append(pose.rotation.matrix())
    for index, point in enumerate(points):
        track = pycolmap.Track()
        for image_id in sorted(model.images):
            track.add_element(image_id, index)
        model.add_point3D(point, track, np.zeros(3, np.uint8))
    adjust_robustly(model, robust_adjustment(1))
    return model, rotations


@pytest.mark.parametrize("bend", [0.0, 0.001, 0.03, 1.0])
def test_rotations_are_as_sure_on_a_straight_walk_as_on_a_bent_one(bend: float) -> None:
    """Turning all about the line moves no centre, which told 12 degrees of 0.05."""
    squares, told = [], []
    for seed in range(5):
        model, truth = straight_walk(bend, seed)
        found = [model.images[i].cam_from_world().rotation.matrix() for i in sorted(model.images)]
        left, _, right = np.linalg.svd(sum(a.T @ b for a, b in zip(found, truth, strict=True)))
        turns = [a @ left @ right @ b.T for a, b in zip(found, truth, strict=True)]
        squares += [3 - np.trace(turn) for turn in turns]  # of small angles
        told += [covariance.rotation for covariance in pose_covariances(model).values()]
    assert 0.6 < np.median(told) / np.degrees(np.sqrt(np.mean(squares))) < 1.7


def test_the_last_adjustment_sees_each_point_once_a_photo() -> None:
    model = model_with_doubles()
    adjust_robustly(model, robust_adjustment(1))
    assert observers(model) == [[1, 2, 3, 4]] * (NUM_POINTS - 1)


def centers(model: pycolmap.Reconstruction) -> np.ndarray:
    return np.array([model.images[i].projection_center() for i in sorted(model.images)])


def test_a_draft_before_it_does_not_change_where_the_last_adjustment_ends() -> None:
    at_once, after_a_draft = model_with_doubles(), model_with_doubles()
    adjust_robustly(at_once, robust_adjustment(1))
    adjust_robustly(after_a_draft, robust_adjustment(1), is_draft=True)
    draft = centers(after_a_draft)
    adjust_robustly(after_a_draft, robust_adjustment(1))
    np.testing.assert_allclose(centers(after_a_draft), centers(at_once), atol=2e-4)
    assert np.abs(draft - centers(at_once)).max() < 0.02  # of an extent of 3


def test_points_are_placed_for_poses_and_cameras_that_stay() -> None:
    model = model_with_doubles()
    before, params = centers(model), model.cameras[1].params.tolist()
    rng = np.random.default_rng(1)
    for point in model.points3D.values():
        point.xyz = point.xyz + rng.normal(0, 0.01, 3)
    error = median_error(model)
    place_points(model, 1, robust_scale(model))
    np.testing.assert_array_equal(centers(model), before)
    assert model.cameras[1].params.tolist() == params
    assert median_error(model) < 0.2 < 1 < error
    assert observers(model) == [[1, 2, 3, 4]] * (NUM_POINTS - 1)
