"""Poses that cannot be: of mirrored photos, of another place, by chance; maps far from 0."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.localization.in_model import estimate_pose
from sfm_matchers.localization.plausibility import expected_by_chance, imprecision, is_seen
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Query, Status
from sfm_matchers.localization.resectioning import Matches, Solution
from sfm_matchers.synthetic import look_at

SIZE = (640, 480)
UTM = np.array([5e5, 5.4e6, 300.0])


def camera(focal_length: float = 600.0) -> pycolmap.Camera:
    params = [focal_length, SIZE[0] / 2, SIZE[1] / 2]
    return pycolmap.Camera(model="SIMPLE_PINHOLE", width=SIZE[0], height=SIZE[1], params=params)


def view(position: tuple[float, float, float]) -> pycolmap.Rigid3d:
    """From there to the middle of the wall, which is the plane y = 0."""
    return pycolmap.Rigid3d(look_at(np.array(position), np.array([0.0, 0.0, 1.0])))


def wall(relief: float, count: int = 200) -> np.ndarray:
    rng = np.random.default_rng(2)
    points = rng.uniform([-2, -relief, 0], [2, 0, 2], (count, 3))
    return points


def localized(
    keypoints: np.ndarray,
    points: np.ndarray,
    map_centres: np.ndarray,
    lens: pycolmap.Camera | None = None,
    origin: np.ndarray | float = 0.0,
) -> LocalizedQuery:
    """What becomes of a query whose points all cameras of the map saw."""

    def observers(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.repeat(np.arange(len(indices)), len(map_centres))
        return rows, np.tile(map_centres, (len(indices), 1)) + origin

    query = Query("q", lens or camera())
    return estimate_pose(
        query,
        keypoints,
        points + origin,
        len(points),
        LocalizationOptions(),
        4.0,
        observers,
    )


def pixels(cam_from_world: pycolmap.Rigid3d, points: np.ndarray, lens=None) -> np.ndarray:
    rng = np.random.default_rng(0)
    exact = (lens or camera()).img_from_cam(cam_from_world * points)
    return exact + rng.normal(0, 0.3, exact.shape)


def mirrored(keypoints: np.ndarray) -> np.ndarray:
    return np.column_stack([SIZE[0] - keypoints[:, 0], keypoints[:, 1]])


@pytest.mark.parametrize("relief", [0.0, 0.1])
@pytest.mark.parametrize("degrees", [0, 30, 60, 70])
def test_a_mirrored_photo_of_a_wall_is_not_localized(relief: float, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    centre = (6 * np.sin(angle), -6 * np.cos(angle), 1.2)
    beside = np.array([centre]) + [[0.5, 0, 0], [-0.5, 0, 0.1], [0, -0.3, 0]]
    points = wall(relief)
    keypoints = pixels(view(centre), points)
    right = localized(keypoints, points, beside)
    assert right.status == Status.LOCALIZED
    assert right.num_inliers == len(points)
    wrong = localized(mirrored(keypoints), points, beside)
    assert wrong.status == Status.FAILED
    assert wrong.cam_from_world is None
    assert "is the photo mirrored?" in wrong.reason


def test_nor_is_one_of_anything_that_is_far_away() -> None:
    points = wall(relief=3.0)
    centre, lens = (30.0, -200.0, 5.0), camera(20_000.0)
    beside = np.array([centre]) + [[5, 0, 0], [-5, 0, 1]]
    keypoints = pixels(view(centre), points, lens)
    assert localized(keypoints, points, beside, lens).status == Status.LOCALIZED
    wrong = localized(mirrored(keypoints), points, beside, lens)
    assert wrong.status == Status.FAILED


def test_few_points_of_the_other_side_are_no_inliers() -> None:
    """Some of the map's points were seen from behind."""
    points, centre = wall(0.1), np.array([0.0, -6.0, 1.0])
    rows = np.arange(200)
    observers = np.where(rows[:, None] < 20, [[0.0, 5.0, 1.0]], [[1.0, -5.0, 1.0]])
    seen = is_seen(points, centre, rows, observers)
    assert (seen == (rows >= 20)).all()
    assert is_seen(points, centre, rows[:0], observers[:0]).all()  # nobody knows


def test_a_camera_among_the_points_is_on_no_side() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 3, (200, 3)) * [1, 1, 0.3]
    centre = np.array([0.0, 0.0, 0.2])
    observers = np.tile([[0.2, 0.1, -0.2]], (200, 1))
    assert is_seen(points, centre, np.arange(200), observers).mean() > 0.95


@settings(max_examples=25, deadline=None)
@given(count=st.integers(4, 400), seed=st.integers(0, 1000), places=st.integers(3, 400))
def test_wrong_matches_give_no_pose(count: int, seed: int, places: int) -> None:
    """Keypoints and points of different places, several of either at one."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, SIZE, (places, 2))[rng.integers(0, places, count)]
    points = wall(1.0, places)[rng.integers(0, places, count)]
    found = localized(keypoints, points, np.array([[0.0, -6.0, 1.0]]))
    assert found.status == Status.FAILED
    assert "fit" in found.reason


def test_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    matches = Matches(rng.uniform(0, 400, (800, 2)), np.zeros((800, 3)), 12.0)
    assert expected_by_chance(matches, camera(), 10, 12.0) > 1
    assert expected_by_chance(matches, camera(), 40, 12.0) < 1e-6
    few = matches.some(np.arange(8))
    assert expected_by_chance(few, camera(), 8, 12.0) < 1e-6
    assert expected_by_chance(few.some(np.zeros(8, int)), camera(), 8, 12.0) == 0  # one keypoint


@pytest.mark.parametrize("relief", [0.0, 2.0])
def test_a_map_far_from_the_origin_is_as_good(relief: float) -> None:
    points, pose = wall(relief), view((2.0, -6.0, 1.5))
    keypoints, beside = pixels(pose, points), np.array([[2.5, -6.0, 1.5], [1.5, -5.0, 1.2]])
    near = localized(keypoints, points, beside)
    far = localized(keypoints, points, beside, origin=UTM)
    for found, origin in ((near, 0.0), (far, UTM)):
        assert found.status == Status.LOCALIZED
        assert found.num_inliers == 200
        centre = found.cam_from_world.inverse().translation
        np.testing.assert_allclose(centre, [2.0, -6.0, 1.5] + np.array(origin), atol=0.05)
    np.testing.assert_allclose(far.points, points + UTM)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-3, atol=1e-9)


def test_the_covariance_is_of_the_camera_centre() -> None:
    """As the centres of photos with other noise spread, wherever the world's origin is."""
    points, pose = wall(2.0), view((2.0, -6.0, 1.5))
    exact = camera().img_from_cam(pose * points)
    rng = np.random.default_rng(1)
    centres, angles = [], []
    for _ in range(60):
        keypoints = exact + rng.normal(0, 1, exact.shape)
        found = localized(keypoints, points, np.array([[2.0, -6.0, 1.4]]), origin=100.0)
        turn = found.cam_from_world.rotation * pose.rotation.inverse()
        centres.append(pose.rotation * (found.cam_from_world.inverse().translation - 100))
        angles.append(2 * turn.quat[:3])
    spread = np.concatenate([np.std(angles, axis=0), np.std(centres, axis=0)])
    ratios = np.sqrt(np.diag(found.covariance)) / spread
    assert (ratios > 1).all()  # large errors count less, which makes it larger
    assert (ratios < 2).all()


def test_rough_agreement_is_of_low_confidence() -> None:
    """Half of the matches within the threshold, none exact: what learned matchers find anywhere."""
    points, pose = wall(2.0), view((2.0, -6.0, 1.5))
    rng = np.random.default_rng(0)
    keypoints = camera().img_from_cam(pose * points) + rng.normal(0, 6, (200, 2))
    found = localized(keypoints, points, np.array([[2.0, -6.0, 1.4]]))
    assert found.num_inliers > 100
    assert found.status == Status.LOW_CONFIDENCE
    matches = Matches(keypoints, points, 12.0)
    assert "inexact" in imprecision(Solution(camera(), pose, matches))
