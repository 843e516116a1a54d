"""Affine maps around matches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_matchers.geometry.local_affine_maps import MAX_STRETCH, local_affine_maps

LEFT = np.array([[0.9, 0.1], [-0.2, 1.1]])
RIGHT = np.array([[0.6, 0.0], [0.1, 1.0]])


def points(count: int = 600) -> np.ndarray:
    return np.random.default_rng(0).random((count, 2)) * 500


def test_the_map_of_a_plane_is_found_everywhere() -> None:
    places = points()
    found = local_affine_maps(places, places @ LEFT.T + (30, 5))
    assert found is not None
    np.testing.assert_allclose(found, np.broadcast_to(LEFT, found.shape), atol=0.01)


def test_two_planes_have_two_maps() -> None:
    """A corner of a house; also among matches that are wrong."""
    places = points()
    is_left = places[:, :1] < 250
    moved = np.where(is_left, places @ LEFT.T, (places - (250, 0)) @ RIGHT.T + LEFT @ (250, 0))
    random = np.random.default_rng(1)
    is_wrong = random.random(len(places)) < 0.15
    moved[is_wrong] = random.random((is_wrong.sum(), 2)) * 500
    found = local_affine_maps(places, moved)
    assert found is not None
    for expected, side in ((LEFT, places[:, 0] < 200), (RIGHT, places[:, 0] > 300)):
        errors = np.abs(found[side & ~is_wrong] - expected).max((1, 2))
        assert np.median(errors) < 0.05
        assert np.mean(errors < 0.15) > 0.9


def test_few_matches_have_none() -> None:
    places = points(7)
    assert local_affine_maps(places, places) is None


@given(
    count=st.integers(0, 40),
    spread=st.sampled_from([0.0, 1e-3, 100.0, 1e4]),
    seed=st.integers(0, 100),
)
def test_whatever_the_matches_maps_are_plausible(count: int, spread: float, seed: int) -> None:
    random = np.random.default_rng(seed).random((2, count, 2)) * spread
    for points1 in (random[1], random[0] + random[1] * 0.01):
        found = local_affine_maps(random[0], points1)
        if found is not None:
            stretches = np.linalg.svd(found, compute_uv=False)
            assert stretches.max() < MAX_STRETCH
            assert stretches.min() > 1 / MAX_STRETCH
            assert (np.linalg.det(found) > 0).all()


@pytest.mark.parametrize("linear", [np.diag([1.0, -1.0]), np.diag([5.0, 1.0]), np.diag([1.0, 0.0])])
def test_maps_that_no_two_views_have_are_not_believed(linear: np.ndarray) -> None:
    places = points()
    assert local_affine_maps(places, places @ linear.T) is None
