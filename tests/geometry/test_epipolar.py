"""Distances from epipolar lines."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sfm_matchers.geometry.epipolar import sampson_distance

# The epipolar lines of a camera that moves to the right are the rows.
ALONG_ROWS = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@pytest.mark.parametrize("scale", [1.0, -3e-7])
def test_sampson_distances_are_pixels(scale: float) -> None:
    points0: NDArray[np.float64] = np.random.default_rng(0).uniform(0, 500, (20, 2))
    points1 = points0 + [30, 0] + np.arange(20)[:, None] * [0, 0.1]
    distances = sampson_distance(points0, points1, scale * ALONG_ROWS)
    # Each of the two points moves by a half.
    np.testing.assert_allclose(distances, 0.1 * np.arange(20) / np.sqrt(2), atol=1e-9)
