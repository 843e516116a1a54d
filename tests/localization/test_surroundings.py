"""What stands around a place, found again in a query."""

from __future__ import annotations

import numpy as np
import pytest

from sfm_matchers.localization.surroundings import Count, is_among


@pytest.mark.parametrize(
    ("count", "is_enough"),
    [
        (Count(3, 8, 0.002), True),
        (Count(3, 3, 0.01), True),
        (Count(2, 2, 0.002), False),  # too few
        (Count(5, 40, 0.002), False),  # too small a share
        (Count(3, 4, 0.15), False),  # as many by chance
        (Count(0, 0, 0.002), False),
    ],
)
def test_surroundings_are_shown_by_enough_of_them(count: Count, is_enough: bool) -> None:
    assert count.is_enough == is_enough


def test_what_lies_among_others_or_near_them() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10], [5, 5]], dtype=np.float64)
    places = np.array([[5, 2], [12, 5], [14, 5], [-2, -2]], dtype=np.float64)
    assert is_among(places, square, 3.0).tolist() == [True, True, False, True]
    assert not is_among(places, square[:0], 3.0).any()
    assert is_among(places[:0], square, 3.0).shape == (0,)
