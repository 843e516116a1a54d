"""Measures of poses and homographies: exact cases, properties, golden data."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from material import shared_path
from numpy.testing import assert_allclose

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.homographies import (
    apply_homography,
    coarse_precision_recall,
    estimate_homography,
    estimate_homography_poselib,
    homography_error,
)
from sfm_matchers.evaluation.two_view import pose_auc, pose_error
from sfm_matchers.geometry.epipolar import symmetric_epipolar_distance

INTRINSICS = np.array([[500.0, 0, 320], [0, 450, 240], [0, 0, 1]])


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=64)


def _vectors(length: int = 3) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, length, elements=_numbers(-3, 3))


def _pose(rotation_vector: np.ndarray, translation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(rotation_vector)[0]
    pose[:3, 3] = translation
    return pose


def _essential(pose: np.ndarray) -> np.ndarray:
    x, y, z = pose[:3, 3]
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pose[:3, :3]


# Poses


@given(_vectors(), _vectors(), _vectors(), _numbers(0.01, 3.0), _numbers(0.1, 10))
def test_rotation_error_is_the_angle_of_the_turn(
    rotation: np.ndarray, translation: np.ndarray, axis: np.ndarray, angle: float, scale: float
) -> None:
    truth = _pose(rotation, translation)
    length = np.linalg.norm(axis)
    axis = axis / length if length > 1e-3 else np.array([0.0, 0, 1])
    estimated = truth[:3, :3] @ cv2.Rodrigues(axis * angle)[0]
    rotation_error, translation_error = pose_error(truth, estimated, scale * truth[:3, 3])
    assert_allclose(rotation_error, np.rad2deg(angle), atol=1e-4)
    assert translation_error < 1e-4


@given(_vectors(), _numbers(0, np.pi), _numbers(0.1, 5), st.sampled_from([-1, 1]))
def test_translation_error_ignores_length_and_sign(
    rotation: np.ndarray, angle: float, length: float, sign: int
) -> None:
    truth = _pose(rotation, np.array([2.0, 0, 0]))
    estimated = sign * length * np.array([np.cos(angle), np.sin(angle), 0])
    degrees = np.rad2deg(angle)
    _, error = pose_error(truth, truth[:3, :3], estimated)
    assert_allclose(error, min(degrees, 180 - degrees), atol=1e-4)


def test_zero_translation_has_no_direction() -> None:
    assert pose_error(np.eye(4), np.eye(3), [1.0, 0, 0]) == (0.0, 0.0)


# Area under the recall curve


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.0], 1.0),
        ([5.0], 0.0),  # the curve is cut at the threshold, before it rises
        ([2.0], 1 - 2 / 5 / 2),  # rises in a straight line to 1 at error 2
        ([2.0, np.inf], 0.5 * (1 - 2 / 5 / 2)),
        ([1.0, 3.0], (0.5 * 1 * 0.5 + 2 * 0.75 + 2 * 1.0) / 5),
        ([np.inf], 0.0),
    ],
)
def test_auc_of_exact_trapezoids(errors: list[float], expected: float) -> None:
    assert_allclose(pose_auc(errors, [5.0]), [expected])


@given(st.lists(_numbers(0.0, 40.0), min_size=1, max_size=30), _numbers(0.5, 30), _numbers(0.1, 10))
def test_auc_depends_on_neither_order_nor_unit(
    errors: list[float], threshold: float, unit: float
) -> None:
    (area,) = pose_auc(errors, [threshold])
    assert 0 <= area <= 1 + 1e-12
    assert_allclose(pose_auc(errors[::-1], [threshold]), [area])
    (scaled,) = pose_auc(np.array(errors) * unit, [threshold * unit])
    if not np.isclose(errors, threshold, rtol=1e-6).any():  # no error jumps over the threshold
        assert_allclose(scaled, area, atol=1e-9)


@given(st.lists(_numbers(0.0, 40.0), min_size=1, max_size=30), _numbers(0.5, 30))
def test_auc_lies_between_failed_and_exact(errors: list[float], threshold: float) -> None:
    (area,) = pose_auc(errors, [threshold])
    reached = np.mean(np.array(errors) < threshold)
    assert area <= reached + 1e-9
    assert pose_auc([*errors, np.inf], [threshold])[0] <= area + 1e-9


def test_auc_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one error"):
        pose_auc([])


# Epipolar distances


@given(
    _vectors(),
    arrays(np.float64, 3, elements=_numbers(0.2, 2)),
    arrays(np.float64, (8, 3), elements=_numbers(-1, 1)),
)
def test_true_matches_lie_on_their_epipolar_lines(
    rotation: np.ndarray, translation: np.ndarray, points: np.ndarray
) -> None:
    pose = _pose(0.1 * rotation, translation)
    points = points + [0, 0, 5]
    pixels = []
    for local in (points, points @ pose[:3, :3].T + pose[:3, 3]):
        projected = local @ INTRINSICS.T
        pixels.append(projected[:, :2] / projected[:, 2:])
    there = symmetric_epipolar_distance(*pixels, _essential(pose), INTRINSICS, INTRINSICS)
    assert (there < 1e-12).all()
    back = symmetric_epipolar_distance(
        pixels[1] + 9.0, pixels[0], _essential(np.linalg.inv(pose)), INTRINSICS, INTRINSICS
    )
    forth = symmetric_epipolar_distance(
        pixels[0], pixels[1] + 9.0, _essential(pose), INTRINSICS, INTRINSICS
    )
    assert_allclose(forth, back, rtol=1e-4, atol=1e-12)


@given(_numbers(-50, 50), _numbers(-50, 50))
def test_epipolar_distance_of_a_sideways_move_is_vertical(dx: float, dy: float) -> None:
    """Lines are rows then: dy / fy in each image, squared and summed."""
    point = np.array([[100.0, 200.0]])
    distance = symmetric_epipolar_distance(
        point,
        point + [dx, dy],
        _essential(_pose(np.zeros(3), np.eye(3)[0])),
        INTRINSICS,
        INTRINSICS,
    )
    assert_allclose(distance, 2 * (dy / 450) ** 2, atol=1e-12)


# Homographies


@given(_numbers(-50, 50), _numbers(-50, 50), _numbers(0.1, 3), st.sampled_from([-1, 1]))
def test_corner_error_of_a_shift_is_its_length(
    dx: float, dy: float, scale: float, sign: int
) -> None:
    truth = np.array([[1.1, 0.1, 5], [-0.05, 0.9, -3], [1e-4, -2e-4, 1]])
    shifted = np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]]) @ truth
    error = homography_error(sign * scale * shifted, truth, (640, 480))
    assert_allclose(error, np.hypot(dx, dy), atol=1e-6)


def test_corner_error_of_a_missing_or_folding_homography_is_infinite() -> None:
    assert homography_error(None, np.eye(3), (64, 48)) == np.inf
    folding = np.array([[1.0, 0, 0], [0, 1, 0], [-0.05, 0, 1]])  # the line x = 20 goes to infinity
    assert homography_error(folding, np.eye(3), (64, 48)) == np.inf


@pytest.mark.parametrize("estimate", [estimate_homography, estimate_homography_poselib])
def test_homographies_of_matches_with_outliers(estimate) -> None:
    if estimate is estimate_homography_poselib:
        pytest.importorskip("poselib")
    random = np.random.default_rng(0)
    truth = np.array([[1.1, 0.1, 5], [-0.05, 0.9, -3], [1e-4, -2e-4, 1]])
    points0 = random.uniform(0, 400, (200, 2))
    points1 = apply_homography(truth, points0) + random.normal(0, 0.3, (200, 2))
    points1[:60] = random.uniform(0, 400, (60, 2))
    assert homography_error(estimate(points0, points1), truth, (400, 400)) < 1.0
    assert estimate(points0[:3], points1[:3]) is None


def test_coarse_precision_and_recall_of_a_shift() -> None:
    """32 x 32 pixels, 16 cells; a shift by one cell leaves 12 of them visible."""
    homography = np.array([[1.0, 0, 8], [0, 1, 0], [0, 0, 1]])
    points0 = np.array([[3.5, 3.5], [4, 4], [3.5, 11.5], [19.5, 3.5]])
    offsets = np.array([[8, 0], [8 + 3.9, 3.9], [8 + 4.1, 0], [8, -3]])
    precision, recall = coarse_precision_recall(
        points0, points0 + offsets, homography, (32, 32), (32, 32)
    )
    assert precision == 3 / 4  # the third is a cell off
    assert recall == 2 / 12  # the first two share a cell
    assert coarse_precision_recall(points0[:0], points0[:0], homography, (32, 32), (32, 32)) == (
        0.0,
        0.0,
    )


# Golden data


def test_pose_measures_jamma_golden() -> None:
    golden = np.load(shared_path("networks/jamma/golden/metrics.npz"))
    distances = symmetric_epipolar_distance(
        golden["pts0"], golden["pts1"], golden["E"], golden["K0"], golden["K1"]
    )
    np.testing.assert_allclose(distances, golden["sym_epi"], rtol=1e-6)
    for pose, rotation, translation, expected in zip(
        golden["T_0to1"], golden["R"], golden["t"], golden["t_err_R_err"], strict=True
    ):
        rotation_error, translation_error = pose_error(pose, rotation, translation)
        np.testing.assert_allclose([translation_error, rotation_error], expected, rtol=1e-5)
    np.testing.assert_allclose(pose_auc(golden["auc_errors"]), golden["auc"], rtol=1e-6)
